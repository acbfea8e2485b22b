"""The speeds that are aimed at, next to the speeds that were measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dsfjax.bench.case import ASSOCIATIVE, LOOP, QUADRATIC
from dsfjax.bench.measure import Measurement

PEERS = "other packages"
# "auto" is to be within this factor of the best method, everywhere.
AUTO = 1.3
TEMPORARY, TOTAL = "temporary_bytes", "total_bytes"


class Target(NamedTuple):
    """A target for one case.

    Attributes:
        what: The target in words.
        case: Name of the case.
        against: Name of a contestant, or `PEERS` for the fastest of the other packages.
        wanted: How many times as much as ours the contestant takes, at least.
        of: Field of `Measurement` that is compared.
        ours: One of our methods; None for the one that "auto" picks.
    """

    what: str
    case: str
    against: str
    wanted: float
    of: str = "gradient_ms"
    ours: str | None = None

    @property
    def unit(self) -> str:
        """Of the figures of a `Verdict`."""
        return {"gradient_ms": "ms", "compile_s": "s", TEMPORARY: "MiB", TOTAL: "MiB"}[self.of]


class Verdict(NamedTuple):
    """A target and what came of it; None where a contestant did not run.

    Attributes:
        target: The target.
        ours: Our figure, in the `Target.unit`.
        theirs: That of the contestant.
        ratio: The second over the first.
        reached: Whether the ratio is as wanted.
        errors: Of ours, value and gradient, against float64.
        missing: Why there is no ratio.
    """

    target: Target
    ours: float | None = None
    theirs: float | None = None
    ratio: float | None = None
    reached: bool | None = None
    errors: tuple[float, float] | None = None
    missing: str | None = None


def _jla(name: str) -> str:
    return f"jax-linear-attention {name}, chunked (JAX)"


TARGETS = (
    Target("scalar decay, time", "ssd", ASSOCIATIVE, 40),
    Target("scalar decay, time", "ssd", LOOP, 10),
    Target("scalar decay, temporary memory", "ssd", ASSOCIATIVE, 40, TEMPORARY),
    Target("scalar decay, time", "ssd-256", QUADRATIC, 0.9),
    Target("scalar decay, time", "ssd", QUADRATIC, 4),
    Target("scalar decay, time", "ssd-4096", QUADRATIC, 15),
    Target("decay per state, time", "gla", ASSOCIATIVE, 25),
    Target("S6, time", "s6", ASSOCIATIVE, 15),
    Target("S6, time", "s6", PEERS, 6),
    Target("S6, all memory", "s6", ASSOCIATIVE, 50, TOTAL),
    Target("diagonal, n = 1, time", "rg_lru", ASSOCIATIVE, 3),
    Target("diagonal + rank 1, time", "dplr", "sequential", 10, ours="chunked"),
    Target("SSD layer, time", "mamba2", PEERS, 4),
    Target("S6 layer, time", "mamba", PEERS, 40),
    *(
        Target(f"{what}, time", case, f"FLA {name}, chunked (PyTorch)", wanted)
        for what, case, name, wanted in (
            ("simple GLA", "simple_gla", "simple_gla", 2),
            ("linear attention", "linear_attention", "linear_attn", 1.5),
            ("delta rule", "delta_rule", "delta_rule", 2),
            ("gated delta rule", "gated_delta_rule", "gated_delta_rule", 2),
            ("KDA", "kda", "kda", 5),
        )
    ),
    *(
        Target(f"{what}, {measure}", f"{case}{shape}", _jla(name), least, of)
        for what, case, name, faster, smaller in (
            ("simple GLA", "simple_gla", "simple_gla", 1.5, 1),
            ("GLA", "gla-fla", "gla", 4, 3),
            ("delta rule", "delta_rule", "delta_rule", 2, 1),
            ("gated delta rule", "gated_delta_rule", "gated_delta_rule", 2, 1),
            ("KDA", "kda", "kda", 4, 3),
            ("RWKV-7", "rwkv7", "rwkv7", 2, 3),
            ("Mamba-2", "mamba2-ssd", "simple_gla as Mamba-2", 1.5, 1),
        )
        for shape in ("", "-heads")
        for measure, least, of in (
            ("time", faster, "gradient_ms"),
            ("all memory", smaller, TOTAL),
            ("compilation", 1, "compile_s"),
        )
    ),
)


def verdicts(measured: Sequence[Measurement], targets: Sequence[Target] = TARGETS) -> list[Verdict]:
    """Compare what was measured with what is aimed at.

    Args:
        measured: Rows of all cases that were run.
        targets: The targets.

    Returns:
        A verdict for each target of a case that was run.
    """
    run = {m.case for m in measured}
    return [_verdict(target, measured) for target in targets if target.case in run]


def _verdict(target: Target, measured: Sequence[Measurement]) -> Verdict:
    rows = [m for m in measured if m.case == target.case]
    ours = [
        m
        for m in rows
        if m.side == "ours" and (m.chosen if target.ours is None else m.contestant == target.ours)
    ]
    if target.against == PEERS:
        theirs = [m for m in rows if m.side == "peer"]
    else:
        theirs = [m for m in rows if m.contestant == target.against]
    for found, name in ((ours, target.ours or "auto"), (theirs, target.against)):
        if not any(_figure(m, target) is not None for m in found):
            reasons = sorted({m.skipped for m in found if m.skipped})
            return Verdict(target, missing="; ".join(reasons) or f"{name!r} does not run here")
    mine, best = (
        min(found, key=lambda m: _figure(m, target) or float("inf")) for found in (ours, theirs)
    )
    a, b = _figure(mine, target), _figure(best, target)
    assert a is not None and b is not None
    assert mine.value_error is not None and mine.gradient_error is not None
    errors = (mine.value_error, mine.gradient_error)
    named = target._replace(against=best.contestant)
    return Verdict(named, a, b, b / a, b / a >= target.wanted, errors)


def _figure(row: Measurement, target: Target) -> float | None:
    """In the unit of the target."""
    value = getattr(row, target.of)
    return value if value is None or target.unit != "MiB" else max(value, 1) / 2**20


class Choice(NamedTuple):
    """What "auto" picks for a case, next to the fastest method.

    Attributes:
        case: Name of the case.
        auto: The method that is picked.
        best: The fastest one, forward and backward.
        gradient: Time of the one over that of the other, forward and backward.
        forward: The same for the forward pass, against its own fastest method.
        within: Whether both are within `AUTO`.
    """

    case: str
    auto: str
    best: str
    gradient: float
    forward: float
    within: bool


def choices(measured: Sequence[Measurement]) -> list[Choice]:
    """Compare "auto" with the best of our methods, case by case.

    Args:
        measured: Rows of all cases that were run.

    Returns:
        A line per case with more than one method.
    """
    found = []
    for case in dict.fromkeys(m.case for m in measured):
        rows = [m for m in measured if m.case == case and m.side == "ours" and not m.skipped]
        auto = next((m for m in rows if m.chosen), None)
        if auto is None or len(rows) < 2:
            continue
        best = min(rows, key=_gradient_ms)
        gradient = _gradient_ms(auto) / _gradient_ms(best)
        forward = _forward_ms(auto) / min(map(_forward_ms, rows))
        within = max(gradient, forward) <= AUTO
        found.append(Choice(case, auto.contestant, best.contestant, gradient, forward, within))
    return found


def worst_errors(measured: Sequence[Measurement]) -> tuple[Measurement, Measurement] | None:
    """The rows of ours with the largest error of outputs and of gradients.

    Args:
        measured: Rows of all cases that were run.

    Returns:
        Two rows, or None if nothing of ours has run.
    """
    ours = [m for m in measured if m.side == "ours" and m.value_error is not None]
    if not ours:
        return None
    return (
        max(ours, key=lambda m: m.value_error or 0.0),
        max(ours, key=lambda m: m.gradient_error or 0.0),
    )


def _gradient_ms(row: Measurement) -> float:
    assert row.gradient_ms is not None
    return row.gradient_ms


def _forward_ms(row: Measurement) -> float:
    assert row.forward_ms is not None
    return row.forward_ms
