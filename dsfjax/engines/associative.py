r"""The recurrence as a prefix product, by `jax.lax.associative_scan`.

A step is the affine map h ↦ A_t h + f_t. Affine maps compose, (A', f') ∘ (A, f) = (A'A, A'f + f'),
and composition is associative: all prefixes cost O(log L) parallel steps. The products A'A stay in
the class for scalar, diagonal and dense transitions; those of diagonal plus low rank do not (the
rank grows with every step), so that structure has no associative engine.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core.maps import to_heads
from dsfjax.core.transitions import Dense
from dsfjax.engines.recurrence import Recurrence


def associative(problem: Recurrence, h0: Array) -> tuple[Array, Array]:
    """Run the recurrence by an associative scan. O(L H n p) memory, O(log L) depth."""
    steps, dense = problem.length, isinstance(problem.A, Dense)
    f = jnp.broadcast_to(problem.forcing(), (steps, *h0.shape))
    a = problem.A.with_heads() if dense else jnp.exp(problem.A.log_decay())
    a = jnp.broadcast_to(a, (steps, *a.shape[1:])).astype(f.dtype)
    if problem.reset is not None:
        a = jnp.where(problem.reset[:, None, None, None], 0, a)

    def act(a: Array, x: Array) -> Array:
        if not dense:
            return a * x
        return jnp.einsum("lhnm,lhmp->lhnp", a, x, precision=problem.precision)

    def compose(early: tuple[Array, Array], late: tuple[Array, Array]) -> tuple[Array, Array]:
        return act(late[0], early[0]), act(late[0], early[1]) + late[1]

    f = f.at[0].add(act(a[:1], h0[None])[0])
    _, states = jax.lax.associative_scan(compose, (a, f))
    if problem.emit_states:
        return states, states[-1]
    c = to_heads(problem.c, h0.shape[0])
    return jnp.sum(c[..., None] * states, axis=2), states[-1]
