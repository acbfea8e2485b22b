"""Gradients through time, by disturbing the state of one step in the reference loop."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import slice_time
from dsfjax.analysis import gradient_norms, normalized, state_gradients
from tests import reference_loop as reference
from tests import systems_zoo as zoo
from tests.analysis.cases import FAST, slow_unless
from tests.engine_runs import compiled

L = 9
gradients, norms = compiled(state_gradients), compiled(gradient_norms)


@pytest.mark.parametrize(
    "name",
    slow_unless(
        {*FAST, "dense_maps", "complex_pairs"},
        [*zoo.MAIN, "complex_pairs", "scalar_lti", "dense_complex", "low_rank_constant"],
    ),
)
def test_a_disturbance_changes_the_loss_by_the_gradient(name: str) -> None:
    """L = Σ dy·y is linear in a disturbance δ of h_t: it changes by Re Σ G_t δ exactly."""
    system = zoo.system(name, L)
    rng = np.random.default_rng(0)
    dy = rng.normal(size=(L, system.output_width))
    G = np.asarray(gradients(system, jnp.asarray(dy)))
    paper = dataclasses.replace(normalized(system, length=L), D=None)
    for t in (0, 4, L - 1):
        δ = rng.normal(size=paper.state_shape) + 1j * rng.normal(size=paper.state_shape)
        δ = δ if paper.is_complex else δ.real
        # Without tokens all outputs from t on, or after it, are those of the disturbance.
        y = reference.output(paper, np.zeros((L, paper.token_width)), t, δ)
        change = 0.0 if paper.C.before_update else dy[t] @ y
        if t + 1 < L:
            rest = paper if paper.length == 1 else slice_time(paper, t + 1, L)
            tokens = np.zeros((L - t - 1, paper.token_width))
            change += np.sum(dy[t + 1 :] * reference.run(rest, tokens, δ).y)
        np.testing.assert_allclose(np.sum(G[t] * δ).real, change, rtol=1e-10, atol=1e-12)
    expected = np.linalg.norm(G.reshape(L, G.shape[1], -1), axis=-1)
    np.testing.assert_allclose(norms(system, jnp.asarray(dy)), expected, rtol=1e-12)


def test_nothing_passes_a_reset() -> None:
    system = zoo.system("scalar_no_reset", L)
    system = dataclasses.replace(system, reset=jnp.zeros(L, bool).at[5].set(True))
    dy = jnp.zeros((L, system.output_width)).at[7].set(1)
    size = np.asarray(norms(system, dy))
    assert (size[5:8] > 0).all() and (size[:5] == 0).all() and (size[8:] == 0).all()


def test_kernel_system_is_refused() -> None:
    with pytest.raises(ValueError, match="KernelSystem has no finite state"):
        state_gradients(zoo.kernel_system(L), jnp.ones((L, 16)))
