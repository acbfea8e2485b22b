r"""A system as independent small ones: the parts of the state that never meet.

With structured maps every value channel j of a head h drives n states of its own and is read back
from them alone, so a system of N = H·n·p states is H·p systems of n states with one input and one
output each. Where decay, scale and gate do not vary over p, the p systems of a head are the same.
A dense B or C joins everything, and the whole state is one block.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax import Array

from dsfjax.analysis.normalizer import finite, normalized
from dsfjax.analysis.rows import on_values
from dsfjax.core import InnerOutput, KernelSystem, OuterInput, System, steps
from dsfjax.core.pytree import pytree, static
from dsfjax.core.transitions import to_heads


@pytree
class Blocks:
    """Independent systems h_t = A_t h_{t−1} + B_t u_t, y_t = C_t h_t in the paper's coordinates.

    There are H × c of them: one per head and value channel, or one per head that stands for all its
    channels (c = 1), or one for the whole state (H = c = 1).

    Attributes:
        A: Eigenvalues (T, H, c, n) of a diagonal transition, or matrices (T, H, c or 1, n, n); zero
            at resets.
        B: (T, H, c, n, m): m values are written, as many as the rank of the input map, or the d
            tokens of the whole state.
        C: (T, H, c, r, n): r inner products, or the d_out outputs of the whole state. Where the
            output reads the state before the update, the products of the next step.
        copies: How many equal blocks each of them stands for.
    """

    A: Array
    B: Array
    C: Array
    copies: int = static(default=1)

    @property
    def is_diagonal(self) -> bool:
        """Whether the transitions are given as diagonals."""
        return self.A.ndim == 4


def blocks(owner: str, system: System | KernelSystem, length: int | None) -> Blocks:
    """The independent blocks of a system over ``length`` steps (what is constant has T = 1)."""
    length = steps(system, length, owner=owner)
    system = normalized(finite(owner, system), length=length)
    if system.acts_on_values:
        found = _of_channels(on_values(owner, system), system.state_shape[2])
    else:
        found = _whole(system)
    if not system.C.before_update:
        return found
    # What the state of a step sends to the outputs begins with the step after it.
    C = found.C
    if system.length is not None:
        C = jnp.broadcast_to(C, (length, *C.shape[1:]))
        C = jnp.concatenate([_cut(C, system.reset)[1:], jnp.zeros_like(C[:1])])
    return dataclasses.replace(found, C=C)


def _of_channels(system: System, p: int) -> Blocks:
    heads, n, channels = system.state_shape
    A, B, C, dtype = system.A, system.B, system.C, system.dtype
    assert isinstance(B, OuterInput) and isinstance(C, InnerOutput)

    def outer(rank: int, vector: Array | None, factor: Array | None) -> Array:
        """(T, H, c, r, n) from (T, r, groups, n) and (T, r, H, p or 1)."""
        one = jnp.ones((1, rank, heads, 1), dtype)
        vector = one if vector is None else to_heads(vector, heads).astype(dtype)
        factor = one if factor is None else factor.astype(dtype)
        product = vector[:, :, :, None, :] * factor[:, :, :, :, None]
        product = jnp.broadcast_to(product, (product.shape[0], rank, heads, channels, n))
        return jnp.moveaxis(product, 1, 3)

    if A.is_diagonal:
        transition = A.decay().astype(dtype).swapaxes(2, 3)  # type: ignore[attr-defined]
        transition = jnp.broadcast_to(transition, (transition.shape[0], heads, channels, n))
    else:
        matrices = A.matrix().astype(dtype)[:, :, None]
        transition = jnp.broadcast_to(matrices, (matrices.shape[0], heads, 1, n, n))
    return Blocks(
        _cut(transition, system.reset),
        outer(B.rank, B.vectors(), B.scales()).swapaxes(-1, -2),
        outer(C.rank, C.vectors(), C.gates()),
        copies=p // channels,
    )


def _whole(system: System) -> Blocks:
    shape, dtype = system.state_shape, system.dtype
    if system.A.is_diagonal:
        transition = system.A.decay().astype(dtype)  # type: ignore[attr-defined]
        transition = jnp.broadcast_to(transition, (transition.shape[0], *shape))
        transition = transition.reshape(-1, 1, 1, system.num_states)
    else:
        transition = system.A.dense(shape).astype(dtype)[:, None, None]
    B, C = (part.matrix(shape)[:, None, None].astype(dtype) for part in (system.B, system.C))
    return Blocks(_cut(transition, system.reset), B, C)


def _cut(transition: Array, reset: Array | None) -> Array:
    """Zero transitions at resets."""
    if reset is None:
        return transition
    return jnp.where(reset.reshape(-1, *[1] * (transition.ndim - 1)), 0, transition)
