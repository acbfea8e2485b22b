"""What an architecture is: pure functions from parameters and tokens to a `System`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import Array
from jaxtyping import Bool, Float, Shaped

from dsfjax.core import KernelSystem, System
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


class Architecture(NamedTuple):
    """A sequence mixer as pure functions; `dsfjax.systems.get` returns one.

    Attributes:
        init: ``init(key) -> params``, a NamedTuple of arrays. Its distribution is part of the
            definition and documented with each architecture.
        signals: ``signals(params, u (L, d)) -> signals``, the q, k, v, Δ, gates … of the tokens.
            With ``reads_start`` it takes a third argument, the mask ``start`` (L,) of the steps
            before which the state is zero; None for a sequence that starts at its first step.
        assemble: ``assemble(params, signals, *, reset=None, token_is_value=False) -> System``. With
            ``token_is_value`` the token of the System is the value v itself, for mixers that
            convolve or activate v in between; otherwise it is u and the System holds the value map.
        labels: ``labels(params) -> params`` of strings, "decay" or "no_decay" (weight decay).
        traits: What the comparison table says about it.
        reads_start: Whether the input map differs at the first step of a document (RG-LRU).
    """

    init: Callable[[Array], Any]
    signals: Callable[..., Any]
    assemble: Callable[..., Any]
    labels: Callable[[Any], Any] = matrices_decay
    traits: Traits = Traits()
    reads_start: bool = False

    def read(
        self,
        params: Any,
        u: Float[Array, "L d"],
        *,
        reset: Bool[Array, " L"] | None = None,
        continued: Bool[Array, ""] | bool = False,
    ) -> Any:
        """The signals of tokens, by an architecture that reads where documents start or does not.

        Args:
            params: As `init` gives them.
            u: Tokens (L, d).
            reset: Boolean (L,) or None.
            continued: Whether ``u`` continues a sequence, with the state that it has left.

        Returns:
            What ``signals`` gives.
        """
        if self.reads_start:
            return self.signals(params, u, starts(u.shape[0], reset, continued))
        return self.signals(params, u)

    def system(
        self,
        params: Any,
        u: Shaped[Array, "L d"],
        *,
        reset: Bool[Array, " L"] | None = None,
        continued: Bool[Array, ""] | bool = False,
    ) -> System | KernelSystem:
        """The textbook architecture: ``assemble(params, signals(params, u))``, to run on ``u``.

        Args:
            params: As `init` gives them.
            u: Tokens (L, d).
            reset: Boolean (L,) or None.
            continued: Whether ``u`` continues a sequence: the System is then run from the state
                that the tokens before have left, and its first step starts no document.

        Returns:
            The System of the sequence ``u``.
        """
        u = real_numbers("system", "tokens u", u, *(x.dtype for x in jax.tree.leaves(params)))
        signals = self.read(params, u, reset=reset, continued=continued)
        system = self.assemble(params, signals, reset=reset)
        return with_length(system, u.shape[0])
