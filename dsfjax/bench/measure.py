"""Run a contest: errors against float64, times, memory, share of the roofline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dsfjax._util.errors import host, normwise
from dsfjax.bench.contest import Contest, too_large
from dsfjax.bench.contestant import Contestant, Outcome, Prepared, prepare, pull_back
from dsfjax.bench.roofline import Roofline
from dsfjax.bench.timing import take_turns


class Measurement(NamedTuple):
    """One contestant on one case; None where it does not apply.

    Attributes:
        case: Name of the case.
        title: Structure of the case.
        sizes: Sizes of the case, as text.
        contestant: Name.
        side: "ours", "baseline" or "peer".
        chosen: Whether "auto" picks it.
        skipped: Why it was not run.
        forward_ms: Median of the forward pass.
        gradient_ms: Median of forward and backward together, to every input.
        compile_s: Compilation of forward and backward together.
        temporary_bytes: Temporary memory of forward and backward on all devices, by XLA's account.
        total_bytes: The same with inputs, outputs and gradients.
        share: Of the roofline, of forward and backward: see `roofline_share`.
        value_error: Normwise error of the outputs against float64.
        gradient_error: The same of the gradients, the worst over the inputs.
    """

    case: str
    title: str
    sizes: str
    contestant: str
    side: str
    chosen: bool = False
    skipped: str | None = None
    forward_ms: float | None = None
    gradient_ms: float | None = None
    compile_s: float | None = None
    temporary_bytes: int | None = None
    total_bytes: int | None = None
    share: float | None = None
    value_error: float | None = None
    gradient_error: float | None = None


def measure(
    contest: Contest,
    roofline: Roofline,
    *,
    repeats: int,
    said: Callable[[str], Any] = lambda text: None,
) -> list[Measurement]:
    """Run all contestants of a case, who take turns.

    Args:
        contest: The case.
        roofline: Rates of the device.
        repeats: Rounds; a slow contestant may stop earlier, after three.
        said: Told what happens.

    Returns:
        A measurement per contestant, in their order.
    """
    cotangent = cotangent_of(contest)
    expected: Outcome | None = None
    prepared: dict[Contestant, Prepared] = {}
    errors: dict[Contestant, tuple[float, float]] = {}
    skipped = {c: c.missing for c in contest.contestants if c.missing}
    for contestant in contest.contestants:
        if contestant in skipped:
            continue
        if expected is None:
            said("reference in float64")
            expected = reference_outcome(contest, cotangent)
        said(f"compiling {contestant.name}")
        ready = prepare(
            contestant,
            contest.signals,
            cotangent,
            shared=contest.shared,
            with_forward=contestant.side == "ours",
        )
        reason = too_large(ready.total_bytes or 0)
        if reason:
            skipped[contestant] = reason
            continue
        prepared[contestant] = ready
        errors[contestant] = compare(ready.outcome(), expected)
    said("timing")
    runs = {("gradient", c): found.gradient for c, found in prepared.items()}
    runs |= {("forward", c): p.forward for c, p in prepared.items() if p.forward is not None}
    for (kind, _), run in runs.items():
        if kind == "forward":  # the others have run for their errors
            run()
    times = take_turns(runs, repeats=repeats)
    return [
        _row(contest, c, prepared.get(c), errors.get(c), skipped.get(c), times, roofline)
        for c in contest.contestants
    ]


def reference_outcome(contest: Contest, cotangent: np.ndarray) -> Outcome:
    """Outputs and gradients in float64, on the host, one sequence after the other.

    Args:
        contest: The case; its plainest form is run.
        cotangent: Cotangent of the outputs (B, L, d_out).

    Returns:
        Outputs, and gradients by name.
    """
    with jax.enable_x64(True), jax.default_device(host()):
        signals = {k: jnp.asarray(x, jnp.float64) for k, x in contest.signals.items()}
        shared = {k: x for k, x in signals.items() if k in contest.shared}
        own = {k: x for k, x in signals.items() if k not in contest.shared}

        def pull(own: Any, dy: Any) -> Any:
            return pull_back(contest.one)(shared | own, dy)

        run = jax.jit(lambda own, dy: jax.lax.map(lambda args: pull(*args), (own, dy)))
        y, gradients = run(own, jnp.asarray(cotangent, jnp.float64))
        summed = {k: x.sum(axis=0) if k in shared else x for k, x in gradients.items()}
        return np.asarray(y), {k: np.asarray(x) for k, x in summed.items()}


def compare(outcome: Outcome, expected: Outcome) -> tuple[float, float]:
    """Normwise errors of outputs and of gradients, the worst over the inputs.

    Args:
        outcome: Outputs and gradients.
        expected: The same in float64.

    Returns:
        Error of the outputs and of the gradients.
    """
    y, gradients = outcome
    worst = max(normwise(gradients[name], x) for name, x in expected[1].items())
    return normwise(y, expected[0]), worst


def roofline_share(
    contest: Contest, method: str, roofline: Roofline, milliseconds: float
) -> float | None:
    """Share of the roofline of forward and backward.

    Flops and bytes are those of `dsfjax.explain` for the forward pass of this method, times three:
    the backward pass runs the adjoint recurrence and forms the gradients, twice the work, and reads
    the inputs again and writes as many gradients.

    Args:
        contest: The case.
        method: One of ours.
        roofline: Rates of the device.
        milliseconds: Of forward and backward.

    Returns:
        The share, or None for a method that `explain` does not know.
    """
    found = contest.explanations.get(method)
    if found is None:
        return None
    times = 3.0 * contest.case.sizes.batch
    return roofline.share(times * found.flops, times * found.bytes, milliseconds)


def cotangent_of(contest: Contest) -> np.ndarray:
    """A random cotangent of the outputs, (B, L, d_out), the same for all contestants."""
    own = {k: x if k in contest.shared else x[0] for k, x in contest.signals.items()}
    y = jax.eval_shape(contest.one, own)
    rng = np.random.default_rng(1)
    return rng.normal(size=(contest.case.sizes.batch, *y.shape)).astype(y.dtype)


def _row(
    contest: Contest,
    contestant: Contestant,
    prepared: Prepared | None,
    errors: tuple[float, float] | None,
    skipped: str | None,
    times: dict[tuple[str, Contestant], float],
    roofline: Roofline,
) -> Measurement:
    case, ours = contest.case, contestant.side == "ours"
    start = Measurement(
        case.name,
        case.title,
        str(case.sizes),
        contestant.name,
        contestant.side,
        ours and contestant.name == contest.chosen,
        skipped,
    )
    if prepared is None or errors is None:
        return start
    gradient_ms = times["gradient", contestant]
    return start._replace(
        forward_ms=times.get(("forward", contestant)),
        gradient_ms=gradient_ms,
        compile_s=prepared.compile_s,
        temporary_bytes=prepared.temporary_bytes,
        total_bytes=prepared.total_bytes,
        share=roofline_share(contest, contestant.name, roofline, gradient_ms) if ours else None,
        value_error=errors[0],
        gradient_error=errors[1],
    )
