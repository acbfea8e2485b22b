"""Rows of a training split in a shuffled order that any index of it gives: sent block by block."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from jaxtyping import PyTree

if TYPE_CHECKING:
    from dsfjax.tasks.supply import Resident

THREADS = 4
"""Threads that read rows. They only copy arrays on the host: nothing of JAX runs in them."""


def rows(task: Resident, first: int, last: int) -> Iterator[PyTree]:
    """Training rows by their place in an endless, shuffled order.

    Every epoch has an order of its own, made from its number: so the row at a place is known
    without the ones before it, and a run that is resumed in mid-epoch reads on where it was.

    Args:
        task: The task; its ``row`` gives a row by number.
        first: The first place.
        last: The place after the last.

    Yields:
        The rows.

    Raises:
        ImportError: Without grain.
    """
    grain = _grain()
    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=4 * THREADS)
    yield from _order(task, task.provenance())[first:last].to_iter_dataset(options)


class _Source:
    """A task's training rows as grain reads them."""

    def __init__(self, task: Resident) -> None:
        self._task, self._size = task, task.size("train") or 0
        self._arrays = task.arrays("train")

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> PyTree:
        return self._task.row(self._arrays, int(index))


@functools.lru_cache(maxsize=8)
def _order(task: Resident, data: str) -> Any:
    del data  # which files its rows come from: an equal task may have been given others
    return _grain().MapDataset.source(_Source(task)).seed(0).shuffle().repeat()


def _grain() -> Any:
    try:
        import grain
    except ImportError as error:
        raise ImportError(
            "a streamed task reads with grain, which is not installed; pip install 'dsfjax[data]', "
            "or use streamed=False."
        ) from error
    return grain
