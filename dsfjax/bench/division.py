"""A batch cut over the devices of this process, as training does: a CPU counts as one per core."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

CUT, WHOLE = PartitionSpec("batch"), PartitionSpec()


class Division(NamedTuple):
    """Which devices take parts of a batch.

    Attributes:
        devices: The devices.
        shared: Names of signals without a batch axis.
    """

    devices: tuple[Any, ...]
    shared: tuple[str, ...] = ()

    def place(self, tree: Any, *, cut: bool) -> Any:
        """Arrays on the devices, cut along their first axis or whole."""
        where = NamedSharding(self._mesh(), CUT if cut else WHOLE)
        return jax.tree.map(lambda x: jax.device_put(jnp.asarray(x), where), tree)

    def signals(self, signals: Mapping[str, Any]) -> dict[str, Array]:
        """Signals on the devices."""
        return {k: self.place(x, cut=k not in self.shared) for k, x in signals.items()}

    def forward(self, function: Callable[..., Array], names: Mapping[str, Any]) -> Any:
        """``function(signals) -> y`` of the whole batch, every device computing its part."""
        return self._over(function, (self._specs(names),), CUT)

    def gradient(self, pull_back: Callable[..., Any], names: Mapping[str, Any]) -> Any:
        """``pull_back(signals, cotangent) -> (y, gradients)``; those of shared signals summed."""

        def run(signals: Mapping[str, Array], cotangent: Array) -> tuple[Array, dict[str, Array]]:
            y, gradients = pull_back(signals, cotangent)
            return y, {
                k: jax.lax.psum(x, "batch") if k in self.shared else x for k, x in gradients.items()
            }

        specs = self._specs(names)
        return self._over(run, (specs, CUT), (CUT, specs))

    def _specs(self, names: Mapping[str, Any]) -> dict[str, PartitionSpec]:
        return {name: WHOLE if name in self.shared else CUT for name in names}

    def _over(self, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Any:
        # Unchecked: the check would ask the loops of the baselines to mark what they start from.
        return jax.shard_map(
            function, mesh=self._mesh(), in_specs=in_specs, out_specs=out_specs, check_vma=False
        )

    def _mesh(self) -> Mesh:
        return Mesh(np.array(self.devices), ("batch",))


def divide(batch_size: int, shared: tuple[str, ...] = ()) -> Division:
    """As many devices as divide the batch evenly.

    Args:
        batch_size: Sequences.
        shared: Names of signals without a batch axis.

    Returns:
        The division.

    Example:
        >>> len(divide(1).devices)
        1
    """
    devices = jax.local_devices()
    count = next(k for k in range(len(devices), 0, -1) if batch_size % k == 0)
    return Division(tuple(devices[:count]), shared)
