"""What a model costs: parameters, state, and operations and bytes per token."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dsfjax._util.words import unit
from dsfjax.cost.jaxpr_rules import nbytes, size
from dsfjax.cost.operations import Operations, count_operations
from dsfjax.cost.sizing import (
    SequenceModel,
    abstract_parameters,
    abstract_tokens,
    cache_equivalent,
    state_size,
)

PHASES = ("training", "prefill", "decode")


@dataclasses.dataclass(frozen=True)
class Phase:
    """Cost of one token.

    Attributes:
        flops: Arithmetic operations.
        transcendentals: Evaluations of exp, log, tanh, √ and the like.
        bytes: Bytes read and written, see `count_operations`.
        notes: What the count leaves out, in words.
    """

    flops: float
    transcendentals: float
    bytes: float
    notes: tuple[str, ...]

    @property
    def intensity(self) -> float:
        """Flops per byte: where it is below that of the device, memory is what limits."""
        return self.flops / self.bytes


@dataclasses.dataclass(frozen=True)
class Cost:
    """Answer of `cost`; print it.

    Attributes:
        length: L.
        batch: Sequences at a time.
        parameters: Number of parameters.
        parameter_bytes: Their bytes.
        state_size: Numbers that the recurrences of all layers carry after L tokens.
        cache_equivalent: Tokens whose keys and values take as much room as the state.
        training: Loss and gradient of L tokens, per token; None if not asked for.
        prefill: Running L tokens from an empty state, per token.
        decode: One token more after L.
    """

    length: int
    batch: int
    parameters: int
    parameter_bytes: int
    state_size: int
    cache_equivalent: float
    training: Phase | None
    prefill: Phase | None
    decode: Phase | None

    def __str__(self) -> str:
        lines = [
            f"parameters   {self.parameters:,} ({unit(self.parameter_bytes, 'B')})",
            f"state size   {self.state_size:,} numbers, a cache of {self.cache_equivalent:,.1f} "
            f"tokens (L = {self.length:,})",
        ]
        for name in PHASES:
            if (phase := getattr(self, name)) is not None:
                lines.append(
                    f"{name:<12} {unit(phase.flops, 'flop')} and {unit(phase.bytes, 'B')} per "
                    f"token, {phase.intensity:,.2f} flop/B (batch {self.batch})"
                )
                lines += [f"             {note}" for note in phase.notes]
        return "\n".join(lines)


def cost(
    model: SequenceModel,
    length: int,
    *,
    batch: int = 1,
    phases: tuple[str, ...] = PHASES,
) -> Cost:
    r"""Parameters, state, and operations and bytes per token in training, prefill and decoding.

    Only shapes are traced, so a model of billions of parameters costs no memory.

    Args:
        model: A `dsfjax.nn.Model`, or any object with its functions (`SequenceModel`).
        length: L, tokens of a sequence; for decoding, tokens before the one counted, whose state is
            allocated for L + 1.
        batch: Sequences at a time: they share the reading of the parameters.
        phases: Which of "training", "prefill", "decode". A classifier has no decoding.

    Returns:
        A `Cost`. Training is the mean cross entropy of the logits and its gradient, without the
        optimiser's own step (a few operations per parameter and step, not per token) and without
        dropout.

    Raises:
        ValueError: For an unknown phase, or one that the model does not have.

    Numerics:
        Counted on the jaxpr by `count_operations`, loops by their number of steps. Where there are
        none, arithmetic is within 10 % of ``compiled.cost_analysis()``, and bytes are 0.75 to 1.1
        times those of a CPU, which copies operands into other layouts; it also copies caches, which
        are counted as updated in place.

    Example:
        >>> from dsfjax import nn, systems
        >>> config = nn.ModelConfig(systems.names()[0], vocab_size=50_000, d_model=4096)
        >>> found = cost(nn.build(config), 2048, phases=("training",))
        >>> round(found.parameters / 1e6), found.training.flops > 6 * found.parameters
        (541, True)
    """
    for phase in phases:
        if phase not in PHASES:
            raise ValueError(f"cost: expected phases among {PHASES}, got {phase!r}.")
    params = abstract_parameters(model)
    leaves = jax.tree.leaves(params)
    counts = {p: _COUNTS[p](model, params, length, batch) for p in PHASES if p in phases}
    return Cost(
        length=length,
        batch=batch,
        parameters=sum(map(size, leaves)),
        parameter_bytes=sum(map(nbytes, leaves)),
        state_size=state_size(model, length),
        cache_equivalent=cache_equivalent(model, length),
        **{p: counts.get(p) for p in PHASES},
    )


def _training(model: SequenceModel, params: Any, length: int, batch: int) -> Phase:
    def loss(params: Any, tokens: Any) -> Any:
        logits = jax.vmap(lambda t: model.apply(params, t))(tokens)
        labels = jnp.zeros(logits.shape[:-1], jnp.int32)
        chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - chosen)

    tokens = abstract_tokens(model, batch, length)
    return _per_token(count_operations(jax.value_and_grad(loss), params, tokens), batch * length)


def _prefill(model: SequenceModel, params: Any, length: int, batch: int) -> Phase:
    def read(params: Any, tokens: Any) -> Any:
        # What reads both ways has the whole sequence or nothing: no state continues from it.
        if not getattr(model, "causal", True):
            return model.apply(params, tokens)
        return model.prefill(params, tokens, model.init_state(params, length))

    def run(params: Any, tokens: Any) -> Any:
        return jax.vmap(lambda t: read(params, t))(tokens)

    tokens = abstract_tokens(model, batch, length)
    return _per_token(count_operations(run, params, tokens), batch * length)


def _decode(model: SequenceModel, params: Any, length: int, batch: int) -> Phase:
    state = jax.eval_shape(lambda p: model.init_state(p, length + 1), params)
    states = jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch, *x.shape), x.dtype), state)
    tokens = abstract_tokens(model, batch)
    run = jax.vmap(model.step, in_axes=(None, 0, 0))
    return _per_token(count_operations(run, params, tokens, states), batch)


def _per_token(found: Operations, tokens: int) -> Phase:
    flops, transcendentals, moved, notes = found
    return Phase(flops / tokens, transcendentals / tokens, moved / tokens, notes)


_COUNTS: dict[str, Callable[[SequenceModel, Any, int, int], Phase]] = {
    "training": _training,
    "prefill": _prefill,
    "decode": _decode,
}
