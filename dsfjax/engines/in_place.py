"""The loop over the segments of a sequence, and over the chunks of a segment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import Array

from dsfjax._util.varying import zeros_as
from dsfjax.engines.slices import block, put


def over_blocks(
    run: Callable[[Any, Any], tuple[Any, Any]], count: int, carry: Any, xs: Any, *, reverse: bool
) -> tuple[Any, Any]:
    """Run the blocks of a first axis one after the other, as `jax.lax.scan` would.

    Blocks are read and written in place, by their position: under `jax.vmap` the scan would first
    copy every array to bring the axis that it runs over to the front.

    Args:
        run: ``(carry, xs of one block) -> (carry, outputs)``.
        count: Number of blocks.
        carry: What goes from block to block.
        xs: Arrays whose first axis is a multiple of ``count``; each is cut into blocks of its own
            size, which may be 1.
        reverse: From the last to the first.

    Returns:
        The last carry, and the outputs with the blocks joined along the first axis.
    """
    if count == 1:  # no loop to compile
        return run(carry, xs)
    narrow = jax.tree.map(compact, xs)

    def at(i: Array | int) -> Any:
        def take(x: Array, whole: Array) -> Array:
            size = len(x) // count
            return block(x, i, size).reshape(size, *whole.shape[1:])

        return jax.tree.map(take, narrow, xs)

    # The loop writes its outputs in place, so they must be there before, of shapes known only to
    # ``run``.
    like = jax.tree.leaves(carry)[0]
    of_block = jax.eval_shape(lambda carry: run(carry, at(0))[1], carry)
    outs = jax.tree.map(
        lambda x: compact(zeros_as(like, (count * x.shape[0], *x.shape[1:]), x.dtype)), of_block
    )

    def body(i: Array | int, state: tuple[Any, Any]) -> tuple[Any, Any]:
        carry, outs = state
        i = count - 1 - i if reverse else i
        carry, out = run(carry, at(i))
        outs = jax.tree.map(lambda whole, x: put(whole, compact(x), i), outs, out)
        return carry, outs

    carry, outs = jax.lax.fori_loop(0, count, body, (carry, outs))
    return carry, jax.tree.map(lambda x, b: x.reshape(len(x), *b.shape[1:]), outs, of_block)


def compact(x: Array) -> Array:
    """Without axes of length 1 after the first, where there is one.

    XLA copies what enters a loop or a branch if it has put these elsewhere.
    """
    shape = (*x.shape[:1], *(size for size in x.shape[1:] if size != 1))
    return x if shape == x.shape else x.reshape(shape)
