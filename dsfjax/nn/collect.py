"""The systems of all layers of a model over a batch, one sequence after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
from jaxtyping import Array, Bool, Int

from dsfjax.core import KernelSystem, System
from dsfjax.nn.functional import Model, Params

T = TypeVar("T")
Layers = tuple[tuple[System | KernelSystem, Array], ...]


def collect_systems(
    model: Model,
    params: Params,
    tokens: Int[Array, "batch L"],
    read: Callable[[Layers], T],
    *,
    reset: Bool[Array, "batch L"] | None = None,
    batch_size: int = 1,
) -> T:
    """What a function makes of the systems of every layer, for every sequence of a batch.

    The systems of a whole batch would fill memory; what one wants to know of them is small. So the
    sequences go by one after the other, and only what ``read`` returns is kept.

    Args:
        model: The model.
        params: Its parameters.
        tokens: Token ids (batch, L).
        read: Function of the layers of one sequence, ``((System, u (L, d)), …)`` as
            `Model.systems` gives them, to any pytree of arrays. The identity collects the systems
            themselves.
        reset: Boolean (batch, L) or None.
        batch_size: Sequences that are looked at at once, in proportion to the memory.

    Returns:
        The results of ``read``, each array with the batch as a new leading axis.

    Raises:
        ValueError: If ``tokens`` is not a batch.

    Example:
        The largest decay of each of two layers on three sequences:

        >>> import jax.numpy as jnp
        >>> from dsfjax import analysis, nn
        >>> model = nn.build(nn.ModelConfig("ssd", vocab_size=16, d_model=8, d_state=4))
        >>> params, tokens = model.init(jax.random.key(0)), jnp.zeros((3, 5), jnp.int32)
        >>> def largest(layers):
        ...     return [analysis.eigenvalues(system).max() for system, _ in layers]
        >>> [x.shape for x in collect_systems(model, params, tokens, largest)]
        [(3,), (3,)]
    """
    if tokens.ndim != 2:
        raise ValueError(
            f"collect_systems: expected a batch of token ids (batch, L), got {tokens.shape}. For "
            "one sequence, use model.systems."
        )

    def look(sequence: tuple[Array, Array | None]) -> T:
        return read(model.systems(params, sequence[0], reset=sequence[1]))

    # A vmap, even over one sequence, would turn a cond into both of its branches.
    together = None if batch_size == 1 else batch_size
    return jax.lax.map(look, (tokens, reset), batch_size=together)
