"""What was measured, as tables of text: one form for the terminal, Markdown and CSV."""

from __future__ import annotations

from typing import NamedTuple

from dsfjax._util.errors import BOUNDS
from dsfjax.bench.lengths import MOST_BYTES, MOST_ERROR, MOST_GROWTH
from dsfjax.bench.measure import Measurement
from dsfjax.bench.run import Results
from dsfjax.bench.targets import AUTO, Verdict, worst_errors


class Table(NamedTuple):
    """A table of text.

    Attributes:
        title: What it shows.
        head: Names of the columns.
        rows: As many cells each.
        left: How many columns, from the first, hold words.
    """

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    left: int = 1


def tables(results: Results) -> list[Table]:
    """All tables that have rows, in the order in which they are read.

    Args:
        results: What was measured.

    Returns:
        Grid, targets, "auto", lengths, decoding, errors and memory over long sequences.
    """
    made = [
        grid(results),
        of_targets(results),
        choices(results),
        growth(results),
        latency(results),
        errors(results),
        memory(results),
    ]
    return [table for table in made if table.rows]


def grid(results: Results) -> Table:
    """A line per contestant and case; the method that "auto" picks is marked with a star."""
    head = ("case", "structure", "sizes", "contestant", "forward ms", "fwd+bwd ms", "× auto")
    head += ("temp MiB", "all MiB", "compile s", "roofline", "value err", "gradient err")
    return Table(
        f"Engines and contestants, {results.precision}: medians of {results.repeats} runs",
        head,
        _without_repeats([_grid_row(row, results) for row in results.rows], 3),
        4,
    )


def _without_repeats(rows: list[tuple[str, ...]], columns: int) -> list[tuple[str, ...]]:
    """Blank leading cells that say the same as those of the row above."""
    above = [(), *(row[:columns] for row in rows)]
    return [
        ("",) * columns + row[columns:] if row[:columns] == previous else row
        for row, previous in zip(rows, above, strict=False)
    ]


def _grid_row(row: Measurement, results: Results) -> tuple[str, ...]:
    name = f"{row.contestant} *" if row.chosen else row.contestant
    lead = (row.case, row.title, row.sizes, name)
    if row.skipped:
        return (*lead, f"not run: {row.skipped}", *[""] * 8)
    auto = next((r for r in results.rows if r.case == row.case and r.chosen), None)
    times = None
    if auto is not None and auto.gradient_ms and row.gradient_ms:
        times = row.gradient_ms / auto.gradient_ms
    return (
        *lead,
        number(row.forward_ms),
        number(row.gradient_ms),
        number(times),
        mebibytes(row.temporary_bytes),
        mebibytes(row.total_bytes),
        number(row.compile_s or None),
        "–" if row.share is None else f"{100 * row.share:.0f} %",
        error(row.value_error),
        error(row.gradient_error),
    )


def of_targets(results: Results) -> Table:
    """The ratios aimed at, and the errors over the whole grid."""
    head = ("what", "case", "against", "ours", "theirs", "ratio", "target", "reached")
    rows = [_target(found, judged=results.judged) for found in results.verdicts]
    worst = worst_errors(results.rows)
    if worst is not None:
        a, b = worst
        assert a.value_error is not None and b.gradient_error is not None
        value, gradient = BOUNDS[results.precision]
        for what, row, got, most in (
            ("value error, the worst", a, a.value_error, value),
            ("gradient error, the worst", b, b.gradient_error, gradient),
        ):
            verdict = "yes" if got <= most else "no"
            cells = (what, row.case, f"float64 ({row.contestant})", error(got), "", "")
            rows.append((*cells, f"≤ {most:g}", verdict, ""))
    return Table(
        "Must reach" + _unjudged(results),
        (*head, "errors of ours"),
        rows,
        3,
    )


def _unjudged(results: Results) -> str:
    """Why ratios are not judged, as the end of a title."""
    if results.judged:
        return ""
    return f", {'at reduced sizes' if results.quick else f'in {results.precision}'}: not judged"


def _target(found: Verdict, *, judged: bool) -> tuple[str, ...]:
    target = found.target
    lead = (target.what, target.case, target.against)
    if found.ratio is None or found.errors is None:
        return (*lead, f"not run: {found.missing}", "", "", f"{target.wanted:g}×", "–", "")
    return (
        *lead,
        f"{number(found.ours)} {target.unit}",
        f"{number(found.theirs)} {target.unit}",
        f"{number(found.ratio)}×",
        f"{target.wanted:g}×",
        _yes(found.reached if judged else None),
        " / ".join(map(error, found.errors)),
    )


def choices(results: Results) -> Table:
    """What "auto" picks, next to the fastest method."""
    return Table(
        f"auto against the best method: time over that of the best, target ≤ {AUTO:g}",
        ("case", "auto", "best, fwd+bwd", "forward", "fwd+bwd", "within"),
        [
            (c.case, c.auto, c.best, f"{c.forward:.2f}", f"{c.gradient:.2f}")
            + (_yes(c.within if results.judged else None),)
            for c in results.choices
        ],
        3,
    )


def growth(results: Results) -> Table:
    """Times at two lengths."""
    return Table(
        f"Length: forward and backward of one sequence, target ≤ {MOST_GROWTH:g} for 16 times L",
        ("architecture", "method", "shorter ms", "longer ms", "ratio", "linear"),
        [
            (g.family, g.method, number(g.short_ms), number(g.long_ms), number(g.growth))
            + (_yes(g.linear if results.judged else None),)
            for g in results.growth
        ],
        2,
    )


def latency(results: Results) -> Table:
    """Time of a decoding step."""
    positions = results.latency[0].positions if results.latency else ()
    return Table(
        "Length: one decoding step, µs",
        ("architecture", *(f"after {t:,} tokens" for t in positions)),
        [(x.family, *map(number, x.microseconds)) for x in results.latency],
    )


def errors(results: Results) -> Table:
    """Errors over long sequences."""
    return Table(
        f"Length: {results.precision} against the sequential engine in float64, target in float32 "
        f"≤ {MOST_ERROR:g}",
        ("architecture", "method", "L", "value err", "within"),
        [
            (e.family, e.method, f"{e.length:,}", error(e.value_error), _yes(e.reached))
            for e in results.errors
        ],
        2,
    )


def memory(results: Results) -> Table:
    """Memory over a very long sequence."""
    return Table(
        f"Length: memory of forward and backward, target ≤ {MOST_BYTES / 2**30:g} GiB",
        ("architecture", "method", "L", "all MiB", "within"),
        [
            (m.family, m.method, f"{m.length:,}", mebibytes(m.total_bytes), _yes(m.reached))
            for m in results.memory
        ],
        2,
    )


def number(x: float | None) -> str:
    """Three digits, whatever the size.

    Example:
        >>> number(0.01234), number(12.34), number(1234.5), number(None)
        ('0.0123', '12.3', '1,234', '–')
    """
    if x is None:
        return "–"
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"


def mebibytes(x: int | None) -> str:
    """Bytes as MiB.

    Example:
        >>> mebibytes(3 * 2**20)
        '3'
    """
    return "–" if x is None else number(x / 2**20)


def error(x: float | None) -> str:
    """An error with two digits.

    Example:
        >>> error(1.234e-7)
        '1.2e-07'
    """
    return "–" if x is None else f"{x:.1e}"


def _yes(x: bool | None) -> str:
    return "–" if x is None else "yes" if x else "no"
