"""A contestant: one way to compute a function and its gradients, ready to be run often."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from dsfjax.bench.division import divide
from dsfjax.bench.peers.importing import load
from dsfjax.bench.signals import Signals

Function = Callable[[Mapping[str, Any]], Any]
Outcome = tuple[np.ndarray, dict[str, np.ndarray]]


class Contestant(NamedTuple):
    """A way to compute a function of signals.

    Attributes:
        name: As the tables name it.
        side: "ours", "baseline" (plain JAX) or "peer" (another package).
        framework: "jax" or "torch".
        load: Gives ``function(signals) -> y`` of the whole batch.
        missing: Why it cannot run here, or None.
    """

    name: str
    side: str
    framework: str
    load: Callable[[], Function]
    missing: str | None = None


class Prepared(NamedTuple):
    """A contestant that has been compiled, with its inputs in place.

    Attributes:
        forward: Runs the forward pass and waits for it; None where it is not timed.
        gradient: Runs forward and backward, to every signal, and waits.
        outcome: Runs it and gives outputs and gradients as arrays of NumPy.
        compile_s: Seconds until `gradient` is compiled, tracing included.
        temporary_bytes: Temporaries of `gradient` on all devices, as XLA reports them; None for
            PyTorch.
        total_bytes: The same with inputs and outputs.
    """

    forward: Callable[[], Any] | None
    gradient: Callable[[], Any]
    outcome: Callable[[], Outcome]
    compile_s: float
    temporary_bytes: int | None
    total_bytes: int | None


def batched(
    one: Callable[[Mapping[str, Array]], Array], shared: tuple[str, ...]
) -> Callable[[Mapping[str, Array]], Array]:
    """A function of one sequence as a function of a batch.

    Args:
        one: ``one(signals) -> y (L, d_out)``.
        shared: Names of signals without a batch axis.

    Returns:
        ``function(signals) -> y (B, L, d_out)``.
    """

    def function(signals: Mapping[str, Array]) -> Array:
        axes = {name: None if name in shared else 0 for name in signals}
        return jax.vmap(one, in_axes=(axes,))(dict(signals))

    return function


def prepare(
    contestant: Contestant,
    signals: Signals,
    cotangent: np.ndarray,
    *,
    shared: tuple[str, ...],
    with_forward: bool,
) -> Prepared:
    """Compile a contestant for these signals.

    Args:
        contestant: One that is not missing.
        signals: By name.
        cotangent: Cotangent of the outputs, (B, L, d_out).
        shared: Names of signals without a batch axis.
        with_forward: Whether to compile the forward pass on its own as well; of JAX only.

    Returns:
        The contestant, ready to run.
    """
    if contestant.framework == "torch":
        return _prepare_torch(contestant.load(), signals, cotangent)
    return Traced(
        contestant, signals, cotangent, shared=shared, with_forward=with_forward
    ).compile()


def pull_back(function: Function) -> Callable[[Mapping[str, Array], Array], tuple[Array, Any]]:
    """``(signals, cotangent) -> (y, gradients)``, forward and backward in one."""

    def both(signals: Mapping[str, Array], cotangent: Array) -> tuple[Array, Any]:
        y, pull = jax.vjp(function, dict(signals))
        return y, pull(cotangent)[0]

    return both


class Traced:
    """A contestant in JAX that has been traced and lowered; `prepare` does all in one.

    Only ``compile`` may run on another thread (see `dsfjax._util.ahead`).

    Args:
        contestant: One that is not missing.
        signals: By name.
        cotangent: Cotangent of the outputs, (B, L, d_out).
        shared: Names of signals without a batch axis.
        with_forward: Whether to have the forward pass on its own as well.
    """

    def __init__(
        self,
        contestant: Contestant,
        signals: Signals,
        cotangent: np.ndarray,
        *,
        shared: tuple[str, ...],
        with_forward: bool,
    ) -> None:
        function, division = contestant.load(), divide(len(cotangent), shared)
        self._inputs = division.signals(signals), division.place(cotangent, cut=True)
        self._num_devices = len(division.devices)
        began = time.perf_counter()
        both = division.gradient(pull_back(function), signals)
        self._gradient = jax.jit(both).lower(*self._inputs)
        self._seconds = time.perf_counter() - began
        self._forward = None
        if with_forward:
            forward = division.forward(function, signals)
            self._forward = jax.jit(forward).lower(self._inputs[0])

    def compile(self) -> Prepared:
        """Compile the programs; nothing is run.

        Returns:
            The contestant, ready to run.
        """
        arrays, dy = self._inputs
        began = time.perf_counter()
        gradient = self._gradient.compile()
        compile_s = self._seconds + time.perf_counter() - began
        forward = None if self._forward is None else self._forward.compile()
        memory: Any = gradient.memory_analysis()
        temporary = total = None
        if memory is not None:  # of one device
            temporary = memory.temp_size_in_bytes * self._num_devices
            total = memory.argument_size_in_bytes + memory.output_size_in_bytes
            total = temporary + total * self._num_devices

        def outcome() -> Outcome:
            return jax.tree.map(np.asarray, gradient(arrays, dy))

        return Prepared(
            None if forward is None else lambda: jax.block_until_ready(forward(arrays)),
            lambda: jax.block_until_ready(gradient(arrays, dy)),
            outcome,
            compile_s,
            temporary,
            total,
        )


def _prepare_torch(function: Function, signals: Signals, cotangent: np.ndarray) -> Prepared:
    torch = load("torch")
    tensors = {name: torch.tensor(x, requires_grad=True) for name, x in signals.items()}
    dy = torch.tensor(cotangent)

    def gradient() -> tuple[Any, Any]:
        y = function(tensors)
        return y, torch.autograd.grad(y, list(tensors.values()), dy)

    def outcome() -> Outcome:
        y, gradients = gradient()
        named = zip(tensors, (x.numpy() for x in gradients), strict=True)
        return y.detach().numpy(), dict(named)

    return Prepared(None, gradient, outcome, 0.0, None, None)
