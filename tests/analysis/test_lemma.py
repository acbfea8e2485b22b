"""Lemma 1 of arXiv:2405.15731 for separable attentions of every kind."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax.analysis import elu_features, lemma_1, positive_features, random_projection
from dsfjax.core import taylor_features
from tests.reference_loop import error

L, H, G, M, P = 70, 4, 2, 3, 2

W = random_projection(jax.random.key(0), 5, M)
MAPS = {
    "identity": lambda x: x,
    "elu": elu_features,
    "positive": lambda x: positive_features(x, W),
    "taylor": lambda x: taylor_features(x, 2),
}


# Without a feature map weights have either sign, and their sum may vanish: η is given.
@pytest.mark.parametrize(
    ("name", "normalizer"),
    [("identity", "given"), ("elu", "summed"), ("positive", "given"), ("taylor", "summed")],
)
def test_attention_is_the_system_that_the_lemma_says(name: str, normalizer: str) -> None:
    rng = np.random.default_rng(list(MAPS).index(name))
    q, k, v = (rng.standard_normal((L, *shape)) for shape in ((H, M), (G, M), (H, P)))
    log_eta = None if normalizer == "summed" else jnp.asarray(rng.standard_normal((L, H)))
    phi, psi = (MAPS[name](jnp.asarray(x)) for x in (q, k))
    found: Any = jax.jit(lemma_1)(phi, psi, jnp.asarray(v), log_eta)
    weights = np.einsum("thn,shn->hts", phi, np.repeat(psi, H // G, axis=1))
    weights = weights * np.tri(L)
    eta = weights.sum(axis=2).T if log_eta is None else np.exp(log_eta)
    expected = np.einsum("hts,shp->thp", weights, v) / eta[:, :, None]
    assert error(found.attention, expected) < 1e-13
    assert float(found.unnormalized) < 1e-12
    assert float(found.paper) < 1e-12


def test_the_comparison_can_fail() -> None:
    """Single precision shows as a deviation of its own size."""
    x = jnp.exp(jax.random.normal(jax.random.key(0), (L, 1, 2), jnp.float32))
    found: Any = jax.jit(lemma_1)(x, x, x)
    assert 1e-9 < float(found.paper) < 1e-4
