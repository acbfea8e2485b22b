"""LSTM, GRU, sLSTM: the published equations, the derivative in its own form, gradients."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import linearize, scan, solve, systems
from dsfjax.engines.nonlinear import loop
from dsfjax.systems import gru, lstm, slstm
from dsfjax.systems.gated_cell import cell_of
from tests.reference_loop import error
from tests.systems.small import D_MODEL, as_numpy, case, cast, tokens

LENGTH, RESET = 7, jnp.arange(7) == 4
PARTS = {"lstm": 2, "gru": 1, "slstm": 4}
CELLS: dict[str, Any] = {"lstm": lstm.cell, "gru": gru.cell, "slstm": slstm.cell}
every = pytest.mark.parametrize(
    "name", [*("lstm", "slstm"), pytest.param("gru", marks=pytest.mark.slow)]
)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def by_hand(name: str, params: Any, u: np.ndarray, s: np.ndarray) -> np.ndarray:
    """The states (L, k, d) of the published equations."""
    p, found = as_numpy(params), []
    for t in range(LENGTH):
        s = 0 * s if RESET[t] else s
        if name == "lstm":
            h, c = s
            i, f, g, o = (p.W_u[k] @ u[t] + p.W_h[k] @ h + p.bias[k] for k in range(4))
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            s = np.stack([sigmoid(o) * np.tanh(c), c])
        elif name == "slstm":
            s = slstm_by_hand(p, u[t], s)
        else:
            (h,) = s
            r, z = (sigmoid(p.W_u[k] @ u[t] + p.W_h[k] @ h + p.bias[k]) for k in range(2))
            new = np.tanh(p.W_u[2] @ u[t] + p.bias[2] + r * (p.W_h[2] @ h + p.bias_n))
            s = ((1 - z) * new + z * h)[None]
        found.append(s)
    return np.stack(found)


def slstm_by_hand(p: Any, u: np.ndarray, s: np.ndarray, exponential: bool = False) -> np.ndarray:
    """One step in plain coordinates, C = c e^m and N = n e^m, and back."""
    h, c, n, m = s
    heads = h.reshape(p.W_h.shape[1], -1)
    i, f, z, o = (
        p.W_u[k] @ u + np.concatenate([R @ x for R, x in zip(p.W_h[k], heads, strict=True)]) + b
        for k, b in enumerate(p.bias)
    )
    forget = np.exp(f) if exponential else sigmoid(f)
    C = forget * c * np.exp(m) + np.exp(i) * np.tanh(z)
    N = forget * n * np.exp(m) + np.exp(i)
    m = np.where(n == 0, i, np.maximum(np.log(forget) + m, i))
    return np.stack([sigmoid(o) * C / N, C / np.exp(m), N / np.exp(m), m])


@functools.cache
def results(name: str) -> Any:
    """Outputs, states, A and its actions, and gradients of system and loop, by one program."""
    arch, params, _ = case(name)
    s0 = jnp.asarray(np.random.default_rng(1).standard_normal((PARTS[name], D_MODEL)))
    if name == "slstm":
        s0 = s0.at[2].set(jnp.abs(s0[2]))  # n, a sum of exponentials
    weights = jnp.asarray(np.random.default_rng(2).standard_normal((LENGTH, D_MODEL)))
    direction = jnp.asarray(np.random.default_rng(3).standard_normal((LENGTH, 1, s0.size, 2)))

    def by_system(params: Any, u: Any, s0: Any) -> Any:
        h0 = s0.reshape(1, -1, 1)
        given: Any = arch.system_and_tokens(params, u, reset=RESET, continued=True, h=h0)
        system, v = given
        y, h_last, *rest = scan(system, v, h0, return_states=True)
        (states,) = rest
        return jnp.sum(weights * jnp.sin(y)), (y, h_last, states, system.A)

    def by_search(params: Any, u: Any, s0: Any) -> Any:
        read = arch.read(params, u, reset=RESET, continued=True, h=s0.reshape(1, -1, 1))
        assert arch.solved is not None
        y, h_last = arch.solved(read)
        return jnp.sum(weights * jnp.sin(y)), (y, h_last)

    def by_loop(params: Any, u: Any, s0: Any) -> Any:
        def advance(s: Any, now: Any) -> Any:
            s = CELLS[name](params, jnp.where(now[1], 0, s), now[0])
            return s, s[0]

        return jnp.sum(weights * jnp.sin(jax.lax.scan(advance, s0, (u, RESET))[1]))

    @jax.jit
    def run(*point: Any) -> Any:
        found, slopes = jax.grad(by_system, (0, 1, 2), has_aux=True)(*point)[::-1]
        solved, others = jax.grad(by_search, (0, 1, 2), has_aux=True)(*point)[::-1]
        expected = jax.grad(by_loop, (0, 1, 2))(*point)
        A = found[-1]
        general, _ = linearize(CELLS[name], *point, reset=RESET)
        actions = A.apply(direction), A.rescale(jnp.full((LENGTH, 1), 0.7)).apply(direction)
        slopes = slopes, others
        return found, slopes, expected, A.matrix(), actions, general.A.matrix(), solved

    return run(params, tokens(LENGTH), s0), (params, np.asarray(tokens(LENGTH)), s0), direction


@every
def test_states_are_those_of_the_published_equations(name: str) -> None:
    ((y, h_last, states, _), *_), (params, u, s0), _ = results(name)
    expected = by_hand(name, params, u, np.asarray(s0))
    assert error(y, expected[:, 0]) < 1e-14
    assert error(states.reshape(expected.shape), expected) < 1e-14
    assert error(h_last.reshape(expected[-1].shape), expected[-1]) < 1e-14


@every
def test_transition_is_the_derivative_in_its_own_form(name: str) -> None:
    (_, _, _, matrix, (moved, rescaled), general, _), _, direction = results(name)
    assert error(matrix, general) < 1e-14
    assert error(moved, np.asarray(matrix) @ np.asarray(direction)) < 1e-14
    assert error(rescaled, np.exp(0.7) * np.asarray(moved)) < 1e-14


@every
def test_gradients_are_those_of_the_loop(name: str) -> None:
    (_, slopes, expected, *_), _, _ = results(name)
    for found in slopes:
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert error(a, b) < 1e-12


@every
def test_what_the_search_has_found_is_what_a_scan_finds(name: str) -> None:
    ((y, h_last, *_), *_, solved), _, _ = results(name)
    assert error(solved[0], y) < 1e-14
    assert error(solved[1], h_last) < 1e-14 and solved[1].shape == h_last.shape


@pytest.mark.parametrize("forget", ["sigmoid", pytest.param("exponential", marks=pytest.mark.slow)])
def test_newton_finds_the_states_of_an_slstm_from_nothing(forget: Any) -> None:
    """From the zero state and the guess 0, where its normaliser is 0."""
    params, u = case("slstm").params, tokens(LENGTH)
    cell, zero = cell_of(slstm.update(forget)), jnp.zeros((4, D_MODEL))

    @jax.jit
    def run(params: Any, u: Any) -> Any:
        found = solve(cell, params, u, zero, reset=RESET)
        return found, loop(cell, params, u, zero, reset=RESET)

    found, states = run(params, u)
    p, s, expected = as_numpy(params), np.asarray(zero), []
    for t in range(LENGTH):
        s = slstm_by_hand(p, np.asarray(u[t]), 0 * s if RESET[t] else s, forget == "exponential")
        expected.append(s)
    assert error(states, np.stack(expected)) < 1e-14
    assert error(found.states, np.stack(expected)) < 1e-12
    assert 1 < found.iterations <= LENGTH


def test_exponential_gates_of_an_slstm_do_not_overflow() -> None:
    """In float32, in which e^200 has no number; its outputs are bounded by 1."""
    arch, params, _ = case("slstm")
    params = cast(params._replace(bias=params.bias.at[0].add(200).at[0, 0].add(-400)), "float32")

    def loss(params: Any, u: Any) -> Any:
        given: Any = arch.system_and_tokens(params, u, reset=RESET)
        y = scan(*given)[0]
        return y.sum(), y

    slope = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, y), slopes = slope(params, cast(40 * tokens(LENGTH), "float32"))
    assert float(jnp.abs(y).max()) < 1 + 1e-5
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))


def test_state_and_system_that_are_not_there_are_asked_for() -> None:
    arch, params, _ = case("lstm")
    with pytest.raises(ValueError, match="read: expected the state h .* pass the state that scan"):
        arch.read(params, tokens(3), continued=True)
    with pytest.raises(ValueError, match=r"linear in the token.* Use system_and_tokens"):
        arch.system(params, tokens(3))
    assert float(systems.get("lstm", d_model=2).init(jax.random.key(0)).bias[1].min()) == 1
