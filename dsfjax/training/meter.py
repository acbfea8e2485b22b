"""What a run makes of its devices: their memory, and the part of their peak that the model uses."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from dsfjax import nn
from dsfjax.cost.operations import count_operations
from dsfjax.cost.peak import declared, measured
from dsfjax.cost.sizing import abstract_parameters
from dsfjax.tasks import Example, Task
from dsfjax.training.config import TrainConfig
from dsfjax.training.devices import Layout
from dsfjax.training.objective import said
from dsfjax.training.program import held_out_data


class Meter(NamedTuple):
    """Reads what a run makes of its devices.

    Attributes:
        devices: The devices.
        planned: Bytes that the program takes on each device, by the compiler's account.
        per_token: Operations of the model for a token of training; None if they do not matter.
        peak: Operations per second of all devices together; None where nobody knows them.
    """

    devices: tuple[Any, ...]
    planned: int
    per_token: float | None = None
    peak: float | None = None

    def read(self, tokens_per_second: float) -> dict[str, int | float]:
        """The numbers for a line of ``metrics.jsonl``, and for ``result.json``.

        Args:
            tokens_per_second: Training tokens per second, of all devices.

        Returns:
            ``memory_bytes``: the most that one device has held since this process began, where it
            keeps count, else what the program takes by the compiler's account. ``mfu``: the
            operations of the model over those that the devices could do; absent where their peak is
            not known.

        Examples:
            >>> Meter((), 1000, per_token=2e6, peak=1e9).read(100.0)
            {'memory_bytes': 1000, 'mfu': 0.2}
        """
        stats = [device.memory_stats() or {} for device in self.devices]
        held = [one["peak_bytes_in_use"] for one in stats if "peak_bytes_in_use" in one]
        found: dict[str, int | float] = {"memory_bytes": max(held, default=self.planned)}
        if self.per_token is not None and self.peak is not None:
            found["mfu"] = tokens_per_second * self.per_token / self.peak
        return found


def meter(config: TrainConfig, where: Layout, planned: int, *, measure: bool = False) -> Meter:
    """The meter of a run.

    Args:
        config: The run's config.
        where: Its layout.
        planned: Bytes on each device, by the compiler's account.
        measure: Whether to measure the peak of a device of which none is declared, such as a CPU.

    Returns:
        A meter.
    """
    precision = config.model.precision
    rate = declared(where.devices[0], precision)
    peak = None if rate is None else rate * len(where.devices)
    if peak is None and measure:
        # The devices of a CPU share its cores, and a single one measures all of them.
        own = 1 if where.devices[0].platform == "cpu" else jax.local_device_count()
        peak = measured(precision) * own * jax.process_count()
    local = [device for device in where.devices if device.process_index == jax.process_index()]
    per_token = None if peak is None else operations_per_token(config.model, config.task)
    return Meter(tuple(local), planned, per_token, peak)


@functools.lru_cache(maxsize=32)
def operations_per_token(config: nn.ModelConfig | nn.Buildable, task: Task) -> float:
    """Arithmetic operations of a training step, per token: of the loss and its gradient.

    Args:
        config: The model's config.
        task: The task; what an example is, and where it asks.

    Returns:
        Operations, counted on shapes (`dsfjax.cost.count_operations`). What the backward pass
        computes again for want of memory, as with ``remat`` or for blocks of logits, is not in
        them: it is work of the training, not of the model. Nor is the optimiser's step.

    Examples:
        >>> from dsfjax import tasks
        >>> task = tasks.get(tasks.names()[0], vocab_size=32, seq_len=16)
        >>> model = nn.ModelConfig("linear_attention", vocab_size=32, d_model=8, num_layers=1)
        >>> operations_per_token(model, task) > 6 * 8 * 8 * 12
        True
    """
    if isinstance(config, nn.ModelConfig):
        config = dataclasses.replace(config, remat=False)
    model = nn.build(config)
    rows = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), held_out_data(task)
    )

    def first(rows: PyTree) -> Example:
        return task.example(task.held_out(jax.random.key(0), jnp.zeros((), jnp.int32)), rows)

    example = jax.eval_shape(first, rows)

    def loss(params: PyTree, example: Example) -> Array:
        features = model.features(params, example.inputs, **said(example))
        if model.pooled:
            outputs = model.head(params, features, **said(example))[None]
        else:
            outputs = model.head(params, features[example.query_positions])
        return task.measure(outputs, example.targets)["loss"].mean()

    found = count_operations(jax.value_and_grad(loss), abstract_parameters(model), example)
    return found.flops / task.seq_len
