"""What this device can do at most: copy bandwidth and matrix products, measured."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dsfjax.bench.timing import take_turns
from dsfjax.cost.peak import measured


class Roofline(NamedTuple):
    """Rates of the device.

    Attributes:
        bytes_per_s: Bytes of a copy in memory, reads and writes both counted.
        flops_per_s: Operations of a matrix product in the precision of the benchmark.
    """

    bytes_per_s: float
    flops_per_s: float

    def share(self, flops: float, moved: float, milliseconds: float) -> float:
        """The fastest possible time over the time taken.

        Args:
            flops: Floating-point operations.
            moved: Bytes that have to be read or written.
            milliseconds: The time taken.

        Returns:
            max(bytes/bandwidth, flops/rate)/time: 1 at the roofline. It can exceed 1, as data that
            stay in a cache are read faster than memory is copied.

        Example:
            >>> Roofline(1e10, 1e11).share(flops=1e9, moved=1e6, milliseconds=20.0)
            0.5
        """
        least = max(flops / self.flops_per_s, moved / self.bytes_per_s)
        return 1e3 * least / milliseconds


def measure(precision: str = "float32", *, size: int = 2048, repeats: int = 5) -> Roofline:
    """Measure the rates on the default device.

    Args:
        precision: Of the products: "float32", "bfloat16" or "tf32".
        size: Side of the square matrices; the copied array is sixteen times as large as one.
        repeats: Runs of each; of the copy the median counts, of the product the fastest.

    Returns:
        The rates.
    """
    big = jnp.ones((16, size, size), jnp.float32)
    copy = jax.jit(lambda x: -x)
    jax.block_until_ready(copy(big))
    took = take_turns({"copy": lambda: jax.block_until_ready(copy(big))}, repeats=repeats)
    rate = measured(precision, size=size, repeats=repeats)
    return Roofline(2e3 * big.nbytes / took["copy"], rate)
