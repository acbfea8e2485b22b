"""What an architecture is: pure functions from parameters and tokens to a `System`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array

from dsfjax.core import KernelSystem, System


class Traits(NamedTuple):
    """What the framework makes visible about an architecture, in words.

    Attributes:
        structure: Of the transition A_t.
        state: State size N as a formula.
        shares: Whether A_t and B_t share parameters, and which.
        bounds: Range of |λ| by construction, of the normalised transition.
        normalizer: Recurrent (η_{t−1}/η_t appears in Λ_t), or absent.
    """

    structure: str
    state: str
    shares: str
    bounds: str
    normalizer: str


class Architecture(NamedTuple):
    """A sequence mixer as pure functions; `dsfjax.systems.get` returns one.

    Attributes:
        init: ``init(key) -> params``, a NamedTuple of arrays. Its distribution is part of the
            definition and documented with each architecture.
        signals: ``signals(params, u (L, d)) -> signals``, the q, k, v, Δ, gates … of the tokens.
        assemble: ``assemble(params, signals, *, reset=None, token_is_value=False) -> System``. With
            ``token_is_value`` the token of the System is the value v itself, for mixers that
            convolve or activate v in between; otherwise it is u and the System holds the value map.
        labels: ``labels(params) -> params`` of strings, "decay" or "no_decay" (weight decay).
        traits: What the comparison table says about it.
    """

    init: Callable[[Array], Any]
    signals: Callable[[Any, Array], Any]
    assemble: Callable[..., Any]
    labels: Callable[[Any], Any]
    traits: Traits

    def system(self, params: Any, u: Array, *, reset: Array | None = None) -> System | KernelSystem:
        """The textbook architecture: ``assemble(params, signals(params, u))``, to be run on ``u``."""
        return self.assemble(params, self.signals(params, u), reset=reset)
