"""What an architecture is: pure functions from parameters and tokens to a `System`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import Array
from jaxtyping import Bool, Float, Int, Shaped

from dsfjax.core import KernelSystem, OuterInput, System
from dsfjax.core.composition import with_length
from dsfjax.core.dtypes import real_numbers
from dsfjax.core.resets import starts


class Traits(NamedTuple):
    """What the framework makes visible about an architecture, in words.

    Attributes:
        structure: Of the transition A_t.
        state: State size N as a formula.
        shares: Whether A_t and B_t share parameters, and which.
        bounds: Range of |λ| by construction, of the normalised transition.
        normalizer: Recurrent (η_{t−1}/η_t appears in Λ_t), or absent.
    """

    structure: str = "not stated"
    state: str = "not stated"
    shares: str = "not stated"
    bounds: str = "not stated"
    normalizer: str = "not stated"


def matrices_decay(params: Any) -> Any:
    """Labels for any parameters: "decay" for what has two or more axes, else "no_decay"."""
    return jax.tree.map(lambda x: "decay" if x.ndim > 1 else "no_decay", params)


def tokens_are_values(params: Any) -> None:
    """The value map of an architecture whose values are its tokens: None."""


class Place(NamedTuple):
    """The position of the next step in its document, where nothing else is carried.

    An architecture with this `Architecture.past` also runs where a sequence is cut over devices,
    since each device knows the position of its first step.

    Attributes:
        index: The position, () integer; 0 before the first step.
    """

    index: Int[Array, ""] | int = 0


class Architecture(NamedTuple):
    """A sequence mixer as pure functions; `dsfjax.systems.get` returns one.

    You write four functions of its parameters; `dsfjax.systems.register` checks that they fit
    together. You get a model that trains, decodes, compares and reports.

    Attributes:
        init: ``init(key) -> params``, a NamedTuple of arrays. Its distribution is part of the
            definition and documented with each architecture.
        signals: ``signals(params, u (L, d)) -> signals``, a NamedTuple of the q, k, Δ, gates … of
            the tokens. Its field ``v`` holds the values, (L, H, p) or whatever flattens to them;
            mixers convolve or activate it, as the other fields, before the System is assembled.
            With ``reads_start`` it takes a third argument, the mask ``start`` (L,) of the steps
            before which the state is zero; None for a sequence that starts at its first step. With
            ``reads_state`` a fourth, the carried state (H, n, p) that the tokens before have left;
            None for zero.
        assemble: ``assemble(params, signals, *, reset=None) -> System``, the System whose tokens
            are the values, (L, r·H·p), row-major: its B has no value map W.
        value_map: ``value_map(params) -> W (r·H·p, d)`` with v_t = W u_t, or None where the tokens
            are the values. It raises where v is not linear in u.
        labels: ``labels(params) -> params`` of strings, "decay" or "no_decay" (weight decay).
        traits: What the comparison table says about it.
        reads_start: Whether the input map differs at the first step of a document (RG-LRU).
        reads_state: Whether the signals depend on the state: those of a cell that is not linear
            (LSTM), which runs step by step to find them. Its values are not linear in the tokens,
            and its sequences cannot be cut over devices.
        past: ``past(params) -> past``, what is carried from step to step next to the state, before
            the first token: a running maximum (mLSTM), the state of a system whose outputs are
            signals of this one (GSA, MesaNet), or a `Place` (rotary positions). None where the
            state is all.
        carry: ``carry(params, signals, *, reset=None, past) -> (System, past)``, with ``past`` that
            of the tokens before and after. ``assemble`` is then this from the initial past.
        solved: ``solved(signals) -> (y, h)``, the outputs (L, d_out) and the last state (H, n, p)
            of a cell whose signals already required running it. They equal those of `dsfjax.scan`
            on the assembled System, and a mixer uses them instead of that scan. None for others.
    """

    init: Callable[[Array], Any]
    signals: Callable[..., Any]
    assemble: Callable[..., Any]
    value_map: Callable[[Any], Array | None] = tokens_are_values
    labels: Callable[[Any], Any] = matrices_decay
    traits: Traits = Traits()
    reads_start: bool = False
    reads_state: bool = False
    past: Callable[[Any], Any] | None = None
    carry: Callable[..., tuple[Any, Any]] | None = None
    solved: Callable[[Any], tuple[Array, Array]] | None = None

    def read(
        self,
        params: Any,
        u: Float[Array, "L d"],
        *,
        reset: Bool[Array, " L"] | None = None,
        continued: Bool[Array, ""] | bool = False,
        h: Shaped[Array, "H n p"] | None = None,
    ) -> Any:
        """The signals of tokens, by an architecture that reads starts and states or does not.

        Args:
            params: As `init` gives them.
            u: Tokens (L, d).
            reset: Boolean (L,) or None.
            continued: Whether ``u`` continues a sequence, with the state that it has left.
            h: That state, as `dsfjax.scan` returned it; only needed with ``reads_state``.

        Returns:
            What ``signals`` gives.

        Raises:
            ValueError: If the architecture reads the state, and there is one that is not given.
        """
        if self.reads_state:
            if h is None and not (isinstance(continued, bool) and not continued):
                raise ValueError(
                    "read: expected the state h of the tokens before, which the signals of this "
                    "architecture depend on, got continued without h; pass the state that scan "
                    "returned."
                )
            return self.signals(params, u, starts(u.shape[0], reset, continued), h)
        if self.reads_start:
            return self.signals(params, u, starts(u.shape[0], reset, continued))
        return self.signals(params, u)

    def advance(
        self,
        params: Any,
        signals: Any,
        *,
        reset: Bool[Array, " L"] | None = None,
        past: Any = None,
    ) -> tuple[System | KernelSystem, Any]:
        """The assembled System, and what is carried next to its state.

        Args:
            params: As `init` gives them.
            signals: As ``signals`` gives them.
            reset: Boolean (L,) or None.
            past: Of the tokens before; None before the first.

        Returns:
            The System that acts on values, and the past after it: None if the state is all.
        """
        if self.carry is None or self.past is None:
            return self.assemble(params, signals, reset=reset), None
        past = self.past(params) if past is None else past
        return self.carry(params, signals, reset=reset, past=past)

    def system(
        self,
        params: Any,
        u: Shaped[Array, "L d"],
        *,
        reset: Bool[Array, " L"] | None = None,
        continued: Bool[Array, ""] | bool = False,
        past: Any = None,
    ) -> System | KernelSystem:
        """The textbook architecture, to run on ``u``: the assembled System with its value map.

        Args:
            params: As `init` gives them.
            u: Tokens (L, d).
            reset: Boolean (L,) or None.
            continued: Whether ``u`` continues a sequence: the System is then run from the state
                that the tokens before have left, and its first step starts no document.
            past: What those tokens have left next to the state (`advance`); None for nothing.

        Returns:
            The System of the sequence ``u``.

        Raises:
            ValueError: If the values are not linear in the tokens (a bias). Then run
                ``assemble(params, signals)`` on ``values(signals)``.
        """
        u = real_numbers("system", "tokens u", u, *(x.dtype for x in jax.tree.leaves(params)))
        signals = self.read(params, u, reset=reset, continued=continued)
        system = self.advance(params, signals, reset=reset, past=past)[0]
        return with_length(with_value_map(system, self.value_map(params)), u.shape[0])

    def system_and_tokens(
        self,
        params: Any,
        u: Shaped[Array, "L d"],
        *,
        reset: Bool[Array, " L"] | None = None,
        continued: Bool[Array, ""] | bool = False,
        h: Shaped[Array, "H n p"] | None = None,
    ) -> tuple[System | KernelSystem, Shaped[Array, "L e"]]:
        """The assembled System of any architecture, and the values to run it on.

        Where values are linear in the tokens, `system` on ``u`` gives the same outputs.

        Args:
            params: As `init` gives them.
            u: Tokens (L, d).
            reset: Boolean (L,) or None.
            continued: As of `system`.
            h: As of `read`.

        Returns:
            The System of the sequence, and its tokens (L, r·H·p).
        """
        u = real_numbers("system", "tokens u", u, *(x.dtype for x in jax.tree.leaves(params)))
        signals = self.read(params, u, reset=reset, continued=continued, h=h)
        system = with_length(self.assemble(params, signals, reset=reset), u.shape[0])
        return system, self.values(signals)

    @staticmethod
    def values(signals: Any) -> Shaped[Array, "L e"]:
        """The tokens of the assembled System: the values v of signals, flattened per step."""
        return signals.v.reshape(signals.v.shape[0], -1)


def with_value_map(system: System | KernelSystem, W: Array | None) -> System | KernelSystem:
    """A System that acts on values, made to read tokens u with v_t = W u_t; as it is for None."""
    if W is None:
        return system
    if isinstance(system, KernelSystem):
        return dataclasses.replace(system, W=W)
    if not isinstance(system.B, OuterInput):
        raise TypeError(
            "system: expected an OuterInput together with a value map, got B of type "
            f"{type(system.B).__name__}. Let value_map return None: a dense B reads tokens."
        )
    return dataclasses.replace(system, B=dataclasses.replace(system.B, W=W))
