"""From a System of one sequence to a batch: layouts, packed sequences, states of each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jaxtyping import Int

from dsfjax.core import reset_from_segment_ids
from dsfjax.core.dtypes import state_dtype, whole_numbers
from dsfjax.engines import scan
from dsfjax.ops.op import Assembled

CuSeqlens = Int[Array | np.ndarray, " _"] | Sequence[int]
"""Where packed sequences begin, and where the last one ends: [N + 1]."""

Indices = Int[Array | np.ndarray, " B"]
"""The row of a cache for each row of a batch; negative for padding."""


def run(
    assemble: Callable[..., Assembled],
    arrays: tuple[Any, ...],
    shape: tuple[int, ...],
    *,
    initial_state: Array | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    reverse: bool = False,
    cu_seqlens: CuSeqlens | None = None,
    segment_ids: Array | None = None,
) -> tuple[Array, Array | None]:
    """Run the Systems of a batch of sequences.

    A zero-length sequence of ``cu_seqlens`` gives its initial state back.

    Args:
        assemble: From the arrays of one sequence and ``reset=`` to `Assembled`.
        arrays: Positional arguments of ``assemble`` with the axis B in front, the first of them
            [B, T, …]; None stays None.
        shape: Of the outputs of the batch.
        initial_state: [N, H, n, p], N = B or the number of packed sequences; None for zero.
        output_final_state: Whether the states at the ends are wanted.
        state_v_first: Whether states are [N, H, p, n].
        reverse: Whether time runs backwards.
        cu_seqlens: Starts and end of the sequences that are packed into B = 1. Traced, its length
            is what has to be known: unused sequences at the end have no tokens.
        segment_ids: [B, T] integers; a change starts a document. The initial state is that of the
            document at the start of each row, and the final state that at the end of it.

    Returns:
        ``(o, states)``: outputs of that shape and [N, H, n, p], or None.

    Raises:
        ValueError: If ``cu_seqlens`` does not fit.
    """
    arrays = jax.tree.map(jnp.asarray, arrays)
    batch, length = jax.tree.leaves(arrays)[0].shape[:2]
    h0 = _with_axes(initial_state, state_v_first)
    if cu_seqlens is None:
        if h0 is not None and h0.shape[0] != batch:
            raise ValueError(
                f"initial_state: expected one for each of {batch} sequences, got {h0.shape[0]}. "
                "Sequences that are packed need cu_seqlens."
            )

        def one(arrays: Any, ids: Array | None, h0: Array | None) -> tuple[Any, ...]:
            reset = None if ids is None else reset_from_segment_ids(ids, ids[0])
            return scan(*assemble(*arrays, reset=reset), h0, reverse=reverse)

        y, last = jax.vmap(one)(arrays, segment_ids, h0)
        return y.reshape(shape), _with_axes(last, state_v_first) if output_final_state else None
    if segment_ids is not None:
        raise ValueError(
            "cu_seqlens: expected no segment_ids next to it, got both; leave one of them out."
        )
    cu = checked(cu_seqlens, batch, length, None if h0 is None else h0.shape[0])
    first, last, full = cu[:-1], cu[1:] - 1, cu[1:] > cu[:-1]
    reset = jnp.zeros(length, bool).at[cu].set(True, mode="drop")
    system, u = assemble(*jax.tree.map(lambda x: x[0], arrays), reset=reset)
    entering = None if h0 is None else _entering(h0, full)
    if not output_final_state:
        return scan(system, u, entering, reverse=reverse)[0].reshape(shape), None
    wanted = (first if reverse else last).clip(0, length - 1)
    y, _, states = scan(system, u, entering, reverse=reverse, return_states=wanted)
    before = jnp.zeros_like(states) if h0 is None else h0.astype(states.dtype)
    states = jnp.where(full[:, None, None, None], states, before)
    return y.reshape(shape), _with_axes(states, state_v_first)


def _with_axes(states: Array | None, v_first: bool) -> Array | None:
    """States with their last two axes exchanged, if ``v_first``."""
    return states.swapaxes(-1, -2) if v_first and states is not None else states


def checked(cu_seqlens: Any, batch: int, length: int, states: int | None = None) -> Any:
    """The starts, as NumPy's where they are known, of a batch of packed sequences with states.

    Raises:
        ValueError: If they do not fit.
    """
    cu = cu_seqlens if isinstance(cu_seqlens, Tracer) else np.asarray(cu_seqlens)
    whole_numbers("cu_seqlens", "cu_seqlens", cu)
    what = None
    if cu.ndim != 1 or cu.shape[0] < 2:
        what = f"shape [N + 1], got {list(cu.shape)}"
    elif batch != 1:
        what = f"a batch of 1, got {batch}; concatenate the sequences"
    elif states not in (None, cu.shape[0] - 1):
        what = f"an initial state for each of {cu.shape[0] - 1} sequences, got {states}"
    elif not isinstance(cu, Tracer) and (cu[0] or cu[-1] != length or (np.diff(cu) < 0).any()):
        what = f"numbers from 0 to T = {length} in order, got {cu.tolist()}"
    if what is not None:
        raise ValueError(f"cu_seqlens: expected {what}.")
    return cu


def _entering(h0: Array, full: Any) -> Array:
    """The initial states of the sequences that have tokens, in their order, in front."""
    if not isinstance(full, Tracer):
        return h0[np.flatnonzero(full)]
    # Tokens after the last sequence, if any, are one more, which begins from zero.
    rows = jnp.concatenate([h0, jnp.zeros_like(h0[:1])])
    empty = jnp.concatenate([~full, jnp.zeros(1, bool)])
    return rows[jnp.argsort(empty, stable=True)]


class Cache(NamedTuple):
    """States of which every row of a batch has its own: some of [N, …], or all in their order.

    Attributes:
        states: [N, …].
        places: The row of the states of each row of the batch (B,), N for padding; None for the
            same.
    """

    states: Array
    places: Array | None

    @classmethod
    def of(cls, owner: str, name: str, states: Array, indices: Any, batch: int) -> Cache:
        """The states at indices (B,), of which negative ones are padding.

        Args:
            owner: Who asks, for messages.
            name: Of the indices.
            states: [N, …].
            indices: (B,), or None.
            batch: B.

        Raises:
            ValueError: If there are not as many states as rows, or an index that is known while
                tracing is beyond the last. One that is traced is padding then.
        """
        count = states.shape[0]
        if indices is None:
            if count != batch:
                raise ValueError(
                    f"{owner}: expected a state for each of {batch} rows of x, got {count}; say "
                    f"which with {name}."
                )
            return cls(states, None)
        places = whole_numbers(owner, name, indices)
        known = None if isinstance(indices, Tracer) else np.asarray(indices)
        if known is not None and (known >= count).any():
            raise ValueError(
                f"{owner}: expected {name} below {count}, the number of states, or negative for "
                f"padding, got {known.tolist()}."
            )
        return cls(states, jnp.where((places < 0) | (places >= count), count, places))

    @property
    def rows(self) -> Array:
        """The states of the batch, [B, …], those of padding 0."""
        if self.places is None:
            return self.states
        return self.states.at[self.places].get(mode="fill", fill_value=0)

    def padded(self, y: Array) -> Array:
        """Outputs [B, …] with 0 in the rows of padding."""
        if self.places is None:
            return y
        full = self.places < self.states.shape[0]
        return jnp.where(full.reshape(-1, *[1] * (y.ndim - 1)), y, 0)

    def updated(self, rows: Array) -> Array:
        """The states with those of the batch replaced, which padding leaves alone."""
        rows = rows.astype(self.states.dtype)
        return rows if self.places is None else self.states.at[self.places].set(rows, mode="drop")


def flat(x: Array) -> Array:
    """Values [T, …] as tokens (T, d)."""
    return x.reshape(x.shape[0], -1)


def wide(x: Array) -> Array:
    """The array in the dtype of states, at least float32."""
    return x.astype(state_dtype(x.dtype))


def times(x: Array, factor: Array | float) -> Array:
    """The product, formed in the dtype of states and given in that of x."""
    factor = jnp.asarray(factor, state_dtype(x.dtype))
    return (wide(x) * factor.reshape((1,) * (x.ndim - factor.ndim) + factor.shape)).astype(x.dtype)


def scaled(q: Array, scale: float | Array | None) -> Array:
    """The queries times their scale, by default K^(-1/2)."""
    return times(q, q.shape[-1] ** -0.5 if scale is None else scale)
