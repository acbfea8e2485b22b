r"""The recurrence as a prefix product, by `jax.lax.associative_scan`.

A step is the affine map h ↦ A_t h + f_t. Affine maps compose, (A', f') ∘ (A, f) = (A'A, A'f + f'),
and composition is associative: all prefixes cost O(log L) parallel steps. The products A'A stay in
the class for scalar, diagonal and dense transitions; those of diagonal plus low rank do not (the
rank grows with every step), so that structure has no associative engine.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core.transitions import Dense, Diagonal, Scalar
from dsfjax.engines.recurrence import Recurrence, read_states

Action = Callable[[Array, Array], Array]
Affine = tuple[Array, Array]


def compose(act: Action, early: Affine, late: Affine) -> Affine:
    """The map that does ``early`` and then ``late``.

    Args:
        act: ``act(A, x)`` applies transitions to transitions or to states, for many steps at once.
        early: Pair (A, f) of the map h ↦ A h + f.
        late: Pair (A', f').

    Returns:
        (A'A, A'f + f').
    """
    return act(late[0], early[0]), act(late[0], early[1]) + late[1]


def associative(problem: Recurrence, h0: Array) -> tuple[Array, Array]:
    """Run the recurrence by an associative scan. O(L H n p) memory, O(log L) depth."""
    f = jnp.broadcast_to(problem.forcing(), (problem.length, *h0.shape))
    if isinstance(problem.A, Dense):
        a = problem.A.with_heads()
        act = partial(jnp.einsum, "lhnm,lhmp->lhnp", precision=problem.precision)
    else:
        assert isinstance(problem.A, Scalar | Diagonal)
        a, act = jnp.exp(problem.A.log_decay()), jnp.multiply
    a = jnp.broadcast_to(a, (problem.length, *a.shape[1:])).astype(f.dtype)
    if problem.reset is not None:
        a = jnp.where(problem.reset[:, None, None, None], 0, a)
    f = f.at[0].add(act(a[:1], h0[None])[0])
    _, states = jax.lax.associative_scan(partial(compose, act), (a, f))
    if problem.emit_states:
        return states, states[-1]
    return read_states(problem.c, states, problem.precision), states[-1]
