"""What an architecture is: pure functions from parameters and tokens to a `System`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import Array
from jaxtyping import Bool, Float

from dsfjax.core import KernelSystem, System
from dsfjax.core.composition import with_length


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
        assemble: ``assemble(params, signals, *, reset=None, token_is_value=False) -> System``. With
            ``token_is_value`` the token of the System is the value v itself, for mixers that
            convolve or activate v in between; otherwise it is u and the System holds the value map.
        labels: ``labels(params) -> params`` of strings, "decay" or "no_decay" (weight decay).
        traits: What the comparison table says about it.
    """

    init: Callable[[Array], Any]
    signals: Callable[[Any, Array], Any]
    assemble: Callable[..., Any]
    labels: Callable[[Any], Any] = matrices_decay
    traits: Traits = Traits()

    def system(
        self, params: Any, u: Float[Array, "L d"], *, reset: Bool[Array, " L"] | None = None
    ) -> System | KernelSystem:
        """The textbook architecture: ``assemble(params, signals(params, u))``, to run on ``u``.

        Args:
            params: As `init` gives them.
            u: Tokens (L, d).
            reset: Boolean (L,) or None.

        Returns:
            The System of the sequence ``u``.
        """
        system = self.assemble(params, self.signals(params, u), reset=reset)
        return with_length(system, u.shape[0])
