"""Recurrences that are not linear: their two systems, and Newton's method on the trajectory."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import Dense, Diagonal, linearize, scan, solve
from dsfjax.analysis import eigenvalues, lyapunov_exponents
from dsfjax.engines.nonlinear import loop
from tests.checks import unchecked
from tests.reference_loop import error

LENGTH, D, N = 7, 3, 4


class Case(NamedTuple):
    """A cell with parameters, its initial state, and the cell as NumPy on flattened states."""

    cell: Any
    params: Any
    h0: Any
    diagonal: bool
    numpy: Any


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def gru(params: Any, h: Any, u: Any) -> Any:
    W, R, b = params
    r, z = jnp.split(jax.nn.sigmoid(W[: 2 * N] @ u + R[: 2 * N] @ h + b[: 2 * N]), 2)
    new = jnp.tanh(W[2 * N :] @ u + r * (R[2 * N :] @ h + b[2 * N :]))
    return (1 - z) * new + z * h


def gru_numpy(params: Any, h: np.ndarray, u: np.ndarray) -> np.ndarray:
    W, R, b = map(np.asarray, params)
    r = sigmoid(W[:N] @ u + R[:N] @ h + b[:N])
    z = sigmoid(W[N : 2 * N] @ u + R[N : 2 * N] @ h + b[N : 2 * N])
    new = np.tanh(W[2 * N :] @ u + r * (R[2 * N :] @ h + b[2 * N :]))
    return (1 - z) * new + z * h


def slstm(params: Any, state: Any, u: Any) -> Any:
    """sLSTM (arXiv:2405.04517): a dictionary of c, h, m and n, with exponential gates."""
    W, R, b = params
    z, i, f, o = jnp.split(W @ u + R @ state["h"] + b, 4)
    log_f = jax.nn.log_sigmoid(f)
    m = jnp.maximum(log_f + state["m"], i)
    keep, add = jnp.exp(log_f + state["m"] - m), jnp.exp(i - m)
    c, n = keep * state["c"] + add * jnp.tanh(z), keep * state["n"] + add
    return {"c": c, "h": jax.nn.sigmoid(o) * c / n, "m": m, "n": n}


def slstm_numpy(params: Any, state: np.ndarray, u: np.ndarray) -> np.ndarray:
    W, R, b = map(np.asarray, params)
    c, h, m, n = state.reshape(4, N)
    z, i, f, o = (W @ u + R @ h + b).reshape(4, N)
    keep, add = sigmoid(f) * np.exp(m), np.exp(i)
    total = np.maximum(np.log(keep), i)
    c, n = (keep * c + add * np.tanh(z)) / np.exp(total), (keep * n + add) / np.exp(total)
    return np.concatenate([c, sigmoid(o) * c / n, total, n])


def elementwise(params: Any, h: Any, u: Any) -> Any:
    """IndRNN (arXiv:1803.04831): every entry by itself, with factors of either sign."""
    W, w = params
    return jnp.tanh(W @ u + w * h)


def elementwise_numpy(params: Any, h: np.ndarray, u: np.ndarray) -> np.ndarray:
    W, w = map(np.asarray, params)
    return np.tanh(W @ u + w * h)


def draw(*shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape))


U, RESET = draw(LENGTH, D), jnp.arange(LENGTH) == 4


def gates(number: int) -> Any:
    return draw(number * N, D), 0.5 * draw(number * N, N), draw(number * N)


CASES = {
    "gru": Case(gru, gates(3), draw(N), False, gru_numpy),
    "slstm": Case(
        slstm,
        gates(4),
        {"c": draw(N), "h": draw(N + 1)[1:], "m": jnp.zeros(N), "n": jnp.ones(N)},
        False,
        slstm_numpy,
    ),
    "elementwise": Case(elementwise, (draw(N, D), draw(N)), draw(N), True, elementwise_numpy),
}
every = pytest.mark.parametrize("name", CASES)


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def rows(states: Any) -> np.ndarray:
    return np.concatenate([np.asarray(x).reshape(LENGTH, -1) for x in jax.tree.leaves(states)], 1)


@functools.cache
def walk(name: str, *, reset: bool = False) -> np.ndarray:
    """The states (L, N) by a loop in NumPy."""
    case, found = CASES[name], []
    h = flat(case.h0)
    for t in range(LENGTH):
        h = np.zeros_like(h) if reset and RESET[t] else h
        h = case.numpy(case.params, h, np.asarray(U[t]))
        found.append(h)
    return np.stack(found)


def slopes(case: Case, h: np.ndarray, u: np.ndarray, du: np.ndarray) -> tuple[np.ndarray, ...]:
    """∂f/∂h (N, N) and ∂f/∂u du (N,) of the NumPy cell, by central differences."""

    def along(dh: Any, du: Any) -> np.ndarray:
        ends = (case.numpy(case.params, h + e * dh, u + e * du) for e in (1e-6, -1e-6))
        return np.subtract(*ends) / 2e-6

    return np.stack([along(row, 0) for row in np.eye(len(h))], axis=1), along(0, du)


@every
def test_both_views(name: str) -> None:
    case = CASES[name]
    reset = RESET if name == "elementwise" else None
    h = walk(name, reset=reset is not None)

    @jax.jit
    def views(params: Any, h0: Any, du: Any, dh0: Any) -> Any:
        arguments: Any = (case.cell, params, U, h0)
        affine, path = linearize(*arguments, view="affine", diagonal=case.diagonal, reset=reset)
        change, _ = linearize(*arguments, diagonal=case.diagonal, reset=reset)
        y, last = scan(affine, path.values, path.h0)
        moved, _ = scan(change, du, dh0.reshape(path.h0.shape))
        return path, affine, y, last, moved, lyapunov_exponents(change), eigenvalues(change)

    du, dh0 = draw(LENGTH, D + 2)[:, 2:], draw(h.shape[1] + 2)[2:]
    path, affine, y, last, moved, exponents, lam = views(case.params, case.h0, du, dh0)
    assert error(path.h, h) < 1e-14
    assert error(rows(path.states), h) < 1e-14
    assert jax.tree.structure(path.states) == jax.tree.structure(case.h0)
    assert error(y, h) < 1e-14
    assert error(last.reshape(-1), h[-1]) < 1e-14
    assert isinstance(affine.A, Diagonal if case.diagonal else Dense)

    # Central differences of the NumPy cell, and with them the change of the states step by step.
    before = np.concatenate([flat(case.h0)[None], h[:-1]])
    if reset is not None:
        before[4] = 0
    expected, change = [], np.asarray(dh0)
    product = np.eye(len(dh0))
    for t in range(LENGTH):
        u = np.asarray(U[t])

        A, along = slopes(case, before[t], u, np.asarray(du[t]))
        change = along + A @ (0 * change if reset is not None and t == 4 else change)
        expected.append(change)
        if reset is None and t:
            product = A @ product
            sizes = (np.sort(np.abs(x).ravel()) for x in (lam[t], np.linalg.eigvals(A)))
            assert error(*sizes) < 1e-6
    assert error(moved, np.stack(expected)) < 1e-8
    if name == "gru":  # the A_t of sLSTM are singular: c, n and m can be scaled against each other
        growth = np.linalg.slogdet(product)[1] / (LENGTH - 1)
        assert float(exponents.sum()) == pytest.approx(growth, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "second"),
    [
        ("elementwise", True),
        pytest.param("gru", False, marks=pytest.mark.slow),
        pytest.param("gru", True, marks=pytest.mark.slow),
        pytest.param("slstm", True, marks=pytest.mark.slow),
    ],
)
def test_gradients_are_those_of_the_loop(name: str, second: bool) -> None:
    """Of the affine system, and of the trajectory that Newton's method finds."""
    case = CASES[name]
    # The state of sLSTM that is zero has no h: it is 0 / 0.
    reset = None if name == "slstm" else RESET
    weights = draw(LENGTH, flat(case.h0).size)
    kind = "diagonal" if case.diagonal else "dense"

    def by_loop(params: Any, u: Any, h0: Any) -> Any:
        states = loop(case.cell, params, u, h0, reset=reset)
        parts = [x.reshape(LENGTH, -1) for x in jax.tree.leaves(states)]
        return jnp.sum(weights * jnp.sin(jnp.concatenate(parts, axis=1)))

    def by_system(params: Any, u: Any, h0: Any) -> Any:
        system, path = linearize(
            case.cell, params, u, h0, view="affine", diagonal=case.diagonal, reset=reset
        )
        return jnp.sum(weights * jnp.sin(scan(system, path.values, path.h0)[0]))

    def by_newton(params: Any, u: Any, h0: Any) -> Any:
        found = solve(case.cell, params, u, h0, jacobian=kind, reset=reset)
        return jnp.sum(weights * jnp.sin(found.h))

    def gradients(f: Any) -> Any:
        def bent(u: Any) -> Any:
            return jnp.sum(jax.grad(f, 1)(case.params, u, case.h0) ** 2)

        first = jax.grad(f, (0, 1, 2))(case.params, U, case.h0)
        return (first, jax.grad(bent)(U)) if second else first

    ways = by_loop, by_system, by_newton
    expected, *others = jax.jit(lambda: [gradients(f) for f in ways])()
    for found in others:
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert error(a, b) < 1e-12


@pytest.mark.parametrize(
    "name", ["gru", "elementwise", pytest.param("slstm", marks=pytest.mark.slow)]
)
def test_newton_is_the_loop(name: str) -> None:
    case = CASES[name]
    reset = None if name == "slstm" else RESET
    expected = walk(name, reset=reset is not None)
    # An sLSTM at n = 0 divides by 0: it begins from its initial state.
    guess = jax.tree.map(lambda x: jnp.broadcast_to(x, (LENGTH, *x.shape)), case.h0)
    kinds: Any = ("diagonal",) if case.diagonal else ("dense", "diagonal part")

    @functools.partial(jax.jit, static_argnums=0)
    def run(kind: Any, trust: Any) -> Any:
        arguments: Any = (case.cell, case.params, U, case.h0)
        return solve(*arguments, jacobian=kind, reset=reset, guess=guess, trust=trust)

    for kind in kinds:
        for trust in (1.0, 0.5):
            found = run(kind, trust)
            assert error(found.h, expected) < 1e-12
            assert error(rows(found.states), expected) < 1e-12
            assert found.residual < 1e-12
            assert 1 < found.iterations <= LENGTH
            if kind != "diagonal part" and trust == 1:
                newton = found.iterations
    assert newton <= 6


def test_an_iterate_that_overflows_ends_at_the_trajectory() -> None:
    """At the guess 0 all slopes are 5 and their products leave the range; on the trajectory, 0."""

    def cell(w: Any, h: Any, u: Any) -> Any:
        return jnp.tanh(w * h + u)

    u = 0.01 * draw(500, 1)
    found = jax.jit(lambda: solve(cell, 5.0, u, jnp.zeros(1), jacobian="diagonal"))()
    h, expected = np.zeros(1), []
    for x in np.asarray(u):
        h = np.tanh(5 * h + x)
        expected.append(h)
    assert error(found.h, np.stack(expected)) < 1e-12
    assert found.iterations < 100


@pytest.mark.slow
def test_a_batch_is_its_sequences() -> None:
    case = CASES["gru"]
    u = jnp.stack([U, 3 * U])

    def run(u: Any) -> Any:
        return solve(case.cell, case.params, u, case.h0).h

    together = jax.jit(jax.vmap(run))(u)
    assert error(together[0], walk("gru")) < 1e-12
    assert error(together[1], jax.jit(run)(u[1])) < 1e-13


def test_what_cannot_be_is_refused() -> None:
    case = CASES["gru"]
    arguments: Any = (case.params, U, case.h0)
    with pytest.raises(ValueError, match="linearize: expected the cell to return a state like h0"):
        linearize(lambda p, h, u: (h, h), *arguments)
    with pytest.raises(TypeError, match="solve: expected a state of real .* got int"):
        solve(case.cell, case.params, U, jnp.zeros(N, int))
    with pytest.raises(ValueError, match=r"linearize: expected inputs u of shape \(L, d\)"):
        linearize(case.cell, case.params, U[None], case.h0)
    with pytest.raises(ValueError, match="solve: expected guess to hold 7 states of 4 numbers"):
        solve(case.cell, *arguments, guess=jnp.zeros((LENGTH, N + 1)))
    with unchecked(), pytest.raises(ValueError, match="unknown view 'afine'; did you mean"):
        linearize(case.cell, *arguments, **{"view": "afine"})
    with unchecked(), pytest.raises(ValueError, match="unknown jacobian 'diag'"):
        solve(case.cell, *arguments, **{"jacobian": "diag"})
    with unchecked(), pytest.raises(TypeError, match=r'got int64\. Use view="affine" for token'):
        linearize(case.cell, case.params, U.astype(int), case.h0)
    with pytest.raises(ValueError, match=r"got .*\(7, 4\).* For a batch of sequences use jax.vmap"):
        solve(lambda w, h, u: w * u, 0.5, jnp.ones((2, 7, 4)), jnp.zeros(4))
    with pytest.raises(ValueError, match="solve: expected max_iterations >= 0, got -1"):
        solve(case.cell, *arguments, max_iterations=-1)


def test_small_changes_of_an_iteration_that_is_not_newtons_are_no_end() -> None:
    """With half of A every change is only half of what is left, and of slow cells much less."""

    def slow(w: Any, h: Any, u: Any) -> Any:
        return h + w * jnp.tanh(u - h)

    u = draw(60, 1)
    expected = loop(slow, 0.01, u, jnp.zeros(1))
    found = solve(slow, 0.01, u, jnp.zeros(1), trust=0.5, jacobian="diagonal")
    assert error(found.h, expected) < 1e-11 and found.iterations < 60


def test_small_states_next_to_large_ones_are_found_as_well() -> None:
    def cell(w: Any, h: Any, u: Any) -> Any:
        large = w * h[0] + 1e6 * u[0]
        return jnp.stack([large, u[1] * 1e-6 + h[1] / (1 + 1e6 * jnp.abs(h[1]))])

    u = draw(40, 2)
    found = solve(cell, 0.9, u, jnp.zeros(2)).h
    expected = loop(cell, 0.9, u, jnp.zeros(2))
    assert error(found[:, 0], expected[:, 0]) < 1e-12 and error(found[:, 1], expected[:, 1]) < 1e-12


def test_what_is_not_finite_in_the_loop_is_not_in_the_solution() -> None:
    def cell(w: Any, h: Any, u: Any) -> Any:
        return jnp.tanh(w * h + u)

    u = draw(9, 2).at[4, 1].set(jnp.nan)
    found = solve(cell, 0.5, u, jnp.zeros(2), jacobian="diagonal")
    expected = loop(cell, 0.5, u, jnp.zeros(2))
    np.testing.assert_allclose(found.h, expected, rtol=1e-12)
    assert jnp.isnan(found.residual)


def test_a_diagonal_entry_of_zero_has_the_gradient_of_the_loop() -> None:
    def cell(w: Any, h: Any, u: Any) -> Any:
        return w * h + u

    u, w = draw(6, 3), jnp.array([0.0, 0.5, -0.5])

    def run(w: Any) -> Any:
        system, path = linearize(cell, w, u, jnp.ones(3), view="affine", diagonal=True)
        return scan(system, path.values, path.h0)[0].sum()

    expected = jax.grad(lambda w: loop(cell, w, u, jnp.ones(3)).sum())(w)
    assert error(jax.grad(run)(w), expected) < 1e-12


def test_a_cell_may_close_over_what_is_differentiated() -> None:
    w, u = draw(3, 3), draw(6, 3)

    def total(find: Any) -> Any:
        return lambda w: find(lambda _, h, x: jnp.tanh(w @ h + x), None, u, jnp.zeros(3)).sum()

    found = jax.grad(total(lambda *args: solve(*args).h))(w)
    assert error(found, jax.grad(total(loop))(w)) < 1e-12
