"""Long sequences: float32 with the method of choice against the sequential engine in float64."""

import jax
import jax.numpy as jnp
import pytest

from tests import reference_loop as reference
from tests import systems_zoo as zoo
from tests import typical_systems as typical
from tests.engine_checks import cast, compiled_pull_back, cotangents, report
from tests.engine_runs import compiled_scan, names_of_leaves

SHAPE = (1, 2, 2)


@pytest.mark.parametrize(
    "name", zoo.slow_unless(["linear_attention"], ["linear_attention", "gated_delta_rule"])
)
def test_20_000_steps(name):
    system = typical.system(name, 20_000, SHAPE)
    low = cast((system, zoo.tokens(system, 20_000)), jnp.float32)
    expected, h_expected = compiled_scan(*cast(low, jnp.float64), method="sequential")
    y, h_last = compiled_scan(*low)
    assert reference.error(y, expected) < 1e-4
    assert reference.error(h_last, h_expected) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", typical.NAMES)
def test_100_000_steps(name):
    """Values, and gradients where a float32 can have them: at least as good as sequential."""
    length = 100_000
    system = typical.system(name, length, SHAPE)
    low = cast((system, zoo.tokens(system, length), zoo.state(system)), jnp.float32)
    bar = cotangents(*low)
    wide = cast((low, bar), jnp.float64)
    expected = compiled_pull_back(*wide[0], wide[1], method="sequential")

    def errors(method: str) -> dict[str, float]:
        got = compiled_pull_back(*low, bar, method=method)
        what = ["y", "h_last", *(f"gradient to {path}" for path in names_of_leaves(low))]
        pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
        return {k: reference.error(*pair) for k, pair in zip(what, pairs, strict=True)}

    found = {what: error for what, error in errors("auto").items() if not error < 1e-4}
    if found and not {"y", "h_last"} & found.keys():
        # The gradient to a constant decay near 1 multiplies the rounding of that decay.
        plain = errors("sequential")
        found = {what: error for what, error in found.items() if not error < 4 * plain[what]}
    report([f"{what}: {error:.1e}" for what, error in found.items()])
