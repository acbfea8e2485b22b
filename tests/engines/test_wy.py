"""The WY form: its inverse, chunks whose blocks have more than two steps, and delta rules."""

import dataclasses
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from dsfjax import DiagonalPlusLowRank, InnerOutput, OuterInput, System, scan
from dsfjax.engines.chunked import Chunked
from dsfjax.engines.chunks.affine import AffineChunks, ChunkMap
from dsfjax.engines.chunks.wy import WYForm, unit_lower_inverse
from dsfjax.engines.recurrence import Recurrence, is_tied
from tests import systems_zoo as zoo
from tests.draw import Draw
from tests.engine_runs import compiled_scan
from tests.reference_loop import error

SIZES = (1, 2, 3, 4, 5, 8, 20, 32)


def strictly_lower(size: int) -> np.ndarray:
    return np.tril(np.random.default_rng(size).normal(size=(2, size, size)), -1) / 2


def test_inverse_and_its_derivative_are_those_of_numpy() -> None:
    T = [strictly_lower(size) for size in SIZES]
    dT = [strictly_lower(size)[::-1] for size in SIZES]

    @jax.jit
    def run(T, dT):
        return [
            jax.jvp(lambda x: unit_lower_inverse(x, "highest"), (x,), (dx,))
            for x, dx in zip(T, dT, strict=True)
        ]

    for x, dx, (value, tangent) in zip(T, dT, run(T, dT), strict=True):
        inverse = np.linalg.inv(np.eye(x.shape[-1]) + x)
        np.testing.assert_allclose(value, inverse, atol=1e-12)
        np.testing.assert_allclose(tangent, -inverse @ dx @ inverse, atol=1e-11)


@pytest.mark.parametrize("length", [3, 65])
def test_chunks_of_a_delta_rule_give_the_values_of_the_loop(length: int) -> None:
    """Rank 1: in structures of rank 2 a block of four rows has two steps, and T² = 0 there."""
    system = zoo.system("low_rank_delta", length)
    u, h0 = zoo.tokens(system, length), zoo.state(system)
    by_step, by_chunk = (
        compiled_scan(system, jnp.asarray(u), h0, method=method)
        for method in ("sequential", "chunked")
    )
    for found, expected in zip(by_chunk, by_step, strict=True):
        assert error(found, expected) < 1e-12


# Delta rules, whose W is what they write. The layout of keys lets the engine see it.
def decays(kind: str, g: Draw) -> dict[str, Array]:
    """One decay per head, or one of either sign per state."""
    if kind == "per head":
        return {"log_a": g.log_decay(g.length, zoo.H, 1)}
    sign = jnp.where(g.uniform(0, 1, g.length, zoo.H, zoo.N) < 0.3, -1, 1)
    return {"log_a": g.log_decay(g.length, zoo.H, zoo.N), "sign": sign}


def signals(kind: str, length: int) -> tuple[dict[str, Array], dict[str, Array]]:
    """Keys that heads share, queries, β, values; and the decays."""
    g = Draw("tied", length, 0)
    arrays = {
        "k": g.normal(length, 1, zoo.N) / 2,
        "z": g.normal(length, zoo.H, zoo.N) / 2,
        "q": g.normal(length, zoo.H, zoo.N),
        "beta": g.uniform(0, 1, length, zoo.H, 1),
        "u": g.normal(length, zoo.H * zoo.P),
        "h0": g.normal(4, *zoo.SHAPE),
    }
    return arrays, decays(kind, g) | {"reset": jnp.arange(length) % 30 == 7}


def assembled(arrays: dict[str, Array], rest: dict[str, Array], *, tied: bool) -> System:
    k = arrays["k"]
    w = k if tied else jnp.array(k, copy=True)
    A = DiagonalPlusLowRank(rest["log_a"], w, arrays["z"], rest.get("sign"), arrays["beta"])
    B, C = OuterInput(k, arrays["beta"]), InnerOutput(arrays["q"])
    return System(A, B, C, reset=rest["reset"], state_shape=zoo.SHAPE)


@pytest.mark.parametrize(
    ("kind", "length"),
    [
        ("per state", 70),
        pytest.param("per state", 2, marks=pytest.mark.slow),
        pytest.param("per head", 70, marks=pytest.mark.slow),
        pytest.param("per head", 2, marks=pytest.mark.slow),
    ],
)
def test_writes_along_w_have_values_and_gradients_of_those_with_a_b(kind: str, length: int) -> None:
    """One state and one per segment, states at steps, both directions of time."""
    arrays, rest = signals(kind, length)
    steps = jnp.array([0, length - 1])

    def run(arrays: dict[str, Array], tied: bool, method: str) -> list[Array]:
        system, h0 = assembled(arrays, rest, tied=tied), arrays["h0"]
        run = partial(scan, system, arrays["u"], method=method)
        found = [run(h0[0]), run(h0, return_states=steps), run(h0[0], reverse=True)]
        return jax.tree.leaves(found)

    def both(tied: bool, method: str):
        def loss(arrays):
            outs = run(arrays, tied, method)
            return sum(jnp.sin(x).sum() for x in outs), outs

        return jax.jit(jax.grad(loss, has_aux=True))(arrays)

    expected, found = both(False, "sequential"), both(True, "chunked")
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-11)


def test_writes_along_w_are_seen_and_take_fewer_operations() -> None:
    arrays, rest = signals("per head", 64)

    def products(tied: bool, h0: Array) -> int:
        def run(arrays):
            return scan(assembled(arrays, rest, tied=tied), arrays["u"], h0, method="chunked")[0]

        text = str(jax.make_jaxpr(jax.grad(lambda arrays: run(arrays).sum()))(arrays))
        return text.count("dot_general")

    for tied in (True, False):
        system = assembled(arrays, rest, tied=tied)
        assert is_tied(system, system) == tied
    for h0 in (arrays["h0"][0], arrays["h0"]):  # and with a state per segment
        assert products(True, h0) < products(False, h0)


def test_w_and_b_keep_gradients_of_their_own_where_they_are_arguments() -> None:
    """Beyond `jax.grad` they are two arrays, though they hold the same numbers."""
    arrays, rest = signals("per head", 40)
    system = assembled(arrays, rest, tied=True)

    def gradients(method: str) -> Any:
        loss = lambda s: scan(s, arrays["u"], method=method)[0].sum()  # noqa: E731
        return jax.grad(loss, allow_int=True)(system)

    found, expected = gradients("chunked"), gradients("sequential")
    for x, y in ((found.A.w, expected.A.w), (found.B.b, expected.B.b)):
        assert jnp.abs(y).max() > 0.1
        np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-11)


def test_one_array_with_the_axes_of_w_and_others_as_b_is_none_of_both() -> None:
    """At rank 2, of two groups and two states, it fits both fields and means something else."""
    g = Draw("square", 9, 0)
    w = 0.3 * g.normal(9, 2, 2, 2)
    A = DiagonalPlusLowRank(-g.positive(9, 2, 2), w, 0.3 * g.normal(9, 2, 2, 2))
    C = InnerOutput(g.normal(9, 2, 2))
    system, u = System(A, OuterInput(w, rank=2), C, state_shape=(2, 2, 3)), g.normal(9, 12)
    by_chunk, by_step = (scan(system, u, method=x)[0] for x in ("chunked", "sequential"))
    np.testing.assert_allclose(by_chunk, by_step, rtol=1e-12, atol=1e-12)


def test_an_algorithm_of_ones_own_gets_delta_rules_with_a_b() -> None:
    @dataclasses.dataclass(frozen=True)
    class Own(WYForm):
        takes_tied: ClassVar[bool] = False

        def chunk_map(self, problem: Recurrence, heads: int) -> ChunkMap:
            assert problem.b is not None and not problem.tied
            return super().chunk_map(problem, heads)

    arrays, rest = signals("per head", 20)
    system = assembled(arrays, rest, tied=True)
    own = scan(system, arrays["u"], method=Chunked(Own()))[0]
    np.testing.assert_allclose(own, scan(system, arrays["u"])[0], rtol=1e-12, atol=1e-12)


def test_a_scale_in_bfloat16_is_rescaled() -> None:
    arrays, rest = signals("per head", 5)
    A = assembled(arrays, rest, tied=True).A
    low = jax.tree.map(lambda x: x.astype("bfloat16"), A)
    log_r = jnp.full((5, zoo.H), 0.5, "float32")
    found = low.rescale(log_r).matrix()
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, np.exp(0.5) * A.matrix(), rtol=0.02, atol=0.02)


def test_a_gradient_traces_the_chunks_of_the_forward_pass_once(monkeypatch) -> None:
    """JAX finds the trace for the values when it comes to that for the gradient."""
    arrays, rest = signals("per head", 91)  # a length of its own: nothing of it is in a cache
    traced, forward = [], AffineChunks.forward
    monkeypatch.setattr(
        AffineChunks, "forward", lambda *args: traced.append(args[0]) or forward(*args)
    )

    def loss(arrays: dict[str, Array]) -> Array:
        return scan(assembled(arrays, rest, tied=True), arrays["u"], method="chunked")[0].sum()

    jax.jit(jax.grad(loss)).trace(arrays)
    assert len(traced) == 1
