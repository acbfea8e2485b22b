"""The gradient of the method of choice keeps a state per chunk, not one per step."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from jax import Array

from dsfjax import Diagonal, InnerOutput, OuterInput, System, scan
from tests import systems_zoo as zoo
from tests import typical_systems as typical
from tests.engine_checks import cast
from tests.engine_runs import COMPILE_FAST, differentiable

LENGTH = 1024
# A state of 128 × 128 for some 400 to 800 inputs per step: all states are more than eight times the
# inputs and their gradients. qLSTM and RG-LRU have one state per channel: there the bound forbids
# stacks of copies.
SHAPE, OTHER_SHAPES = (1, 128, 128), {"s4d": (64, 64, 1)}
NAMES = ("delta_rule", "ssd", "linear_attention", "gla", "s6", "qlstm", "rg_lru", "s4d", "kda")
FAST = ("ssd",)


class Bytes(NamedTuple):
    """Of one compiled gradient: inputs and outputs, temporaries, and what all states would take."""

    io: int
    temporary: int
    all_states: int


def of_gradient(name: str, length: int) -> Bytes:
    """Memory of the compiled value and gradient to everything; nothing is run."""

    def build() -> tuple[System, Array, Array]:
        system = typical.system(name, length, OTHER_SHAPES.get(name, SHAPE))
        return cast((system, zoo.tokens(system, length), zoo.state(system)), jnp.float32)

    system, u, h0 = build()

    def loss(x: list[Array]) -> Array:
        y, h_last = scan(*rebuild(x))
        return jnp.sum(y * y) + jnp.sum(jnp.abs(h_last) ** 2)

    arrays, rebuild = differentiable((system, u, h0))
    compiled = (
        jax.jit(jax.value_and_grad(loss), compiler_options=COMPILE_FAST).lower(arrays).compile()
    )
    memory = compiled.memory_analysis()
    assert memory is not None
    states = length * math.prod(system.carried_shape) * jnp.dtype(system.dtype).itemsize
    io = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return Bytes(io, memory.temp_size_in_bytes, states)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=() if x in FAST else pytest.mark.slow) for x in NAMES]
)
def test_temporaries_grow_like_the_inputs(name):
    """In the length; what does not depend on it is the work of one chunk."""
    short, long = of_gradient(name, LENGTH), of_gradient(name, 4 * LENGTH)
    io, temporary, all_states = (b - a for a, b in zip(short, long, strict=True))
    if name not in ("qlstm", "rg_lru"):
        assert all_states > 8 * io, "the shape does not tell the two apart"
    # A state every 16 steps, with room for two of them and for a few copies of the inputs.
    assert temporary < 4 * io + all_states / 8, (short, long)
    assert short.temporary < short.all_states + 4 * short.io, short


@pytest.mark.slow
def test_ranks_above_one_do_not_hold_all_states():
    """Two terms written and read per step, with a decay per state and channel."""
    length, n = 512, 32
    A = Diagonal(jnp.full((1, 1, n, n), -0.1, jnp.float32))
    vectors = jnp.ones((length, 2, 1, n), jnp.float32)

    def loss(b: Array, c: Array, u: Array) -> Array:
        B, C = OuterInput(b, rank=2), InnerOutput(c, rank=2)
        system = System(A, B, C, state_shape=(1, n, n))
        return jnp.sum(scan(system, u, method="chunked")[0] ** 2)

    u = jnp.ones((length, 2 * n), jnp.float32)
    run = jax.jit(jax.grad(loss, argnums=(0, 1, 2)), compiler_options=COMPILE_FAST)
    memory = run.lower(vectors, vectors, u).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < length * n * n * 4 / 2
