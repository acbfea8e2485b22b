"""How large a model is, and which model has a given size, without allocating either."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp

from dsfjax.core import KernelSystem, System


@runtime_checkable
class Parameterized(Protocol):
    """Anything with ``init(key) -> params``."""

    @property
    def init(self) -> Callable[..., Any]:
        """``init(key) -> params``."""
        ...


@runtime_checkable
class SequenceModel(Parameterized, Protocol):
    """Pure functions of parameters on one sequence of token ids, as `dsfjax.nn.Model` has them.

    ``apply(params, tokens (L,)) -> logits``; ``systems(params, tokens) -> ((System, u), …)``, one
    per layer; ``past(params)``, what is carried next to their states; ``init_state(params,
    max_length) -> state``; ``prefill(params, tokens, state)`` and ``step(params, token (),
    state)``, both to ``(logits, state)``.
    """

    @property
    def apply(self) -> Callable[..., Any]:
        """Logits of a sequence."""
        ...

    @property
    def systems(self) -> Callable[..., Any]:
        """The systems of all layers."""
        ...

    @property
    def past(self) -> Callable[..., Any]:
        """What is next to the states before the first token."""
        ...

    @property
    def init_state(self) -> Callable[..., Any]:
        """The state before the first token."""
        ...

    @property
    def prefill(self) -> Callable[..., Any]:
        """Logits and state after a sequence."""
        ...

    @property
    def step(self) -> Callable[..., Any]:
        """Logits and state after one token."""
        ...


M = TypeVar("M", bound=Parameterized)


class Match(NamedTuple):
    """The model whose size is nearest to a target.

    Attributes:
        knob: The integer from which it was built.
        size: Its size.
    """

    knob: int
    size: int


def abstract_parameters(model: Parameterized) -> Any:
    """Shapes and dtypes of the parameters of a model."""
    # Of one function, JAX remembers what it has traced for `jax.jit`, not for `jax.eval_shape`.
    return jax.jit(model.init).eval_shape(jax.random.key(0))


def num_parameters(model: Parameterized) -> int:
    """Number of parameters of a model, without allocating them.

    Args:
        model: Any object with ``init(key) -> params``, such as a `dsfjax.nn.Model`.

    Returns:
        The number of elements of all arrays.
    """
    return sum(math.prod(x.shape) for x in jax.tree.leaves(abstract_parameters(model)))


def state_size(model: SequenceModel, length: int) -> int:
    """Numbers that the recurrences of all layers carry after ``length`` tokens.

    Per layer, N for a finite system, whatever the length, and the cache for a kernel system; with
    what the architecture carries next to it (`Architecture.past`), such as the second state of GSA
    and MesaNet or the running maximum of mLSTM. A complex number counts as one. Positions,
    convolution tails and the channel of a summed normaliser are not counted.

    Args:
        model: A model.
        length: Tokens before.

    Returns:
        The sum over the layers.
    """
    states = sum(system.state_size(length) for system in _abstract_systems(model))
    past = jax.jit(model.past).eval_shape(abstract_parameters(model))
    next_to = (x for x in jax.tree.leaves(past) if jnp.issubdtype(x.dtype, jnp.inexact))
    return states + sum(math.prod(x.shape) for x in next_to)


def cache_equivalent(model: SequenceModel, length: int) -> float:
    r"""The number of tokens whose keys and values take as much room as the state.

    What a layer writes for a token is its key b_t and its value, G·n + H·p numbers (the token
    itself where B is dense); a cache of them reaches the size of the state, H·n·p, after np/(n + p)
    tokens if G = H. Below this number of tokens a cache of the same widths is the smaller memory.

    Args:
        model: A model.
        length: Tokens before; the answer for a model of kernel systems alone.

    Returns:
        `state_size` over the numbers written per token, all layers.
    """
    return state_size(model, length) / sum(s.slot_size for s in _abstract_systems(model))


def match_size(
    build: Callable[[int], M],
    target: int | float,
    measure: Callable[[M], int] = num_parameters,
    *,
    multiple: int = 1,
    largest: int = 2**20,
) -> Match:
    """Find the integer from which a model of a given size is built.

    Args:
        build: Builds a model from an integer: its width, its layers, its state expansion; the size
            must not shrink as it grows.
        target: The size wanted.
        measure: Size of a model; `num_parameters`, or `state_size` at the length of a task.
        multiple: Only multiples of this are tried.
        largest: Where to give up.

    Returns:
        The `Match` nearest to the target.

    Raises:
        ValueError: If not even the largest integer reaches the target.

    Numerics:
        O(log knob) traced models; nothing is allocated.

    Example:
        A square matrix of about 70 million numbers. For models, ``build`` is ``lambda d:
        nn.build(nn.ModelConfig(…, d_model=d))``; for the state of a cache at 512 tokens the target
        is ``state_size(other, 512)`` and the measure ``lambda m: state_size(m, 512)``.

        >>> from types import SimpleNamespace
        >>> def build(n):
        ...     return SimpleNamespace(init=lambda key: jnp.zeros((n, n)))
        >>> match_size(build, 70e6, multiple=64)
        Match(knob=8384, size=70291456)
    """
    sizes: dict[int, int] = {}

    def size(count: int) -> int:
        if count not in sizes:
            sizes[count] = measure(build(count * multiple))
        return sizes[count]

    low, high = 0, 1
    while size(high) < target:
        low, high = high, 2 * high
        if high * multiple > largest:
            raise ValueError(
                f"match_size: expected a size of {target:,.0f} to be reached, got {size(low):,} at "
                f"{low * multiple}. Raise largest = {largest}, or turn another knob."
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) < target else (low, middle)
    nearest = min((c for c in (low, high) if c), key=lambda c: abs(size(c) - target))
    return Match(nearest * multiple, size(nearest))


def abstract_tokens(model: SequenceModel, *shape: int) -> jax.ShapeDtypeStruct:
    """What a model reads, as shape and dtype.

    Args:
        model: A model; one with ``channels`` above 0 reads values, any other one token ids.
        *shape: Shape of the tokens.

    Returns:
        Token ids of this shape, or values with their channels as the last axis.
    """
    channels = getattr(model, "channels", 0)
    if channels:
        return jax.ShapeDtypeStruct((*shape, channels), jnp.result_type(float))
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _abstract_systems(model: SequenceModel) -> list[System | KernelSystem]:
    tokens = abstract_tokens(model, 1)
    layers = jax.jit(model.systems).eval_shape(abstract_parameters(model), tokens)
    return [system for system, _ in layers]
