"""Length generalisation: what a trained model makes of sequences longer than it was trained on.

A model with a finite state also has a choice of where to begin. Beyond the training length it is in
states that training has never shown it; how it fares from the final state of another sequence, or
from a random state of the same size, tells whether it is the length or the state that is new.

References:
    Ruiz and Gu (2025), arXiv:2507.02782.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from dsfjax._util.names import choose
from dsfjax.core import KVCache
from dsfjax.nn import Model
from dsfjax.tasks import Generated
from dsfjax.training.evaluation import scores
from dsfjax.training.optimizer import OptimizerConfig
from dsfjax.training.program import Program
from dsfjax.training.step import HELD_OUT

FACTORS = (1, 2, 4, 8, 16, 32, 64)
"""Lengths of the test sequences over that of the training sequences."""
EMPTY, CARRIED, RANDOM = STARTS = ("empty", "carried", "random")
"""Where a sequence begins: without a state, in the final state of another sequence of the training
length, or in a Gaussian one of the mean and the standard deviation of these, entry by entry."""


class LengthScore(NamedTuple):
    """How well a model does at one length.

    Attributes:
        start: Where the sequences begin, one of `STARTS`.
        factor: Their length over the training length.
        length: Their length.
        loss: Mean loss.
        score: The task's metric.
    """

    start: str
    factor: int
    length: int
    loss: float
    score: float


def score_lengths(
    model: Model,
    task: Generated,
    params: PyTree,
    *,
    factors: Sequence[int] = FACTORS,
    starts: Sequence[str] = STARTS,
    num_examples: int = 512,
    batch_size: int = 64,
) -> Iterator[LengthScore]:
    """Evaluate a model on longer and longer sequences, each time on the first held-out examples.

    At factor 1 from an empty state this is the evaluation that training makes.

    Args:
        model: The model.
        task: The task that it was trained on; `Generated.lengthened` makes the longer ones.
        params: Parameters of one member.
        factors: Lengths over the training length.
        starts: Where sequences begin, of `STARTS`. What a model keeps of a sequence grows with it
            where there is softmax attention: such a model begins without a state only.
        num_examples: Examples at each length.
        batch_size: Sequences of the training length at once; of sequences k times as long, a k-th
            as many, so that memory does not grow.

    Yields:
        A score for each length and start that the model has.

    Raises:
        ValueError: If there is no task of such a length, or a start is unknown.

    Numerics:
        One compilation per length.

    Example:
        >>> from dsfjax import nn, tasks
        >>> task = tasks.state_tracking.Parity(seq_len=8)
        >>> config = nn.ModelConfig("linear_attention", task.vocab_size, d_model=4, num_layers=1)
        >>> model = nn.build(config)
        >>> params = model.init(jax.random.key(0))
        >>> scores = score_lengths(model, task, params, factors=(4,), starts=("empty",))
        >>> [(score.start, score.length, 0 <= score.score <= 1) for score in scores]
        [('empty', 32, True)]
    """
    for start in starts:
        choose("start", start, STARTS)
    program = Program(model, task, OptimizerConfig(), batch_size, 1, num_examples)
    begin = _states(program, params, starts)
    for factor in factors:
        longer = dataclasses.replace(
            program, task=task.lengthened(factor), batch_size=max(1, batch_size // factor)
        )
        for start, states in begin.items():
            found = scores(longer, (), params, states)
            score = found[longer.task.metric.name]
            yield LengthScore(start, factor, longer.task.seq_len, found["loss"], score)


def _states(program: Program, params: PyTree, starts: Sequence[str]) -> dict[str, PyTree | None]:
    """For each start the states of all examples; None where there is no state."""
    if not _has_finite_state(program.model, params):
        starts = [start for start in starts if start == EMPTY]
    if set(starts) <= {EMPTY}:
        return dict.fromkeys(starts)
    empty, final = _final_states(program, params)
    # All are of one form, so that a length is compiled once for all of them.
    made = {EMPTY: lambda: empty, CARRIED: lambda: final, RANDOM: lambda: _fitted(empty, final)}
    return {start: made[start]() for start in starts}


def _has_finite_state(model: Model, params: PyTree) -> bool:
    """Whether a sequence can be continued from a state that does not grow with it."""
    if not model.causal:
        return False
    state = jax.eval_shape(lambda params: model.init_state(params, 1), params)
    return not any(isinstance(layer.h, KVCache) for layer in state.layers)


@functools.partial(jax.jit, static_argnums=0)
def _final_states(program: Program, params: PyTree) -> tuple[Any, Any]:
    """The state before and after other held-out examples than those of the evaluation."""
    model, task, count = program.model, program.task, program.eval_examples

    def one(index: Array) -> tuple[Any, Any]:
        key = jax.random.fold_in(jax.random.key(0), HELD_OUT)
        example = task.example(task.held_out(key, count + index), ())
        tokens, start = example.inputs, None
        if example.length is not None:
            # The state wanted is that before the padding, which goes to the left.
            start = len(tokens) - example.length
            tokens = jnp.roll(tokens, start, axis=0)
        empty = model.init_state(params, task.seq_len)
        _, final = model.prefill(params, tokens, empty, start=start)
        # A new sequence begins, so positions are counted anew.
        return empty, final._replace(position=empty.position)

    together = min(program.batch_size, count)
    # Whole batches only, as in the evaluation.
    indices = jnp.arange(-(-count // together) * together)
    found = jax.lax.map(one, indices, batch_size=together)
    return jax.tree.map(lambda leaf: leaf[:count], found)


@jax.jit
def _fitted(empty: Any, final: Any) -> Any:
    """Gaussian states with the moments of the final ones; convolutions begin with zeros."""

    def draw(key: PRNGKeyArray, leaf: Array) -> Array:
        if jnp.iscomplexobj(leaf):
            parts = zip(jax.random.split(key), (leaf.real, leaf.imag), strict=True)
            return jax.lax.complex(*(draw(own, part) for own, part in parts))
        noise = jax.random.normal(key, leaf.shape, leaf.dtype)
        return leaf.mean(axis=0) + leaf.std(axis=0) * noise

    layers = []
    for i, (before, after) in enumerate(zip(empty.layers, final.layers, strict=True)):
        key = jax.random.fold_in(jax.random.key(1), i)
        layers.append(after._replace(h=draw(key, after.h), conv=before.conv))
    return final._replace(layers=tuple(layers))
