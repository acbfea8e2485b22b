"""float32 against float64 at the decays of architectures: normwise 2e-6, gradients 1e-5."""

import jax.numpy as jnp
import pytest

from tests import systems_zoo as zoo
from tests import typical_systems as typical
from tests.engine_checks import cast, report, wrong
from tests.engine_runs import methods

FAST = ("ssd",)
# A constant decay near 1, rounded once as exp(log a), is raised to the power of the number of steps
# by what multiplies it step by step: that alone exceeds the bounds in float32, in `sequential` too.
FROM_LOGARITHMS = {"s4d": ("chunked",)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(x, marks=() if x in FAST else pytest.mark.slow) for x in typical.NAMES],
)
def test_every_method(name):
    system = typical.system(name, 512)
    low = cast((system, zoo.tokens(system, 512), zoo.state(system)), jnp.float32)
    report(wrong(name, *low, among=FROM_LOGARITHMS.get(name)))


WIDE, SQUARE = (1, 64, 128), (1, 64, 64)
SIZES = {
    "linear_attention": (1024, WIDE),
    "ssd": (1024, WIDE),
    "gla": (1024, WIDE),
    "s6": (1024, WIDE),
    "qlstm": (4096, (1, 1, 256)),
    "rg_lru": (4096, (1, 1, 256)),
    "delta_rule": (1024, SQUARE),
    "gated_delta_rule": (1024, SQUARE),
    "kda": (1024, SQUARE),
    "rwkv7": (1024, SQUARE),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_at_full_size(name):
    """Sizes of real layers; the quadratic form only where its kernel has no states."""
    length, shape = SIZES[name]
    system = typical.system(name, length, shape)
    low = cast((system, zoo.tokens(system, length), zoo.state(system)), jnp.float32)
    scalar = name in ("linear_attention", "ssd")
    among = tuple(m for m in methods(system) if scalar or m != "materialized")
    report(wrong(name, *low, among=among))
