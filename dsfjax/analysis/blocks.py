r"""A system as independent small ones: the parts of the state that never meet.

With structured maps every value channel j of a head h drives n states of its own and is read back
from them alone, so a system of N = H·n·p states is H·p systems of n states with one input and one
output each. Where decay, scale and gate do not vary over p, the p systems of a head are the same.
A dense B or C joins everything, and the whole state is one block.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.analysis.normalizer import finite, normalized, num_steps
from dsfjax.analysis.rows import on_values
from dsfjax.core import (
    Dense,
    DenseInput,
    DenseOutput,
    DiagonalPlusLowRank,
    InnerOutput,
    KernelSystem,
    OuterInput,
    System,
)
from dsfjax.core.dense import matrices
from dsfjax.core.maps import to_heads
from dsfjax.core.pytree import pytree, static


@pytree
class Blocks:
    """Independent systems h_t = A_t h_{t−1} + B_t u_t, y_t = C_t h_t in the paper's coordinates.

    There are H × c of them: one per head and value channel, or one per head that stands for all its
    channels (c = 1), or one for the whole state (H = c = 1).

    Attributes:
        A: Eigenvalues (T, H, c, n) of a diagonal transition, or matrices (T, H, c or 1, n, n); zero
            at resets.
        B: (T, H, c, n, m): m = 1 value channel, or the d tokens of the whole state.
        C: (T, H, c, r, n): r = 1, or the d_out outputs of the whole state.
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
    steps = num_steps(owner, system, length)
    system = normalized(finite(owner, system), length=steps)
    if is_structured(system):
        return _of_channels(on_values(owner, system), system.state_shape[2])
    return _whole(system)


def is_structured(system: System) -> bool:
    """Whether the state falls into blocks, one per value channel."""
    return isinstance(system.B, OuterInput) and isinstance(system.C, InnerOutput)


def _of_channels(system: System, p: int) -> Blocks:
    heads, n, channels = system.state_shape
    A, B, C, dtype = system.A, system.B, system.C, system.dtype
    assert isinstance(B, OuterInput) and isinstance(C, InnerOutput)

    def outer(vector: Array | None, factor: Array | None) -> Array:
        """(T, H, c, n) from (T, groups, n) and (T, H, p or 1)."""
        one = jnp.ones((1, heads, 1), dtype)
        vector = one if vector is None else to_heads(vector, heads).astype(dtype)
        factor = one if factor is None else factor.astype(dtype)
        product = vector[:, :, None, :] * factor[:, :, :, None]
        return jnp.broadcast_to(product, (product.shape[0], heads, channels, n))

    if isinstance(A, Dense | DiagonalPlusLowRank):
        matrices = _matrices(A).astype(dtype)[:, :, None]
        transition = jnp.broadcast_to(matrices, (matrices.shape[0], heads, 1, n, n))
    else:
        transition = jnp.exp(A.log_decay()).astype(dtype).swapaxes(2, 3)
        transition = jnp.broadcast_to(transition, (transition.shape[0], heads, channels, n))
    return Blocks(
        _cut(transition, system.reset),
        outer(B.b, B.scale)[..., None],
        outer(C.c, C.gate)[..., None, :],
        copies=p // channels,
    )


def _whole(system: System) -> Blocks:
    if isinstance(system.A, Dense | DiagonalPlusLowRank):
        transition = _written_out(system, "A")[:, None, None]
    else:
        transition = jnp.exp(system.A.log_decay()).astype(system.dtype)
        transition = jnp.broadcast_to(transition, (transition.shape[0], *system.state_shape))
        transition = _cut(transition.reshape(-1, 1, 1, system.num_states), system.reset)
    B = system.B.matrix if isinstance(system.B, DenseInput) else _written_out(system, "B")
    C = system.C.matrix if isinstance(system.C, DenseOutput) else _written_out(system, "C")
    B, C = (x[:, None, None].astype(system.dtype) for x in (B, C))
    return Blocks(transition, B, C)


@partial(jax.jit, static_argnames="part")  # so that the other matrices are never formed
def _written_out(system: System, part: str) -> Array:
    return getattr(matrices(system), part)


def _matrices(A: Dense | DiagonalPlusLowRank) -> Array:
    return A.with_heads() if isinstance(A, Dense) else A.matrix_of_step()


def _cut(transition: Array, reset: Array | None) -> Array:
    """Zero transitions at resets."""
    if reset is None:
        return transition
    return jnp.where(reset.reshape(-1, *[1] * (transition.ndim - 1)), 0, transition)
