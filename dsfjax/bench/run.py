"""The whole benchmark: the grid, the targets, the lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from dsfjax._util.errors import lacks
from dsfjax._util.limits import cores
from dsfjax.bench import lengths, machine
from dsfjax.bench import roofline as rates
from dsfjax.bench.case import Case, Layer
from dsfjax.bench.contest import contest
from dsfjax.bench.measure import Measurement, measure
from dsfjax.bench.peers.importing import is_installed, load
from dsfjax.bench.roofline import Roofline
from dsfjax.bench.targets import Choice, Verdict, choices, verdicts
from dsfjax.core import Precision


class Results(NamedTuple):
    """Everything that was measured.

    Attributes:
        machine: `dsfjax.bench.machine.describe`.
        roofline: Rates of the device.
        precision: In which ours and the baselines compute.
        quick: Whether sizes were reduced.
        repeats: Rounds.
        rows: The grid, a line per contestant and case.
        verdicts: The targets, and what came of them.
        choices: What "auto" picks, next to the best.
        growth: Times at two lengths.
        latency: Of decoding, at several positions.
        errors: Over long sequences.
        memory: Of a training step over a very long sequence.
    """

    machine: dict[str, Any]
    roofline: Roofline
    precision: str
    quick: bool
    repeats: int
    rows: list[Measurement]
    verdicts: list[Verdict]
    choices: list[Choice]
    growth: list[lengths.Growth]
    latency: list[lengths.Latency]
    errors: list[lengths.LongError]
    memory: list[lengths.LongMemory]

    @property
    def judged(self) -> bool:
        """Whether times and ratios are judged: targets are of float32 at full sizes."""
        return self.precision == "float32" and not self.quick


class Plan(NamedTuple):
    """What to run.

    Attributes:
        cases: Of the grid.
        precision: In which ours and the baselines compute: "float32", "bfloat16" or "tf32".
        repeats: Rounds per case; medians are reported.
        baselines: Whether plain JAX and other packages take part.
        quick: Whether the sizes are reduced ones.
        lengths: Whether to measure how cost grows with the length.
        long: Whether to measure errors over sequences of 100,000 steps, and memory over 2²⁰.
    """

    cases: Sequence[Case | Layer]
    precision: str = "float32"
    repeats: int = 5
    baselines: bool = True
    quick: bool = False
    lengths: bool = True
    long: bool = False

    @property
    def parts(self) -> int:
        """How often progress is told that a part begins."""
        linear, decoded = len(lengths.LINEAR_FAMILIES), len(lengths.DECODED_FAMILIES)
        return 1 + len(self.cases) + self.lengths * (linear + decoded) + self.long * (linear + 1)

    def check(self) -> None:
        """Raise `ValueError` for a precision that is unknown or that this device does not have."""
        Precision.named(self.precision)
        if reason := lacks(self.precision):
            raise ValueError(
                f"bench: expected --precision float32 or bfloat16, got {self.precision}: {reason}."
            )


Began = Callable[[str], Any]
Said = Callable[[str], Any]


def run(plan: Plan, *, began: Began = lambda part: None, said: Said = lambda text: None) -> Results:
    """Run it.

    Args:
        plan: What to run.
        began: Told the name of each part as it begins.
        said: Told what happens within a part.

    Returns:
        What was measured.

    Raises:
        ValueError: For a precision that is unknown or that this device does not have.
    """
    plan.check()
    precision = plan.precision
    described = machine.describe()
    if plan.baselines and is_installed("torch"):
        load("torch").set_num_threads(cores())
        described["torch_threads"] = cores()
    began("roofline")
    roofline = rates.measure(precision, size=256 if plan.quick else 2048)
    rows: list[Measurement] = []
    for case in plan.cases:
        began(case.name)
        found = contest(case, precision, baselines=plan.baselines)
        rows += measure(found, roofline, repeats=plan.repeats, said=said)
    growth: list[lengths.Growth] = []
    latency: list[lengths.Latency] = []
    errors: list[lengths.LongError] = []
    memory: list[lengths.LongMemory] = []
    if plan.lengths:
        short, long = (256, 1024) if plan.quick else (lengths.SHORT, lengths.LONG)
        positions, steps = ((16, 256), 20) if plan.quick else (lengths.POSITIONS, 200)
        for family in lengths.LINEAR_FAMILIES:
            began(f"lengths of {family}")
            growth += lengths.growth(family, precision, short=short, long=long, said=said)
        for family in lengths.DECODED_FAMILIES:
            began(f"decoding of {family}")
            latency.append(lengths.latency(family, precision, positions=positions, repeats=steps))
    if plan.long:
        for family in lengths.LINEAR_FAMILIES:
            began(f"long sequence of {family}")
            length = 1000 if plan.quick else lengths.ERROR_LENGTH
            errors.append(lengths.long_error(family, precision, length=length))
        began("memory of a long sequence")
        memory.append(lengths.memory(precision, length=4096 if plan.quick else lengths.MILLION))
    return Results(
        described,
        roofline,
        precision,
        plan.quick,
        plan.repeats,
        rows,
        verdicts(rows),
        choices(rows),
        growth,
        latency,
        errors,
        memory,
    )
