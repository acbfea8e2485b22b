"""Complex decays as positive ones: the sums of their angles, and what they leave unturned."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import Diagonal, InnerOutput, OuterInput, Scalar, System, scan
from dsfjax.engines.recurrence import prepare
from dsfjax.engines.rotation import BLOCK, Rotated, running_phase


def angles(length: int, dtype: str, size: float = 3.0) -> jax.Array:
    rng = np.random.default_rng(length)
    return jnp.asarray(rng.uniform(-size, size, (length, 2, 3)).astype(dtype))


@pytest.mark.parametrize("length", [1, 3, BLOCK, BLOCK + 1, 5 * BLOCK])
def test_phases_are_those_of_the_sums(length: int) -> None:
    angle = angles(length, "float64")
    cos, sin = running_phase(angle)
    sums = np.cumsum(np.asarray(angle), axis=0)
    np.testing.assert_allclose(cos, np.cos(sums), atol=1e-12)
    np.testing.assert_allclose(sin, np.sin(sums), atol=1e-12)


def test_whole_turns_take_no_digits() -> None:
    """In float32 the sums of 65,536 angles reach 2·10⁵, where neighbours are 1/64 apart."""
    angle = angles(65_536, "float32") + 3
    exact = np.cumsum(np.asarray(angle, np.float64), axis=0)
    cos, sin = running_phase(angle)
    error = np.hypot(np.asarray(cos) - np.cos(exact), np.asarray(sin) - np.sin(exact))
    assert error.max() < 5e-6
    assert error[:4096].max() < 2e-6


def test_derivative_of_phases() -> None:
    angle, dot = angles(300, "float64"), angles(300, "float64", 0.5)
    (cos, sin), (d_cos, d_sin) = jax.jvp(running_phase, (angle,), (dot,))
    moved = np.cumsum(np.asarray(dot), axis=0)
    np.testing.assert_allclose(d_cos, -sin * moved, atol=1e-12)
    np.testing.assert_allclose(d_sin, cos * moved, atol=1e-12)

    def read(angle: jax.Array) -> jax.Array:
        cos, sin = running_phase(angle)
        return jnp.vdot(dot, cos) + jnp.vdot(dot**2, sin)

    def plain(angle: jax.Array) -> jax.Array:
        sums = jnp.cumsum(angle, axis=0)
        return jnp.vdot(dot, jnp.cos(sums)) + jnp.vdot(dot**2, jnp.sin(sums))

    def second(f: Callable[[jax.Array], jax.Array], angle: jax.Array) -> jax.Array:
        return jax.grad(lambda x: jnp.vdot(dot, jax.grad(f)(x)))(angle)

    np.testing.assert_allclose(jax.grad(read)(angle), jax.grad(plain)(angle), atol=1e-9)
    np.testing.assert_allclose(second(read, angle), second(plain, angle), atol=1e-9)


def system(log_a: jax.Array, kind: type = Diagonal) -> tuple[System, jax.Array]:
    rng = np.random.default_rng(0)
    length = log_a.shape[0]
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape))  # noqa: E731
    n = log_a.shape[2] if kind is Diagonal else 4
    B, C = OuterInput(draw(length, 2, n)), InnerOutput(draw(length, 2, n))
    return System(kind(log_a), B, C, state_shape=(2, n, 5)), draw(length, 10)


def test_decays_that_forget_within_a_step_keep_the_digits_of_their_gradients() -> None:
    """The turns of what a step writes and reads would leave 10⁻¹⁶, where 10⁻³⁵ is right."""
    rng = np.random.default_rng(1)
    log_a = jnp.asarray(-80 + 1j * rng.uniform(-3, 3, (40, 2, 4, 1)))
    of, u = system(log_a)

    def loss(log_a: jax.Array, method: str) -> jax.Array:
        y, h = scan(System(Diagonal(log_a), of.B, of.C, state_shape=(2, 4, 5)), u, method=method)
        return jnp.sum(y**2) + jnp.sum(jnp.abs(h) ** 2)

    exact, found = (jax.grad(loss)(log_a, m) for m in ("sequential", "chunked"))
    assert 0 < jnp.abs(exact).max() < 1e-30
    np.testing.assert_allclose(found, exact, rtol=1e-9, atol=1e-9 * float(jnp.abs(exact).max()))


@pytest.mark.parametrize("kind", [Diagonal, Scalar])
def test_states_after_steps_and_from_states_that_enter(kind: type) -> None:
    """Complex states, and complex values that write those that enter."""
    rng = np.random.default_rng(2)
    shape = (70, 2, 4, 1) if kind is Diagonal else (70, 2)
    log_a = jnp.asarray(-rng.uniform(0, 0.2, shape) + 1j * rng.uniform(-3, 3, shape))
    of, u = system(log_a, kind)
    reset = jnp.zeros(70, bool).at[jnp.array([0, 33])].set(True)
    of = System(of.A, of.B, of.C, state_shape=of.state_shape, reset=reset)
    h0 = jnp.asarray(rng.normal(size=(2, 2, 4, 5)) + 1j * rng.normal(size=(2, 2, 4, 5)))
    steps = jnp.array([0, 32, 33, 69, 12])
    found = [scan(of, u, h0, method=m, return_states=steps) for m in ("chunked", "sequential")]
    for ours, exact in zip(*found, strict=True):
        np.testing.assert_allclose(ours, exact, atol=1e-11)


def test_the_real_recurrence_has_no_complex_number_and_one_decay_per_state() -> None:
    rng = np.random.default_rng(3)
    log_a = jnp.asarray(-rng.uniform(0, 1, (9, 2, 4, 1)) + 1j * rng.uniform(-3, 3, (9, 2, 4, 1)))
    of, u = system(log_a)
    rotated = Rotated.make(prepare(of, u, emit_states=False), jnp.zeros((2, 4, 5), complex))
    assert not any(map(jnp.iscomplexobj, jax.tree.leaves(rotated.problem)))
    shapes = [jax.tree.leaves(each.A)[0].shape for each in (rotated.problem, rotated.by_steps())]
    assert shapes == [(9, 2, 4, 1), (9, 2, 8, 1)]
    assert rotated.problem.b is not None and rotated.problem.b.shape == (9, 1, 2, 8)
    np.testing.assert_array_equal(rotated.problem.b[0], 0)  # what it writes comes a step late
