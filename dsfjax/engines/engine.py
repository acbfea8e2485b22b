"""`Engine`: a way to run a recurrence. One object in one file, here or in your own code."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from dsfjax.core.system import System
from dsfjax.engines.entering import Entering
from dsfjax.engines.recurrence import Recurrence


class Cost(NamedTuple):
    """What an engine does for the forward pass of one sequence; a model, not a measurement.

    Attributes:
        flops: Floating-point operations, multiply and add counted as two.
        numbers: Numbers held in temporaries at once.
    """

    flops: int
    numbers: int


class Engine(abc.ABC):
    """A way to run a recurrence. Subclass it to bring an engine of your own.

    You write a frozen dataclass with

    * ``name``, which messages and `dsfjax.explain` show;
    * `run`, from a recurrence and the state before it to what it reads of its states and the last
      state. A `Recurrence` has the transition ``A``, the forcing, what is read, and the resets;
    * `against`, if the engine does not run every structure: the reason.

    You get ``dsfjax.scan(system, u, method=MyEngine())``: value maps, normalisers, gates, skips,
    reverse, batches by `jax.vmap`, the right values where an input is NaN or ∞, and gradients (of
    what `run` computes: give it a rule of its own with `jax.custom_vjp` if it holds too much). The
    fields of the dataclass are options; engines that are equal share their compiled programs.

    Attributes:
        name: Of the engine.
        is_stepwise: Whether it takes one step after the other, so that a NaN or ∞ reaches what its
            step feeds and nothing else. Around all other engines `scan` puts a guard.
        has_forward_mode: Whether `jax.jvp` goes through `run`. If not, `scan` says what to do.
        keeps_states: Whether `states_at` does without holding every state.

    Example:
        >>> import dataclasses, jax, dsfjax
        >>> import jax.numpy as jnp
        >>> from dsfjax.engines import advance, by_steps
        >>> @dataclasses.dataclass(frozen=True)
        ... class Unrolled(dsfjax.Engine):
        ...     name = "unrolled"
        ...     times: int = 4
        ...
        ...     def run(self, recurrence, h0):
        ...         arrays, step = by_steps(recurrence, recurrence.length)
        ...         body = lambda h, now: advance(step(now), h)
        ...         h_last, out = jax.lax.scan(body, h0, arrays, unroll=self.times)
        ...         return out, h_last
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5]])))
        >>> ema = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 1))
        >>> y, h = dsfjax.scan(ema, jnp.ones((4, 1)), method=Unrolled())
        >>> y[:, 0].tolist()
        [1.0, 1.5, 1.75, 1.875]
    """

    name: ClassVar[str]
    is_stepwise: ClassVar[bool] = False
    has_forward_mode: ClassVar[bool] = False
    keeps_states: ClassVar[bool] = False

    @property
    def takes_tied(self) -> bool:
        """Whether `run` takes a recurrence that is ``tied``; by default it gets one with a b."""
        return False

    @abc.abstractmethod
    def run(self, recurrence: Recurrence, h0: Array) -> tuple[Array, Array]:
        """Run a recurrence.

        Args:
            recurrence: Of L steps.
            h0: State before it, (H, n, p).

        Returns:
            ``(out, h_last)``: what ``recurrence.read`` gives of the states, s (L, R, H, p) or, with
            ``recurrence.emit_states``, the states (L, H, n, p); and the last state (H, n, p).
        """

    def states_at(
        self, recurrence: Recurrence, h0: Array, steps: Array
    ) -> tuple[Array, Array, Array]:
        """As `run`, and the states after some steps; by default taken from all of them.

        Args:
            recurrence: Of L steps.
            h0: State before it, (H, n, p).
            steps: Which, (K,) integers; NaN for those that are none of the L.

        Returns:
            ``(out, h_last, states)``, with the states (K, H, n, p).
        """
        every = dataclasses.replace(recurrence, emit_states=True)
        states, h_last = self.run(every, h0)
        return recurrence.read(states), h_last, jnp.take(states, steps, axis=0, mode="fill")

    def run_segments(
        self, recurrence: Recurrence, entering: Entering, steps: Array | None = None
    ) -> tuple[Array, ...]:
        """Run a recurrence whose segments have initial states; by default these are a forcing.

        Args:
            recurrence: Of L steps.
            entering: The states that enter, and where.
            steps: Which states are wanted as well, as of `states_at`; None for none.

        Returns:
            As `run`, or with ``steps`` as `states_at`.
        """
        recurrence = entering.write(recurrence)
        if steps is None:
            return self.run(recurrence, entering.zero)
        return self.states_at(recurrence, entering.zero, steps)

    def against(self, system: System, *, states: bool) -> str | None:
        """Why the engine does not run a system, or None if it does.

        Args:
            system: The system.
            states: Whether every state is wanted: by the caller, or by a dense B or C.

        Returns:
            What it does not run, to be read after "does not run".
        """
        return None

    def cost(self, system: System, length: int) -> Cost:
        """What a forward pass over ``length`` steps costs; by default that of single steps."""
        return Cost(length * flops_of_step(system), math.prod(system.carried_shape))


def flops_of_step(system: System) -> int:
    """Operations of one step h ↦ A_t h + b_t ⊗ x_t and of its read-out."""
    A, (heads, n, p) = system.A, system.carried_shape
    states = heads * n * p
    if A.is_diagonal:
        return 5 * states
    if rank := A.low_rank:
        return 6 * states + 4 * states * rank
    return 4 * states + 2 * states * n
