"""How many members fit into memory, which is known before the first is run."""

import math
from collections.abc import Sequence

import jax

from dsfjax._util import limits
from dsfjax.training.compilation import compile_program, template
from dsfjax.training.layout import Device, Layout, layout
from dsfjax.training.program import Program


class MemoryShortage(ValueError):
    """A program of which not even one member fits."""


def fit(
    program: Program,
    num_members: int,
    devices: Sequence[Device],
    *,
    memory: int,
    at_most: int | None = None,
    dropout: bool = False,
    quick: bool = False,
) -> Layout:
    """The layout with as many members at once as fit into memory.

    The compiler says how much a slice takes before anything is allocated. If it is too much, the
    slice is made smaller in proportion and compiled again, until it fits.

    Args:
        program: The program.
        num_members: How many members it has.
        devices: The devices.
        memory: Bytes that it may take on each device.
        at_most: How many members may be computed at once, whatever fits; None for no such limit.
        dropout: Whether members have a dropout rate of their own.
        quick: Compile with few optimisations.

    Returns:
        The layout, whose program is compiled now.

    Raises:
        MemoryShortage: If not even one member per device fits.
    """
    size = program.batch_size
    where = layout(num_members, devices, at_most=at_most, batch_size=size, quick=quick)
    while True:
        needed = compile_program(program, where, dropout=dropout).bytes
        needed += _parked(program, where, dropout)
        if needed <= memory:
            return where
        per_device = where.slice_size // where.num_groups
        if per_device == 1:
            raise MemoryShortage(
                f"expected one member per device to fit into {memory / 2**20:.0f} MiB, but it "
                f"takes {needed / 2**20:.0f} MiB; allow more memory, or make batch_size or the "
                "model smaller"
            )
        fewer = min(per_device - 1, max(1, int(per_device * memory / needed)))
        where = layout(
            num_members,
            devices,
            at_most=fewer * where.num_groups,
            batch_size=size,
            quick=quick,
        )


def budget(devices: Sequence[Device]) -> int:
    """Bytes that a program may take on each of these devices: 80 % of what there is.

    What there is, is what the device reports; where it reports nothing, as CPUs do, the memory that
    this process may use, of which each of its devices has an equal part.

    Args:
        devices: The devices.

    Returns:
        Bytes; the same whenever it is asked for.

    Examples:
        >>> budget(jax.devices()) > 2**20
        True
    """
    local = [device for device in devices if device.process_index == jax.process_index()]
    stats = local[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(0.8 * stats["bytes_limit"])
    return int(0.8 * limits.memory() / len(local))


def _parked(program: Program, where: Layout, dropout: bool) -> int:
    """Bytes of the slices that wait on the host, where that is the device's own memory."""
    if where.num_slices == 1 or where.devices[0].platform != "cpu":
        return 0
    carry = template(program, where.num_members - where.slice_size, dropout=dropout)
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(carry))
    return size // len(where.devices)
