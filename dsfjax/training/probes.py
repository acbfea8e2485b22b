r"""Looks inside a model while it trains: spectra, gradients through time, state use, sharpness.

A probe is what ``metrics.jsonl`` has under ``probe`` in the lines of the probed members, every
``probe_every`` steps: those of the first seed at every point of the other axes. It is JSON data,
numbers that are not finite being null::

    sharpness      largest eigenvalue of the Hessian of the loss, 8 held-out sequences
    layers         of each layer, over the first 4 of them:
      modulus      |λ| at the quantiles of QUANTILES
      growing      share of |λ| > 1
      gradient     norm of ∂L/∂h_t in each quarter of the sequence; null without a finite state
      dimension    directions of the state that carry 99 % of the energy; null as above
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from dsfjax import analysis, nn
from dsfjax.core import System
from dsfjax.tasks import HELD_OUT as HELD_OUT_SPLIT
from dsfjax.tasks import Example, Task, examples
from dsfjax.training.config import TrainConfig
from dsfjax.training.gradients import output_gradients
from dsfjax.training.objective import query_loss
from dsfjax.training.sharpness import sharpness
from dsfjax.training.step import HELD_OUT

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# Held-out sequences of the Hessian, and those of them whose systems are read.
BATCH, READ = 8, 4


class _Layers(NamedTuple):
    """Every layer of a model, means over sequences; None without a finite state."""

    modulus: Float[Array, "layers q"]
    growing: Float[Array, " layers"]
    gradient: Float[Array, "layers 4"] | None
    dimension: Float[Array, " layers"] | None


def probed(config: TrainConfig) -> list[int]:
    """The members that are probed: the first seed at every point of the other axes.

    Args:
        config: The run's config.

    Returns:
        Indices of members.

    Examples:
        >>> from dsfjax import tasks
        >>> task = tasks.get(tasks.names()[0], vocab_size=64, seq_len=32)
        >>> model = nn.ModelConfig("ssd", vocab_size=64)
        >>> probed(TrainConfig(task, model, seeds=(5, 6), learning_rates=(1e-3, 1e-2)))
        [0, 2]
    """
    return [i for i, member in enumerate(config.members) if member.seed == config.seeds[0]]


def probe(config: TrainConfig, params: PyTree) -> dict[str, Any]:
    """Look inside a model as it is now.

    Args:
        config: The run's config.
        params: Parameters of one member.

    Returns:
        JSON data, as described above.

    Numerics:
        16 products with the Hessian, forward mode over reverse mode through
        ``method="sequential"``, and the analysis of the systems of four sequences. One compilation
        per model and task.
    """
    steepest, layers = jax.tree.map(np.asarray, _look(config.model, config.task)(params))
    rows = [
        {
            "modulus": [_number(x) for x in layers.modulus[i]],
            "growing": _number(layers.growing[i]),
            "gradient": None if layers.gradient is None else list(map(_number, layers.gradient[i])),
            "dimension": None if layers.dimension is None else _number(layers.dimension[i]),
        }
        for i in range(len(layers.growing))
    ]
    return {"sharpness": _number(steepest), "layers": rows}


@functools.partial(jax.jit, static_argnums=(0, 1))
def held_out(task: Task, count: int) -> Example:
    """The first sequences that training is evaluated on.

    Args:
        task: The task.
        count: How many.

    Returns:
        A batch of them.
    """
    key = jax.random.fold_in(jax.random.key(0), HELD_OUT)
    return examples(task, HELD_OUT_SPLIT, count, key)


@functools.lru_cache(maxsize=32)
def _look(
    config: nn.ModelConfig, task: Task
) -> Callable[[PyTree], tuple[Float[Array, ""], _Layers]]:
    model, batch = nn.build(config), held_out(task, BATCH)
    # Forward mode goes step by step, which dropout on an attention matrix cannot; it is off here.
    plain = dataclasses.replace(config, method="sequential", attention_dropout=0.0)
    stepwise = nn.build(plain)

    @jax.jit
    def look(params: PyTree) -> tuple[Float[Array, ""], _Layers]:
        def loss(params: PyTree) -> Float[Array, ""]:
            return query_loss(stepwise, params, batch, measure=task.measure)[0]

        few = jax.tree.map(lambda leaf: leaf[:READ], batch)
        found = jax.lax.map(functools.partial(_read, model, task, params), few)
        return sharpness(loss, params, jax.random.key(0)), _mean(*found)

    return look


def _read(
    model: nn.Model, task: Task, params: PyTree, example: Example
) -> tuple[analysis.Spectrum, Array | None, Array | None]:
    """Spectrum, gradient and dimension of every layer on one sequence."""
    systems, _ = nn.stack_layers(model.systems(params, example.inputs))
    dy = jnp.stack(output_gradients(model, params, example, measure=task.measure))
    steps = example.inputs.shape[0]

    def read(layer: tuple[Any, Array]) -> tuple[analysis.Spectrum, Array | None, Array | None]:
        system, dy = layer
        found = analysis.spectrum(system, length=steps)
        if not isinstance(system, System):
            return found, None, None
        use = analysis.state_use(system, length=steps)
        dimension = analysis.effective_dimension(use**2).rank
        norms = jnp.linalg.norm(analysis.gradient_norms(system, dy), axis=1)
        quarters = [x.mean() for x in jnp.array_split(norms, 4)]
        return found, jnp.stack(quarters), dimension.astype(norms.dtype)

    return jax.lax.map(read, (systems, dy))


def _mean(spectra: analysis.Spectrum, gradient: Array | None, dimension: Array | None) -> _Layers:
    spectrum = analysis.merge(analysis.merge(spectra, 0), 1)
    return _Layers(
        jnp.exp(jnp.stack([analysis.quantile(spectrum, q) for q in QUANTILES], axis=1)),
        spectrum.growing,
        None if gradient is None else gradient.mean(axis=0),
        None if dimension is None else dimension.mean(axis=0),
    )


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None
