r"""The recurrence as a prefix product, by `jax.lax.associative_scan`.

A step is the affine map h ↦ A_t h + f_t. Affine maps compose, (A', f') ∘ (A, f) = (A'A, A'f + f'),
and composition is associative: all prefixes cost O(log L) parallel steps. The products A'A stay in
the class for scalar, diagonal and dense transitions. Those of diagonal plus low rank do not (the
rank grows with every step), so that structure runs as matrices, as any other one does.

A diagonal D and what is added to it, X, stay apart: (D' + X')(D + X) has the diagonal D'D and the
rest D'X + X'D + X'X. Where A_t is near the identity, as for the delta rule, the rounding errors of
long products are then those of X and not of 1.

The backward pass is the adjoint recurrence, G_t = ∂h_t + A_{t+1}ᵀ G_{t+1}, by the same scan from
the other end; what it needs of the forward pass is computed again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core.system import System
from dsfjax.engines.engine import Cost, Engine
from dsfjax.engines.guard import finite
from dsfjax.engines.recurrence import Recurrence


class Affine(NamedTuple):
    """The map h ↦ (D + X) h + f of many steps; at least one of D and X is there.

    Attributes:
        diagonal: D, (…, n or 1, p or 1), or None for 0.
        matrix: X, (…, n, n), or None for 0; then D has no axis p.
        f: What is added, (…, n, p).
    """

    diagonal: Array | None
    matrix: Array | None
    f: Array

    def linear(self, h: Array, precision: str = "highest") -> Array:
        """(D + X) h."""
        terms = [] if self.diagonal is None else [self.diagonal * h]
        if self.matrix is not None:
            terms.append(jnp.matmul(self.matrix, h, precision=precision))
        return sum(terms[1:], start=terms[0])


def compose(early: Affine, late: Affine, *, precision: str = "highest") -> Affine:
    """The map that does ``early`` and then ``late``, for many steps at once.

    Args:
        early: The first map.
        late: The second map, of the same structure.
        precision: Of the matrix products.

    Returns:
        (D' + X')(D + X) as diagonal and rest, and (D' + X') f + f'.
    """
    diagonal = matrix = None
    if early.diagonal is not None and late.diagonal is not None:
        diagonal = late.diagonal * early.diagonal
    if early.matrix is not None and late.matrix is not None:
        matrix = late.linear(early.matrix, precision)
        if early.diagonal is not None:
            matrix = matrix + late.matrix * early.diagonal.swapaxes(-1, -2)
    return Affine(diagonal, matrix, late.linear(early.f, precision) + late.f)


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
    f = jnp.broadcast_to(problem.forcing(), (problem.length, *h0.shape))

    def every_step(part: Array | None) -> Array | None:
        if part is None:
            return None
        part = jnp.broadcast_to(part, (problem.length, *part.shape[1:])).astype(f.dtype)
        if problem.reset is None:
            return part
        # A step that forgets all is the constant map h ↦ f.
        return jnp.where(problem.reset[:, None, None, None], 0, part)

    diagonal, matrix = map(every_step, problem.A.parts())
    states: Any = _states(problem.precision, diagonal, matrix, f, h0)
    return problem.read(states), states[-1]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _states(
    precision: str, diagonal: Array | None, matrix: Array | None, f: Array, h0: Array
) -> Array:
    """All states of h_t = A_t h_{t-1} + f_t."""
    return _run(precision, Affine(diagonal, matrix, f), h0)


def _run(precision: str, maps: Affine, h0: Array) -> Array:
    # The first map has h0 put in, and so have all prefixes: their last parts are the states.
    first = jax.tree.map(lambda x: x[0], maps)
    f = maps.f.at[0].set(first.linear(h0, precision) + first.f)
    combine = partial(compose, precision=precision)
    return jax.lax.associative_scan(combine, maps._replace(f=f)).f


Kept = tuple[Array | None, Array | None, Array, Array]


def _forward(
    precision: str, diagonal: Array | None, matrix: Array | None, f: Array, h0: Array
) -> tuple[Array, Kept]:
    h = _run(precision, Affine(diagonal, matrix, f), h0)
    return h, (diagonal, matrix, h, h0)


def _backward(
    precision: str, kept: Kept, dh: Array
) -> tuple[Array | None, Array | None, Array, Array]:
    diagonal, matrix, h, h0 = kept
    adjoint = Affine(diagonal, None if matrix is None else matrix.swapaxes(-1, -2), dh)
    # The map of the step that follows; that of the last step meets the zero state.
    following = jax.tree.map(lambda x: jnp.roll(x, -1, axis=0), adjoint)._replace(f=dh)
    backwards = jax.tree.map(lambda x: x[::-1], following)
    G = _run(precision, backwards, jnp.zeros_like(h0))[::-1]
    before = jnp.concatenate([h0[None], h[:-1]])
    dh0 = jax.tree.map(lambda x: x[0], adjoint).linear(G[0], precision)
    dmatrix = ddiagonal = None
    if matrix is not None:
        dmatrix = jnp.einsum("lhnp,lhmp->lhnm", G, before, precision=precision)
        dmatrix = _sum_of_shared(dmatrix, matrix)
    if diagonal is not None:
        ddiagonal = _sum_of_shared(G * before, diagonal)
    return ddiagonal, dmatrix, G, dh0


def _sum_of_shared(cotangent: Array, x: Array) -> Array:
    """What several heads or states have in common gets the sum of their cotangents."""
    axes = [i for i, size in enumerate(x.shape) if size == 1 and cotangent.shape[i] != 1]
    return cotangent.sum(axis=axes, keepdims=True)


_states.defvjp(_forward, _backward)
