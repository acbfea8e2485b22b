"""States after chosen steps, and an initial state for every segment, against the NumPy loop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import (
    DiagonalPlusLowRank,
    InnerOutput,
    OuterInput,
    Scalar,
    System,
    scan,
    slice_time,
)
from dsfjax.engines import Checkpointed, Chunked
from tests import reference_loop as reference
from tests import systems_zoo as zoo
from tests.engine_runs import compiled, inputs, methods
from tests.reference_loop import error

L = 20
STEPS = (11, 0, 4, 19, 4, 5)
NAMES = (
    "scalar_summed",
    "low_rank_ranked",
    "diagonal_full",
    "scalar_constant",
    "scalar_ranked",
    "diagonal_per_state",
    "diagonal_gated",
    "complex_pairs",
    "low_rank",
    "dense_shared",
    "dense_maps",
)
CASES = zoo.slow_unless(NAMES[:1], NAMES)
# Chunks so short that the steps above lie at their ends, starts and middles.
SHORT = {"chunked": Chunked(chunk=3, segment=6), "checkpointed": Checkpointed(chunk=4)}


def engines(system, states):
    return {name: SHORT.get(name, name) for name in methods(system, states=states)}


def weighted(tree) -> jax.Array:
    """A real number in which every entry has a weight of its own."""
    total = jnp.zeros(())
    for x in jax.tree.leaves(tree):
        weights = jnp.cos(jnp.arange(x.size, dtype=float)).reshape(x.shape)
        total = total + jnp.sum(weights * (x.real + 2 * x.imag if jnp.iscomplexobj(x) else x))
    return total


def with_gradients(run, *arguments):
    return run(*arguments), jax.grad(lambda a: weighted(run(*a)))(arguments)


def at_steps(system, u, h0):
    steps, found = np.array(STEPS), {}
    for name, engine in engines(system, "some").items():
        found[name] = with_gradients(
            lambda u, h0, m=engine: scan(system, u, h0, method=m, return_states=steps), u, h0
        ) + (scan(system, u, h0, method=engine, return_states=steps, reverse=True),)

    def taken(u, h0):
        y, h, states = scan(system, u, h0, method="sequential", return_states=True)
        return y, h, states[steps]

    return found, with_gradients(taken, u, h0)[1]


@pytest.mark.parametrize("name", CASES)
def test_states_after_chosen_steps(name):
    system, u, h0 = inputs(name, L)
    found, gradients = compiled(at_steps)(system, u, h0)
    assert "checkpointed" in found
    assert "chunked" in found or not (system.A.is_diagonal or "low" in name)
    for method, (forwards, gradient, backwards) in found.items():
        for got, expected in (
            (forwards, reference.run(system, u, h0)),
            (backwards, reference.run(system, u, h0, reverse=True)),
        ):
            assert error(got[0], expected.y) < 1e-12, method
            assert error(got[1], expected.h_last) < 1e-12, method
            assert error(got[2], expected.states[list(STEPS)]) < 1e-12, method
        for got, wanted in zip(gradient, gradients, strict=True):
            assert error(got, wanted) < 1e-10, method


def per_segment(system, u, rows):
    """Every method; and what the segments give one by one."""
    found = {}
    for name, engine in engines(system, False).items():
        found[name] = with_gradients(
            lambda u, rows, m=engine: scan(system, u, rows, method=m), u, rows
        ) + (scan(system, u, rows, method=engine, reverse=True),)
    steps = np.array(STEPS)
    kept = scan(system, u, rows, method=SHORT["checkpointed"], return_states=steps)[2]
    half, h = scan(slice_time(system, 0, 8), u[:8], rows)
    number = jnp.sum(system.reset[1:8])
    rest = jnp.roll(rows, -number, axis=0).at[0].set(h)
    rest = jnp.where(system.reset[8], jnp.roll(rows, -number - 1, axis=0), rest)
    split = scan(slice_time(system, 8, L), u[8:], rest)
    return found, kept, (jnp.concatenate([half, split[0]]), split[1])


def one_by_one(system, u, rows, cuts):
    ys, h = [], None
    for i, (a, b) in enumerate(zip(cuts[:-1], cuts[1:], strict=True)):
        part = slice_time(system, a, b)
        y, h = scan(dataclasses.replace(part, reset=None), u[a:b], rows[i], method="sequential")
        ys.append(y)
    return jnp.concatenate(ys), h


@pytest.mark.parametrize("name", CASES)
def test_an_initial_state_for_every_segment(name):
    system, u, h0 = inputs(name, L)
    marks = (
        np.isin(np.arange(L), (0, 5, 6, 13))
        if name == "low_rank"
        else np.isin(np.arange(L), (5, 6, 13))
    )
    system = dataclasses.replace(system, reset=jnp.asarray(marks))
    cuts = [0, 5, 6, 13, L]
    rng = np.random.default_rng(4)
    rows = np.stack([np.asarray(h0) * rng.uniform(0.5, 2, size=h0.shape) for _ in range(5)])
    found, kept, split = compiled(per_segment)(system, u, jnp.asarray(rows))
    if name in NAMES[:3]:
        plain = compiled(
            lambda s, u, rows: with_gradients(lambda u, rows: one_by_one(s, u, rows, cuts), u, rows)
        )(system, u, jnp.asarray(rows))[1]
    else:
        plain = found["sequential"][1]
    expected = reference.run(system, u, rows), reference.run(system, u, rows, reverse=True)
    for method, (forwards, gradient, backwards) in found.items():
        for got, wanted in zip((forwards, backwards), expected, strict=True):
            assert error(got[0], wanted.y) < 1e-12, method
            assert error(got[1], wanted.h_last) < 1e-12, method
        for got, wanted in zip(gradient, plain, strict=True):
            assert error(got, wanted) < 1e-10, method
        assert not np.any(gradient[1][4])  # a row without a segment
    assert error(kept, expected[0].states[list(STEPS)]) < 1e-12
    assert error(split[0], expected[0].y) < 1e-12 and error(split[1], expected[0].h_last) < 1e-12


def test_a_batch_with_steps_and_segments_of_its_own():
    system, u, h0 = inputs("scalar_summed", L)
    resets = np.stack([np.isin(np.arange(L), x) for x in ((5, 9), (3,))])
    ends = np.array([[4, 8, 19], [2, 19, 19]])
    rows = jnp.stack([h0, 2 * h0, 3 * h0])

    def one(reset, steps):
        return scan(
            dataclasses.replace(system, reset=reset), u, rows, return_states=steps, method="chunked"
        )

    _, _, states = compiled(jax.vmap(one))(jnp.asarray(resets), jnp.asarray(ends))
    for i in range(2):
        alone = dataclasses.replace(system, reset=jnp.asarray(resets[i]))
        assert error(states[i], reference.run(alone, u, rows).states[ends[i]]) < 1e-12


def test_misuse_says_what_was_expected():
    system, u, h0 = inputs("scalar", L)
    segments = 1 + int(np.sum(np.asarray(system.reset)[1:]))
    with pytest.raises(ValueError, match=rf"for each of the {segments} segments .* got 1"):
        scan(system, u, h0[None])
    with pytest.raises(ValueError, match=r"steps \(K,\) from 0 to 19, got \[3, 20\]"):
        scan(system, u, h0, return_states=[3, 20])
    with pytest.raises(TypeError, match="return_states of integers, got dtype float64"):
        scan(system, u, h0, return_states=jnp.ones(3))


@pytest.mark.parametrize("method", ["chunked", "checkpointed"])
def test_chosen_states_do_not_hold_all(method):
    """The compiled gradient: sixteen states of 64 × 64 out of 2,048."""
    length, n = 2048, 64
    rng = np.random.default_rng(0)
    b, c = (jnp.asarray(rng.normal(size=(length, 1, n)), jnp.float32) for _ in range(2))
    A = Scalar(jnp.full((length, 1), -0.1, jnp.float32))
    steps = np.arange(127, length, 128)

    def loss(u, b):
        system = System(A, OuterInput(b), InnerOutput(c), state_shape=(1, n, n))
        y, _, states = scan(system, u, method=method, return_states=steps)
        return jnp.sum(y**2) + jnp.sum(states**2)

    u = jnp.ones((length, n), jnp.float32)
    memory = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(u, b).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < length * n * n * 4 / 4


@pytest.mark.slow
def test_initial_states_of_segments_do_not_hold_all():
    """The compiled gradient: four documents and states of 64 × 64, where 512 steps have as many."""
    length, n, documents = 512, 64, 4
    rng = np.random.default_rng(0)
    b, c, w = (jnp.asarray(rng.normal(size=(length, 1, n)), jnp.float32) for _ in range(3))
    w = w[..., None] / jnp.linalg.norm(w[..., None], axis=2, keepdims=True)
    A = DiagonalPlusLowRank(jnp.full((length, 1, 1), -0.1, jnp.float32), w, w)
    reset = jnp.arange(length) % (length // documents) == 0

    def loss(u, b, rows):
        system = System(A, OuterInput(b), InnerOutput(c), reset=reset, state_shape=(1, n, n))
        return jnp.sum(scan(system, u, rows, method="chunked")[0] ** 2)

    u, rows = jnp.ones((length, n), jnp.float32), jnp.ones((documents, 1, n, n), jnp.float32)
    run = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(u, b, rows).compile()
    memory = run.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < length * n * n * 4 / 2


def test_no_steps_have_no_states():
    A = Scalar(jnp.log(jnp.full((4, 1), 0.5)))
    system = System(A, OuterInput(), InnerOutput(), state_shape=(1, 1, 1))
    for method in methods(system, states="some"):
        y, h, states = scan(system, jnp.ones((4, 1)), method=method, return_states=np.zeros(0, int))
        assert states.shape == (0, 1, 1, 1) and (y[-1, 0], h[0, 0, 0]) == (1.875, 1.875), method
