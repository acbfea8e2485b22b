"""Where examples come from: made on the device, resident on it, or sent by the host.

`Generated`, `Resident` and `Windows` are what a task is written below; each implements the part of
`dsfjax.tasks.Task` that supplies examples.
"""

from __future__ import annotations

import abc
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from dsfjax.tasks import stream
from dsfjax.tasks.data.splits import permutation
from dsfjax.tasks.protocol import HELD_OUT, TRAIN, Example, Task


def shuffled(key: PRNGKeyArray, index: Int[Array, " count"], size: int) -> Int[Array, " count"]:
    r"""Entries of a random permutation of ``size`` rows, without the rest of it.

    A step of training needs a batch of the epoch's order; to shuffle all rows for it takes longer
    than a small model's step. This is the swap-or-not shuffle: in every round each x has a partner,
    :math:`x' = k_r - x` modulo the size, and a random bit of the pair says whether both change
    places. So each round is a permutation, of any size.

    Args:
        key: Key of the permutation.
        index: Places in it, int32.
        size: Number of rows.

    Returns:
        The rows at these places, int32.

    Numerics:
        O(count · log size); four rounds for every bit of the size.

    References:
        Hoang, Morris and Rogaway (2012), arXiv:1208.1176.

    Example:
        >>> sorted(shuffled(jax.random.key(0), jnp.arange(7, dtype=jnp.int32), 7).tolist())
        [0, 1, 2, 3, 4, 5, 6]
    """
    rounds = 4 * size.bit_length()
    offset_key, bit_key = jax.random.split(key)
    offsets = jax.random.randint(offset_key, (rounds,), 0, size, jnp.int32)
    masks = jax.random.bits(bit_key, (rounds,), jnp.uint32)

    def swap(r: Array, x: Array) -> Array:
        partner = offsets[r] - x
        partner = jnp.where(partner < 0, partner + size, partner)
        # The finaliser of MurmurHash3: each bit depends on all of those that come in.
        bits = jnp.maximum(x, partner).astype(jnp.uint32) ^ masks[r]
        bits = (bits ^ bits >> 16) * jnp.uint32(0x85EBCA6B)
        bits = (bits ^ bits >> 13) * jnp.uint32(0xC2B2AE35)
        return jnp.where(bits >> 31, partner, x)

    return jax.lax.fori_loop(0, rounds, swap, index)


class Generated(Task):
    """A task whose examples are made on the device, inside the compiled loop; they never end.

    You write `sample`. Held-out examples have keys that no training step uses.
    """

    @abc.abstractmethod
    def sample(self, key: PRNGKeyArray) -> Example:
        """Draw one example; pure, and called under ``jit`` and ``vmap``.

        Args:
            key: PRNG key.
        """

    def lengthened(self, factor: int) -> Generated:
        """The task on sequences ``factor`` times as long, of the same vocabulary.

        Whether a model that was trained on short sequences solves long ones is asked of it.

        Args:
            factor: How many times as long; 1 for the task itself.

        Raises:
            ValueError: If it has no such length.
        """
        if not any(field.name == "seq_len" for field in dataclasses.fields(self)):  # type: ignore[arg-type]
            raise ValueError(
                f"{type(self).__name__}: expected a field seq_len to change, found none; write "
                "lengthened(factor)."
            )
        return dataclasses.replace(self, seq_len=factor * self.seq_len)  # type: ignore[type-var]

    def arrays(self, split: str) -> PyTree:
        """Nothing: there is no data set."""
        del split
        return ()

    def size(self, split: str) -> int | None:
        """None: the examples never end."""
        del split
        return None

    def picks(self, key: PRNGKeyArray, step: Int[Array, ""], count: int) -> Array:
        """A key per example."""
        return jax.random.split(jax.random.fold_in(key, step), count)

    def held_out(self, key: PRNGKeyArray, index: Int[Array, ""]) -> Array:
        """The key of a held-out example."""
        return jax.random.fold_in(key, index)

    def example(self, pick: Array, data: PyTree) -> Example:
        """The example of a key."""
        del data
        return self.sample(pick)


class Resident(Task):
    """A task with a data set that fits on the device: its arrays are arguments of the program.

    You write `arrays` and `read`. Every epoch goes through the training split in an order of its
    own, drawn from the run's key; what is left at the end of an epoch is too little for a batch
    and is passed over.

    With ``streamed`` set (make it an option), the training split stays on the host, and grain sends
    the rows of a block of steps in a shuffled order. That order is the same for all members of a
    program, whatever their seeds; it depends on the step alone, so that a run resumes anywhere.
    """

    @abc.abstractmethod
    def read(self, row: PyTree) -> Example:
        """The example of one row of `arrays`; pure, and called under ``jit`` and ``vmap``.

        Args:
            row: `arrays` without their first axis.
        """

    def size(self, split: str) -> int | None:
        """Number of rows."""
        return len(jax.tree.leaves(self.arrays(split))[0])

    def row(self, arrays: PyTree, index: int) -> PyTree:
        """A row on the host, as `read` takes it.

        Args:
            arrays: What `arrays` gave.
            index: Its number, from 0.
        """
        return jax.tree.map(lambda rows: np.asarray(rows[index]), arrays)

    def block(self, step: int, steps: int, count: int) -> PyTree:
        """The training split; if ``streamed``, the rows of these steps, one after the other."""
        if not self.streamed:
            return self.arrays(TRAIN)
        rows = list(stream.rows(self, step * count, (step + steps) * count))
        return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)

    def picks(self, key: PRNGKeyArray, step: Int[Array, ""], count: int) -> Array:
        """Indices of rows."""
        if self.streamed:
            return step * count + jnp.arange(count, dtype=step.dtype)
        size = self.size(TRAIN) or 0
        per_epoch = size // count
        own = jax.random.fold_in(key, step // per_epoch)
        return shuffled(own, step % per_epoch * count + jnp.arange(count, dtype=jnp.int32), size)

    def held_out(self, key: PRNGKeyArray, index: Int[Array, ""]) -> Array:
        """The index itself."""
        del key
        return index

    def example(self, pick: Array, data: PyTree) -> Example:
        """The example of an index."""
        return self.read(jax.tree.map(lambda rows: rows[pick], data))

    def drawn(self, pick: Array, data: PyTree) -> Example:
        """The example of an index; if ``streamed``, of a row that was sent for this block."""
        if not self.streamed:
            return self.example(pick, data)
        # Blocks begin at multiples of their size, so the rows that were sent begin at such a pick.
        return self.read(jax.tree.map(lambda rows: rows[pick % len(rows)], data))


class Windows(Resident):
    """A task whose examples are stretches of long arrays, such as a text or a series of values.

    You write `arrays`, whose leaves have time as their first axis, ``window``, the steps of an
    example with all that is asked about it, and `read` of one such stretch. An epoch has every
    window once, in an order of its own. Held-out windows come in a fixed random order, so the first
    few are a fair sample of all.
    """

    window: int
    stride: int = 1

    def size(self, split: str) -> int | None:
        """Number of windows."""
        steps = len(jax.tree.leaves(self.arrays(split))[0])
        return max(0, (steps - self.window) // self.stride + 1)

    def held_out(self, key: PRNGKeyArray, index: Int[Array, ""]) -> Array:
        """The number of a window."""
        del key
        return jnp.asarray(permutation(0, self.size(HELD_OUT) or 0), jnp.int32)[index]

    def row(self, arrays: PyTree, index: int) -> PyTree:
        """A window on the host."""
        own = slice(index * self.stride, index * self.stride + self.window)
        return jax.tree.map(lambda leaf: np.asarray(leaf[own]), arrays)

    def example(self, pick: Array, data: PyTree) -> Example:
        """The example of a window."""
        first = pick * self.stride
        return self.read(
            jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, self.window), data)
        )


def examples(
    task: Task, split: str, count: int, key: PRNGKeyArray, data: PyTree | None = None
) -> Example:
    """The first held-out or training examples, as a batch on the device.

    Args:
        task: The task.
        split: `TRAIN` or `HELD_OUT`.
        count: How many.
        key: Key of the held-out examples, or of the data of a run.
        data: `Task.arrays` of the split, where a compiled program has them as an argument; by
            default they become constants.

    Returns:
        A batch of ``count``.
    """
    if split == TRAIN:
        picks = task.picks(key, jnp.zeros((), jnp.int32), count)
    else:
        picks = jax.vmap(lambda index: task.held_out(key, index))(jnp.arange(count))
    if data is None:
        data = jax.tree.map(lambda rows: jnp.asarray(np.asarray(rows)), task.arrays(split))
    return jax.vmap(lambda pick: task.example(pick, data))(picks)
