r"""Recurrences that are not linear, h_t = f(h_{t-1}, u_t), as a `System` along their trajectory.

At a trajectory h the derivatives of the cell f are matrices of every step,

.. math:: A_t = \frac{∂f}{∂h}(h_{t-1}, u_t), \qquad B_t = \frac{∂f}{∂u}(h_{t-1}, u_t),

and give two systems. The *variational* one, δh_t = A_t δh_{t-1} + B_t δu_t, says how a change
travels: eigenvalues, Lyapunov exponents, horizons and gradients through time are its own. The
*affine* one,

.. math:: h_t = A_t h_{t-1} + v_t, \qquad v_t = f(h_{t-1}, u_t) - A_t h_{t-1},

gives the trajectory itself (`linearize`). Taken at a guess instead of at the trajectory, running it
is one step of Newton's method for all h_t at once, and every step is a `scan` (`solve`).

A step that was right stays right, and the first step that is wrong is right after the next
iteration, since all before it are: but for rounding, L iterations reach the trajectory from any
guess, and near it a few do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree
from jaxtyping import Bool

from dsfjax._util.jitted import jitted
from dsfjax._util.names import choose
from dsfjax.core.diagonal import Diagonal
from dsfjax.core.maps import DenseInput, InnerOutput, InputMap, OuterInput
from dsfjax.core.pytree import pytree
from dsfjax.core.system import System
from dsfjax.core.transitions import Dense
from dsfjax.engines.associative import Affine, compose
from dsfjax.engines.engine import Engine
from dsfjax.engines.recurrence import write
from dsfjax.engines.scan import scan

Cell = Callable[[Any, Any, Array], Any]
"""``cell(params, h, u_t) -> h`` for one step; h is an array (n,) or a pytree of arrays."""

View = Literal["variational", "affine"]
Jacobian = Literal["dense", "diagonal", "diagonal part"]


class Trajectory(NamedTuple):
    """What a cell does on one sequence.

    Attributes:
        states: h_t after every step, in the cell's own structure, each array with L in front.
        h: The same flattened, (L, N), in the order of `jax.flatten_util.ravel_pytree`.
        h0: The state before the first step, of the shape (H, n, p) that `scan` takes.
        values: v_t = h_t − A_t h_{t−1}, (L, N): the tokens of the affine system.
    """

    states: Any
    h: Array
    h0: Array
    values: Array


class Solution(NamedTuple):
    """What `solve` has found.

    Attributes:
        states: h_t after every step, in the cell's own structure, each array with L in front.
        h: The same flattened, (L, N).
        iterations: Number of iterations, ().
        residual: The largest |h_t − f(h_{t−1}, u_t)| over all steps and entries, (): how far the
            result is from a trajectory.
    """

    states: Any
    h: Array
    iterations: Array
    residual: Array


@pytree
class EntryInput(InputMap):
    """B_t = I: the token is what every entry of the flattened state (H, n, p) gets added."""

    def token_width(self, state_shape: tuple[int, int, int]) -> int:
        """N = H·n·p."""
        heads, n, p = state_shape
        return heads * n * p

    def matrix(self, state_shape: tuple[int, int, int]) -> Array:
        """The identity, (1, N, N)."""
        return jnp.eye(self.token_width(state_shape))[None]


@write.register
def _(B: EntryInput, system: System, u: Array, dtype: Any, precision: str) -> Any:
    # The tokens are the forcing: no product with an identity.
    empty = jnp.zeros((u.shape[0], 1, system.num_heads, 0), jnp.finfo(dtype).dtype)
    return None, empty, u.astype(dtype).reshape(u.shape[0], *system.state_shape)


def loop(
    cell: Cell,
    params: Any,
    u: Array,
    h0: Any,
    *,
    reset: Bool[Array, " L"] | None = None,
) -> Any:
    """The states of a cell step by step, the definition.

    Args:
        cell: ``cell(params, h, u_t) -> h``.
        params: Passed on to the cell.
        u: Inputs of one sequence, (L, …).
        h0: State before the first step.
        reset: Boolean (L,) or None. Before a step where it is true the state is zero.

    Returns:
        The states after every step, in the structure of ``h0``, each array with L in front.

    Example:
        >>> loop(lambda a, h, u: a * h + u, 0.5, jnp.ones((3, 1)), jnp.zeros(1)).tolist()
        [[1.0], [1.5], [1.75]]
    """
    reset = jnp.zeros(u.shape[0], bool) if reset is None else reset

    def advance(h: Any, now: tuple[Array, Array]) -> tuple[Any, Any]:
        u_t, starts = now
        h = jax.tree.map(lambda x: jnp.where(starts, jnp.zeros_like(x), x), h)
        h = cell(params, h, u_t)
        return h, h

    return jax.lax.scan(advance, h0, (u, reset))[1]


@jitted("view", "diagonal", functions=("cell",))
def linearize(
    cell: Cell,
    params: Any,
    u: Array,
    h0: Any,
    *,
    view: View = "variational",
    diagonal: bool = False,
    reset: Bool[Array, " L"] | None = None,
    states: Any = None,
) -> tuple[System, Trajectory]:
    r"""A cell as a `System` along its trajectory.

    .. math:: A_t = ∂h_t / ∂h_{t-1}, \qquad B_t = ∂h_t / ∂u_t, \qquad v_t = h_t - A_t h_{t-1}.

    Args:
        cell: ``cell(params, h, u_t) -> h``, one step of one sequence. Another function is another
            program: arrays that change belong into ``params``.
        params: A pytree, passed on to the cell.
        u: Inputs of one sequence, (L, d); for the affine view (L, …).
        h0: State before the first step, an array (n,) or a pytree of arrays, which are real.
        view: "variational", the system from changes δu (L, d) of the inputs to changes δh (L, N) of
            the states; or "affine", the system from ``trajectory.values`` to the states.
        diagonal: Whether every entry of the state goes by itself, so that A_t is diagonal. You say
            so; it is not tried. For a cell that is not, the result is wrong.
        reset: Boolean (L,) or None. Before a step where it is true the state is zero.
        states: The states after every step, if they are known (as by `solve`); by default a loop
            over the steps finds them.

    Returns:
        ``(system, trajectory)``. The outputs of the system are the flattened states, (L, N). Its A
        is `Dense` with state shape (1, N, 1), or `Diagonal` with (1, 1, N). So

        * ``scan(system, trajectory.values, trajectory.h0)[0]`` is ``trajectory.h`` (affine), and
        * ``scan(system, du, dh0)[0]`` the directional derivative of it (variational).

    Raises:
        ValueError: If the cell returns another structure or shapes than ``h0`` has; for the
            variational view if ``u`` is not (L, d).
        TypeError: If the state is not real; for the variational view if ``u`` is not.

    Numerics:
        O(L N²) memory for a dense A, N derivatives of the cell per step; O(L N) and one derivative
        where A is diagonal. Differentiable to any order, through states and A alike; only that of a
        diagonal entry which is exactly 0 is cut in the variational system, whose decays are
        logarithms. A run of the affine system repeats the rounding of every step: where the largest
        of its `dsfjax.analysis.lyapunov_exponents` is positive the difference grows as
        e^{exponent · L}.

    References:
        Engelken, Wolf, Abbott (2023), arXiv:2006.02427 (Lyapunov spectra of recurrent networks).

    Example:
        >>> import dsfjax
        >>> cell = lambda w, h, u: jnp.tanh(w @ h + u)
        >>> w, u = jnp.array([[0.0, 0.5], [-0.5, 0.0]]), jnp.ones((4, 2))
        >>> system, path = linearize(cell, w, u, jnp.zeros(2), view="affine")
        >>> y, _ = dsfjax.scan(system, path.values, path.h0)
        >>> bool(jnp.abs(y - path.h).max() < 1e-6)
        True
    """
    choose("view", view, ("variational", "affine"))
    if view == "variational" and u.ndim != 2:
        raise ValueError(
            f"linearize: expected inputs u of shape (L, d), one sequence, got {u.shape}. For a "
            "batch use jax.vmap."
        )
    if view == "variational" and not jnp.issubdtype(u.dtype, jnp.floating):
        raise TypeError(
            f"linearize: expected real inputs u, whose changes the variational system reads, got "
            f'{u.dtype}. Use view="affine" for token ids.'
        )
    start, flat, _ = _flat("linearize", cell, params, h0, u)
    states = loop(cell, params, u, h0, reset=reset) if states is None else states
    h = jax.vmap(lambda x: ravel_pytree(x)[0])(states)
    before = _before(h, start, reset)
    kind: Jacobian = "diagonal" if diagonal else "dense"
    a = _jacobian(flat, kind, params, before, u)
    # What `_system` does not differentiate is not to be differentiated here: of A_t h_{t−1}, which
    # is added to the values again, nothing is left then.
    held = jnp.where(a == 0, 0, a) if diagonal else a
    values = h - _apply(held, before)
    if view == "affine":
        B: InputMap = OuterInput() if diagonal else EntryInput()
    else:
        B = DenseInput(jax.vmap(jax.jacfwd(flat, 2), (None, 0, 0))(params, before, u))
    system = _system(a, B, reset)
    return system, Trajectory(states, h, start.reshape(system.state_shape), values)


@jitted("jacobian", "method", "max_iterations", functions=("cell",))
def solve(
    cell: Cell,
    params: Any,
    u: Array,
    h0: Any,
    *,
    jacobian: Jacobian = "dense",
    reset: Bool[Array, " L"] | None = None,
    guess: Any = None,
    trust: Array | float = 1.0,
    tolerance: Array | float | None = None,
    max_iterations: int | None = None,
    method: Engine | str = "associative",
) -> Solution:
    r"""The trajectory of a cell by Newton's method on all steps at once, each iteration a `scan`.

    .. math:: h^{k+1}_t = f(h^k_{t-1}, u_t) + κ A_t (h^{k+1}_{t-1} - h^k_{t-1}), \qquad
       A_t = \frac{∂f}{∂h}(h^k_{t-1}, u_t) .

    Args:
        cell: ``cell(params, h, u_t) -> h``, as of `linearize`.
        params: A pytree, passed on to the cell.
        u: Inputs of one sequence, (L, …).
        h0: State before the first step, an array (n,) or a pytree of arrays.
        jacobian: "dense"; "diagonal" where A_t is diagonal (you say so); or "diagonal part", which
            iterates with the diagonal of a dense A_t: cheaper iterations, and more of them.
        reset: Boolean (L,) or None. Before a step where it is true the state is zero.
        guess: States after every step to begin from, in the structure that the result has; by
            default zero.
        trust: κ in [0, 1], how far the linear system is trusted. Below 1 the iteration is stable
            where that of Newton overflows for a while, and converges more slowly near the solution.
        tolerance: The iteration ends when no entry is further from the solution than this times the
            largest that the entry is at any step. How far that is, the last changes tell: where
            the method is Newton's, whose errors square, the change itself, by default √ε of the
            dtype; otherwise δ ρ / (1 − ρ) of a change δ that is ρ times the one before, by default
            100 ε.
        max_iterations: At most so many; by default L, which are enough but for rounding.
        method: Engine that runs the iterations, as of `scan`. Only one that works on all steps at
            once is a gain over the loop.

    Returns:
        A `Solution`: states, iterations and residual. See the residual before you trust an
        iteration that ended at ``max_iterations``.

    Raises:
        ValueError: If structure or shapes do not fit, or for an engine that cannot run the system.
        TypeError: If the state is not real.

    Numerics:
        The result is the loop's up to the tolerance and to rounding, which is amplified as in the
        loop: by the product of the A_t. Where that grows without bound (chaos) the result may be
        far from the loop's, and the residual says so. A step whose iterate is not finite keeps its
        value for one more iteration; from the first step on that stays so, the result is NaN or ∞.
        O(L N²) memory and O(L N³) work per iteration of "dense", O(L N) otherwise. Gradients, in
        both modes and to any order, are those of the trajectory, by one linear scan at the
        solution, and know nothing of the iterations; ``guess`` has none.

    References:
        Lim, Zhu, Selfridge, Kasim (2024), arXiv:2309.12252 (DEER). Gonzalez, Warrington, Smith,
        Linderman (2024), arXiv:2407.19115 (quasi-DEER: "diagonal part"; ELK, which bounds the steps
        by a Kalman filter where ``trust`` shortens A).

    Example:
        >>> cell = lambda w, h, u: jnp.tanh(w @ h + u)
        >>> w, u = jnp.array([[0.0, 0.5], [-0.5, 0.0]]), jnp.ones((4, 2))
        >>> found = solve(cell, w, u, jnp.zeros(2))
        >>> bool(jnp.abs(found.h - loop(cell, w, u, jnp.zeros(2))).max() < 1e-6)
        True
    """
    choose("jacobian", jacobian, ("dense", "diagonal", "diagonal part"))
    start, flat, unravel = _flat("solve", cell, params, h0, u)
    length = u.shape[0]
    if guess is None:
        first = jnp.zeros((length, start.size), start.dtype)
    else:
        first = jax.vmap(lambda x: ravel_pytree(x)[0])(guess).astype(start.dtype)
        if first.shape != (length, start.size):
            raise ValueError(
                f"solve: expected guess to hold {length} states of {start.size} numbers, got "
                f"{first.shape}. It has the structure of h0, each array with L in front."
            )
    trust = jnp.asarray(trust, start.dtype)
    if tolerance is None:
        eps = float(jnp.finfo(start.dtype).eps)
        tolerance = jnp.where(_is_newton(jacobian, trust), eps**0.5, 100 * eps)
    limits = trust, jnp.asarray(tolerance, start.dtype)
    most = length if max_iterations is None else max_iterations
    if most < 0:
        raise ValueError(f"solve: expected max_iterations >= 0, got {most}.")
    plan = _Plan(jacobian, method, most)
    # What the cell closes over has to be an argument of a function with a derivative of its own.
    closed, arrays = jax.closure_convert(flat, params, start, u[0])
    both = params, arrays

    def step(both: Any, h: Array, u_t: Array) -> Array:
        return closed(both[0], h, u_t, *both[1])

    h, iterations = _newton(step, plan, both, u, start, reset, first, limits)
    residual = jnp.abs(h - _all(step, both, _before(h, start, reset), u)).max()
    return Solution(jax.vmap(unravel)(h), h, iterations, residual)


def _is_newton(jacobian: Jacobian, trust: Array) -> Array:
    return (trust == 1) & (jacobian != "diagonal part")


class _Plan(NamedTuple):
    jacobian: Jacobian
    method: Engine | str
    max_iterations: int


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _newton(
    flat: Cell,
    plan: _Plan,
    params: Any,
    u: Array,
    start: Array,
    reset: Array | None,
    guess: Array,
    limits: tuple[Array, Array],
) -> tuple[Array, Array]:
    """The trajectory (L, N) by iteration, and the number of iterations."""
    trust, tolerance = limits
    eps = jnp.finfo(start.dtype).eps

    def unfinished(carry: tuple[Array, ...]) -> Array:
        *_, k, done = carry
        return ~done & (k < plan.max_iterations)

    def improve(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        h, _, last, k, _ = carry
        before = _before(h, start, reset)
        a = trust * _jacobian(flat, plan.jacobian, params, before, u)
        values = _all(flat, params, before, u) - _apply(a, before)
        B: InputMap = OuterInput() if a.ndim == 2 else EntryInput()
        system = _system(a, B, reset)
        new, _ = scan(system, values, start.reshape(system.state_shape), method=plan.method)
        # Far from the solution the linear system may overflow. The steps before are right all the
        # same, and these are tried again with better ones before them.
        finite = jnp.isfinite(new)
        kept = jnp.where(finite, new, h)
        # In units of what an entry is at most. One that should be 0 has the rounding of the others.
        unit = jnp.abs(kept).max(axis=0, keepdims=True)
        unit = jnp.maximum(unit, jnp.maximum(4 * eps * unit.max(), jnp.finfo(h.dtype).tiny))
        change = (jnp.abs(kept - h) / unit).max()
        # Newton's errors square. Others shrink by a ratio, and what is left is a geometric series;
        # changes that shrink no more and are small are rounding.
        shrinks = (change < last) & (k > 0)
        left = jnp.where(shrinks, change**2 / jnp.where(shrinks, last - change, 1), jnp.inf)
        close = (left <= tolerance) | (~shrinks & (k > 0) & (change <= eps**0.5))
        close = jnp.where(_is_newton(plan.jacobian, trust), change <= tolerance, close)
        return kept, new, change, k + 1, close & finite.all()

    begin = (guess, guess, jnp.ones((), guess.dtype), jnp.int32(0), jnp.bool_(False))
    _, new, _, iterations, _ = jax.lax.while_loop(unfinished, improve, begin)
    return new, iterations


@_newton.defjvp
def _newton_jvp(flat: Cell, plan: _Plan, primals: Any, tangents: Any) -> tuple[Any, Any]:
    params, u, start, reset, *_ = primals
    d_params, d_u, d_start, *_ = tangents
    # The rule calls the function whose rule it is: derivatives of the derivative are right as well.
    h, iterations = _newton(flat, plan, *primals)
    before = _before(h, start, reset)
    exact: Jacobian = "diagonal" if plan.jacobian == "diagonal" else "dense"
    a = _jacobian(flat, exact, params, before, u)
    direct = jax.jvp(lambda p, x: _all(flat, p, before, x), (params, u), (d_params, d_u))[1]
    if reset is not None:
        a = jnp.where(reset.reshape(-1, *[1] * (a.ndim - 1)), 0, a)
    # dh_t = A_t dh_{t−1} + (∂f/∂params) dparams + (∂f/∂u) du_t. Not by `scan`, whose engines have
    # backward passes of their own: a rule must be made of what JAX can transpose.
    dense = a.ndim == 3
    lifted = (lambda x: x[..., None]) if dense else (lambda x: x)
    first = lifted(direct[0]) + (a[0] @ lifted(d_start) if dense else a[0] * d_start)
    f = jnp.concatenate([first[None], lifted(direct[1:])])
    maps = Affine(None, a, f) if dense else Affine(a, None, f)
    dh = jax.lax.associative_scan(compose, maps).f
    return (h, iterations), (dh[..., 0] if dense else dh, jnp.zeros((), jax.dtypes.float0))


def _flat(
    owner: str, cell: Cell, params: Any, h0: Any, u: Array
) -> tuple[Array, Cell, Callable[[Array], Any]]:
    """The state flattened, the cell on flattened states, and the way back to the structure."""
    for leaf in jax.tree.leaves(h0):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"{owner}: expected a state of real floating-point numbers, got "
                f"{jnp.result_type(leaf)}. Write a complex state as its real and imaginary part."
            )
    if u.ndim < 1 or u.shape[0] < 1:
        raise ValueError(f"{owner}: expected inputs u of shape (L, …), L >= 1, got {u.shape}.")
    start, unravel = ravel_pytree(h0)
    shapes = [
        jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)
        for tree in (h0, jax.eval_shape(cell, params, h0, u[0]))
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{owner}: expected the cell to return a state like h0, {shapes[0]}, got {shapes[1]}. "
            "For a batch of sequences use jax.vmap."
        )

    def flat(params: Any, h: Array, u_t: Array) -> Array:
        return ravel_pytree(cell(params, unravel(h), u_t))[0]

    return start, flat, unravel


def _all(flat: Cell, params: Any, before: Array, u: Array) -> Array:
    """The states f(h_{t−1}, u_t) of every step, (L, N)."""
    return jax.vmap(flat, (None, 0, 0))(params, before, u)


def _before(h: Array, start: Array, reset: Array | None) -> Array:
    """The states before every step, (L, N)."""
    before = jnp.concatenate([start[None], h[:-1]])
    return before if reset is None else jnp.where(reset[:, None], 0, before)


def _jacobian(flat: Cell, kind: Jacobian, params: Any, before: Array, u: Array) -> Array:
    """A_t of every step: matrices (L, N, N), or diagonals (L, N)."""

    def at(h: Array, u_t: Array) -> Array:
        if kind == "diagonal":  # one derivative in the direction of all entries: none meet
            return jax.jvp(lambda h: flat(params, h, u_t), (h,), (jnp.ones_like(h),))[1]
        matrix = jax.jacfwd(flat, 1)(params, h, u_t)
        return matrix if kind == "dense" else jnp.diagonal(matrix)

    return jax.vmap(at)(before, u)


def _apply(a: Array, h: Array) -> Array:
    """A_t h_t for every step, (L, N)."""
    return a * h if a.ndim == 2 else jnp.einsum("lij,lj->li", a, h, precision="highest")


def _system(a: Array, B: InputMap, reset: Array | None) -> System:
    """The system of matrices (L, N, N) or diagonals (L, N), with all states as its outputs."""
    length, size = a.shape[:2]
    if a.ndim == 3:
        A, C, shape = Dense(a[:, None]), InnerOutput(over="p"), (1, size, 1)
        return System(A, B, C, reset=reset, state_shape=shape, length=length)
    # The logarithm of an entry that is 0 is −∞, without a gradient of ∞.
    modulus = jnp.where(a == 0, 1, jnp.abs(a))
    log_a = jnp.where(a == 0, -jnp.inf, jnp.log(modulus))
    A = Diagonal(log_a[:, None, None], jnp.where(a < 0, -1, 1)[:, None, None])
    return System(A, B, InnerOutput(), reset=reset, state_shape=(1, 1, size), length=length)
