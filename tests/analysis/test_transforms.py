"""Every tool under vmap, and in the precision of its system."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import analysis
from dsfjax.core import KernelSystem, System
from tests import systems_zoo as zoo
from tests.analysis.cases import slow_unless
from tests.engine_runs import compiled

L = 9
MARKS = (2, 5)


def everything(system: System | KernelSystem, u: jax.Array) -> dict[str, Any]:
    """All that can be asked of one sequence."""
    found = {
        "spectrum": analysis.spectrum(system, length=L),
        "horizons": analysis.horizons(system, 0.1, length=L),
        "half_life": analysis.half_life(system, length=L),
        "mean_age": analysis.mean_age(system, length=L),
        "retention": analysis.retention(system, u, jnp.asarray(MARKS)),
        "exponents": analysis.lyapunov_exponents(system, length=L),
        "outside": analysis.outside(system, length=L),
        "stability": analysis.stability(system, u),
    }
    if isinstance(system, KernelSystem):
        return found
    both = analysis.gramians(system, at=MARKS, length=L)
    values = analysis.hankel_singular_values(both)
    return found | {
        "gramians": both,
        "values": values,
        "dimension": analysis.effective_dimension(values**2).participation,
        "covariance": analysis.state_covariance(system, u),
        "gradients": analysis.gradient_norms(system, jnp.ones((L, system.output_width), u.dtype)),
    }


@pytest.mark.parametrize("name", slow_unless({"diagonal_given"}, ["diagonal_given", "kernel"]))
def test_vmap_agrees_with_a_loop(name: str) -> None:
    def build(seed: int) -> System | KernelSystem:
        return zoo.kernel_system(L, seed) if name == "kernel" else zoo.system(name, L, seed)

    parts = [build(seed) for seed in range(2)]
    tokens = [zoo.tokens(parts[0], L, seed) for seed in range(2)]
    batch = jax.tree.map(lambda *x: jnp.stack(x), *parts)
    got = compiled(jax.vmap(everything))(batch, jnp.stack(tokens))
    one = compiled(everything)
    for i, (system, u) in enumerate(zip(parts, tokens, strict=True)):
        expected = jax.tree_util.tree_leaves_with_path(one(system, u))
        for (path, one_value), values in zip(expected, jax.tree.leaves(got), strict=True):
            where = jax.tree_util.keystr(path)
            np.testing.assert_allclose(values[i], one_value, rtol=1e-9, atol=1e-9, err_msg=where)


@pytest.mark.parametrize(
    "name",
    slow_unless({"scalar_summed"}, ["scalar_summed", "complex_per_state", "low_rank", "kernel"]),
)
def test_float32_stays_float32(name: str) -> None:
    """Values as in float64 up to rounding, and nothing is promoted by accident."""
    system = zoo.kernel_system(L) if name == "kernel" else zoo.system(name, L)
    u = zoo.tokens(system, L)

    def narrow(x: jax.Array) -> jax.Array:
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return x
        return x.astype(jnp.complex64 if jnp.iscomplexobj(x) else jnp.float32)

    run = compiled(everything)
    wide, small = run(system, u), run(jax.tree.map(narrow, system), narrow(u))
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(small), jax.tree.leaves(wide), strict=True
    ):
        where = jax.tree_util.keystr(path)
        assert x.dtype not in (jnp.float64, jnp.complex128), where
        x, y = (np.asarray(v).astype(np.complex128) for v in (x, y))
        finite = np.isfinite(y)
        np.testing.assert_array_equal(np.isfinite(x), finite, err_msg=where)
        if finite.any():
            size = max(np.abs(y[finite]).max(), 1.0)
            assert np.abs(x - y)[finite].max() < 2e-3 * size, where
