r"""The recurrence as a prefix product, by `jax.lax.associative_scan`.

A step is the affine map h ↦ A_t h + f_t. Affine maps compose, (A', f') ∘ (A, f) = (A'A, A'f + f'),
and composition is associative: all prefixes cost O(log L) parallel steps. The products A'A stay in
the class for scalar, diagonal and dense transitions. Those of diagonal plus low rank do not (the
rank grows with every step), so that structure runs as matrices, as any other one does.

The backward pass is the adjoint recurrence, G_t = ∂h_t + A_{t+1}ᵀ G_{t+1}, by the same scan from
the other end; what it needs of the forward pass is computed again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core.system import System
from dsfjax.engines.engine import Cost, Engine
from dsfjax.engines.guard import finite
from dsfjax.engines.recurrence import Recurrence

Affine = tuple[Array, Array]


def compose(early: Affine, late: Affine, *, dense: bool, precision: str = "highest") -> Affine:
    """The map that does ``early`` and then ``late``, for many steps at once.

    Args:
        early: Pair (A, f) of the map h ↦ A h + f.
        late: Pair (A', f').
        dense: Whether A is a matrix (…, n, n) that acts on f (…, n, p), or multiplies elementwise.
        precision: Of the matrix products.

    Returns:
        (A'A, A'f + f').
    """
    act = partial(jnp.matmul, precision=precision) if dense else jnp.multiply
    return act(late[0], early[0]), act(late[0], early[1]) + late[1]


@dataclass(frozen=True)
class Associative(Engine):
    """A scan by `jax.lax.associative_scan`: O(log L) depth, O(L H n p) memory; every structure."""

    name: ClassVar[str] = "associative"

    def run(self, recurrence: Recurrence, h0: Array) -> tuple[Array, Array]:
        """Run the recurrence; see `Engine.run`."""
        return _associative(recurrence, h0)

    def cost(self, system: System, length: int) -> Cost:
        """What a forward pass costs; see `Engine.cost`."""
        heads, n, p = system.carried_shape
        states = heads * n * p
        combine = 3 * states if system.A.is_diagonal else 2 * heads * n**2 * (n + p)
        map_size = states if system.A.is_diagonal else heads * n * n
        # The scan composes about twice as many maps as there are steps.
        return Cost(length * (2 * combine + 4 * states), 2 * length * (map_size + states))


@jax.checkpoint
def _associative(problem: Recurrence, h0: Array) -> tuple[Array, Array]:
    # Where a decay is 0 the products below would turn ∞ into NaN: the guard has the values there.
    problem, h0 = finite((problem, h0))
    A, dense = problem.A, not problem.A.is_diagonal
    f = jnp.broadcast_to(problem.forcing(), (problem.length, *h0.shape))
    a = A.matrix() if dense else A.decay()  # type: ignore[attr-defined]
    a = jnp.broadcast_to(a, (problem.length, *a.shape[1:])).astype(f.dtype)
    if problem.reset is not None:  # a step that forgets all is the constant map h ↦ f
        a = jnp.where(problem.reset[:, None, None, None], 0, a)
    states: Any = _states(dense, problem.precision, a, f, h0)
    return problem.read(states), states[-1]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _states(dense: bool, precision: str, a: Array, f: Array, h0: Array) -> Array:
    """All states of h_t = a_t h_{t-1} + f_t."""
    return _run(dense, precision, a, f, h0)


def _run(dense: bool, precision: str, a: Array, f: Array, h0: Array) -> Array:
    combine = partial(compose, dense=dense, precision=precision)
    # The first map has h0 put in, and so have all prefixes: their second parts are the states.
    f = f.at[0].set(combine((a[0], h0), (a[0], f[0]))[1])
    return jax.lax.associative_scan(combine, (a, f))[1]


def _forward(
    dense: bool, precision: str, a: Array, f: Array, h0: Array
) -> tuple[Array, tuple[Array, Array, Array]]:
    h = _run(dense, precision, a, f, h0)
    return h, (a, h, h0)


def _backward(
    dense: bool, precision: str, kept: tuple[Array, Array, Array], dh: Array
) -> tuple[Array, Array, Array]:
    a, h, h0 = kept
    adjoint = a.swapaxes(-1, -2) if dense else a
    following = jnp.roll(adjoint, -1, axis=0)  # that of the last step meets the zero state
    G = _run(dense, precision, following[::-1], dh[::-1], jnp.zeros_like(h0))[::-1]
    before = jnp.concatenate([h0[None], h[:-1]])
    if dense:
        da = jnp.einsum("lhnp,lhmp->lhnm", G, before, precision=precision)
        dh0 = jnp.matmul(adjoint[0], G[0], precision=precision)
    else:
        da, dh0 = G * before, adjoint[0] * G[0]
    # A decay that several states have in common gets the sum of their cotangents.
    axes = tuple(i for i in range(1, a.ndim) if a.shape[i] == 1 and da.shape[i] != 1)
    return (da.sum(axis=axes, keepdims=True) if axes else da), G, dh0


_states.defvjp(_forward, _backward)
