"""What a transition does without its matrix is what its matrix does."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import Diagonal, DiagonalPlusLowRank
from tests import systems_zoo as zoo
from tests.draw import Draw

LENGTH = 4


@pytest.mark.parametrize(
    "name", ["low_rank", "low_rank_delta", "low_rank_ranked", "low_rank_constant"]
)
def test_methods_of_low_rank_are_those_of_the_matrix(name: str) -> None:
    A = zoo.system(name, LENGTH).A
    assert isinstance(A, DiagonalPlusLowRank)
    g = Draw("methods", LENGTH, 0)
    h, log_r = g.normal(LENGTH, *zoo.SHAPE), g.normal(LENGTH, zoo.H)

    @jax.jit
    def run(A: DiagonalPlusLowRank):
        return {
            "matrix": A.matrix(),
            "apply": A.apply(h),
            "transpose": A.transpose().matrix(),
            "rescale": A.rescale(log_r).matrix(),
            "pad": A.pad(zoo.N, zoo.N + 2).matrix(),
            "of_head": [A.of_head(head).matrix() for head in range(zoo.H)],
        }

    found = jax.tree.map(np.asarray, run(A))
    m = found["matrix"]
    padded = np.zeros((len(m), zoo.H, zoo.N + 2, zoo.N + 2))
    padded[..., : zoo.N, : zoo.N] = m
    padded[..., [-2, -1], [-2, -1]] = 1
    close = partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12)
    close(found["apply"], np.matmul(m, np.asarray(h)))
    close(found["transpose"], m.swapaxes(-1, -2))
    close(found["rescale"], np.exp(log_r)[:, :, None, None] * m)
    close(found["pad"], padded)
    close(np.concatenate(found["of_head"], axis=1), m)
    # By hand, from the fields: diag(a) − W S Zᵀ of the last step and head.
    w, z = (np.asarray(x)[-1, -1].reshape(zoo.N, -1) for x in (A.w, A.z))
    s = np.ones(1) if A.scale is None else np.asarray(A.scale)[-1, -1]
    a = np.exp(np.asarray(A.log_a))[-1, -1] * np.ones(zoo.N)
    a = a if A.sign is None else a * np.asarray(A.sign, float)[-1, -1]
    close(m[-1, -1], np.diag(a) - (w * s) @ z.T)


@pytest.mark.parametrize("shared", [True, False])
def test_states_that_a_diagonal_is_padded_with_keep_what_they_hold(shared: bool) -> None:
    g = Draw("pad", LENGTH, 0)
    sign = jnp.where(g.normal(LENGTH, zoo.H, 1 if shared else zoo.N, 1) < 0, -1, 1)
    explicit = Diagonal(g.log_decay(LENGTH, zoo.H, zoo.N, 1), sign)
    rate = g.log_decay(zoo.H, zoo.N, zoo.P)
    factored = dataclasses.replace(
        Diagonal.factored(g.positive(LENGTH, zoo.H, zoo.P), rate), sign=sign
    )
    for A in (explicit, factored):
        new = A.pad(zoo.N, zoo.N + 2)
        assert isinstance(new, Diagonal) and (new.factors is None) == (A.factors is None)
        a, b = (np.exp(np.asarray(x.log_decay())) * np.asarray(x.sign) for x in (A, new))
        np.testing.assert_array_equal(b[:, :, : zoo.N], a)
        np.testing.assert_array_equal(b[:, :, zoo.N :], np.ones_like(b[:, :, zoo.N :]))
    one = Diagonal(g.log_decay(LENGTH, zoo.H, 1, 1))  # one decay for all: for the new ones too
    assert one.pad(zoo.N, zoo.N + 2) is one


def test_shapes_that_do_not_fit_are_refused() -> None:
    log_a, w = jnp.zeros((3, 2, 1)), jnp.ones((3, 2, 4))
    for wrong in (jnp.ones((3, 2)), jnp.ones((3, 2, 2)), jnp.ones((3, 1, 2, 2, 1))):
        with pytest.raises(ValueError, match="scale"):
            DiagonalPlusLowRank(log_a, w, w, scale=wrong)
    with pytest.raises(ValueError, match="w and z"):
        DiagonalPlusLowRank(log_a, w, jnp.ones((3, 2, 5)))
    with pytest.raises(ValueError, match="scale"):
        DiagonalPlusLowRank(log_a, w, w, scale=jnp.ones((3, 3, 1))).check((2, 4, 1))
