"""Chunks of a system that is constant in time give what the steps give, mostly by convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import scan
from dsfjax.core import Diagonal, InnerOutput, OuterInput, System
from dsfjax.cost import count_operations
from dsfjax.engines import Chunked
from dsfjax.engines.chunks.convolution import toeplitz
from dsfjax.engines.chunks.elementwise import ELEMENTWISE
from dsfjax.engines.chunks.products import MATRIX_PRODUCTS
from dsfjax.engines.recurrence import Recurrence, prepare
from tests.engine_runs import COMPILE_FAST
from tests.reference_loop import error

LENGTH, CHUNK = 45, 16
"""Two whole chunks, and 13 steps that nothing fills up: no step of a constant decay is empty."""


def test_entries_of_the_matrix_are_those_of_their_distance() -> None:
    kernel = jnp.arange(1.0, 31).reshape(2, 5, 3)
    found = np.asarray(toeplitz(kernel))
    for t in range(5):
        for s in range(5):
            expected = kernel[:, t - s] if s <= t else jnp.zeros((2, 3))
            np.testing.assert_array_equal(found[:, t, s], expected)


@pytest.mark.parametrize(
    ("kind", "segment"), [("complex", 2 * CHUNK), ("real", CHUNK), ("per channel", 2 * CHUNK)]
)
def test_values_and_gradients_are_those_of_the_steps(kind: str, segment: int) -> None:
    """In one segment of two chunks, and in a loop over two segments."""
    keys = jax.random.split(jax.random.key(0), 7)

    def draw(i: int, *shape: int) -> jax.Array:
        x = jax.random.normal(keys[i], (*shape, 2))
        return jax.lax.complex(x[..., 0], x[..., 1]) if kind == "complex" else x[..., 0]

    # Two groups of b, one of c; two terms that are written and read; a decay of 0.
    decay = -jnp.abs(draw(0, 1, 4, 3, 2 if kind == "per channel" else 1).real)
    algorithm = ELEMENTWISE if kind == "per channel" else MATRIX_PRODUCTS
    log_a = decay.at[0, 1, 2, 0].set(-jnp.inf)
    if kind == "complex":
        log_a = jax.lax.complex(log_a, draw(1, 1, 4, 3, 1).imag)
    b, c = draw(2, 1, 2, 2, 3), draw(3, 1, 2, 1, 3)
    u, h0 = draw(4, LENGTH, 16).real, draw(5, 4, 3, 2)

    def outcome(log_a, b, c, u, h0, method):
        B, C = OuterInput(b, rank=2), InnerOutput(c, rank=2)
        system = System(Diagonal(log_a), B, C, state_shape=(4, 3, 2))
        y, h = scan(system, u, h0, method=method)
        return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.abs(h) ** 2), (y, h)

    def both(*arguments):
        methods = ("sequential", Chunked(algorithm, CHUNK, segment))
        run = jax.value_and_grad(outcome, argnums=range(5), has_aux=True)
        return [run(*arguments, method) for method in methods]

    expected, found = jax.jit(both, compiler_options=COMPILE_FAST)(log_a, b, c, u, h0)
    jax.tree.map(lambda x, y: np.testing.assert_array_less(error(y, x), 1e-12), expected, found)


def test_a_batch_shares_the_cotangents_of_what_is_constant() -> None:
    """Kernels and their cotangents are formed once, and not once per sequence."""
    log_a = jnp.full((1, 2, 64, 1), -0.1)
    b = jnp.ones((1, 2, 64))

    def total(log_a, b, u):
        system = System(Diagonal(log_a), OuterInput(b), InnerOutput(b), state_shape=(2, 64, 1))
        return jax.vmap(lambda u: scan(system, u)[0])(u).sum()

    def flops(sequences: int) -> float:
        u = jax.ShapeDtypeStruct((sequences, 32, 2), jnp.float64)
        return count_operations(jax.grad(total, (0, 1)), log_a, b, u).flops

    assert flops(8) < 5 * flops(1)  # 3.5; 6.3 with cotangents per sequence


def test_a_constant_decay_next_to_keys_in_time_is_filled_up() -> None:
    """One length of chunks is compiled, and the steps at the end leave the last state alone."""
    keys = jax.random.split(jax.random.key(1), 6)
    log_a = -jnp.abs(jax.random.normal(keys[0], (1, 2, 3, 1)))
    b, c = (jax.random.normal(key, (LENGTH, 2, 3)) for key in keys[1:3])
    u, h0 = jax.random.normal(keys[3], (LENGTH, 4)), jax.random.normal(keys[4], (2, 3, 2))

    def built(log_a: jax.Array, b: jax.Array, c: jax.Array) -> System:
        return System(Diagonal(log_a), OuterInput(b), InnerOutput(c), state_shape=(2, 3, 2))

    def outcome(log_a, b, c, u, h0, method):
        y, h = scan(built(log_a, b, c), u, h0, method=method)
        return jnp.sum(jnp.sin(y)) + jnp.sum(h**2), (y, h)

    def both(*arguments):
        methods = ("sequential", Chunked(MATRIX_PRODUCTS, CHUNK, 2 * CHUNK))
        run = jax.value_and_grad(outcome, argnums=range(5), has_aux=True)
        return [run(*arguments, method) for method in methods]

    expected, found = jax.jit(both, compiler_options=COMPILE_FAST)(log_a, b, c, u, h0)
    jax.tree.map(lambda x, y: np.testing.assert_array_less(error(y, x), 1e-12), expected, found)

    def filled(b: jax.Array, c: jax.Array) -> Recurrence | None:
        problem = prepare(built(log_a, b, c), u, emit_states=False)
        return MATRIX_PRODUCTS.pad(problem, LENGTH + 3)

    longer = filled(b, c)
    assert longer is not None and longer.length == LENGTH + 3
    assert filled(b[:1], c[:1]) is None
