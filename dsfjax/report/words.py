"""Numbers and results in words, computed from the data, for the page and the terminal."""

from dsfjax.report.comparison import Comparison, Entry

# Means closer than this are called equal even if the seeds scatter less.
TIE = 0.005


def percent(value: float) -> str:
    r"""A fraction as a percentage, one decimal and a blank that does not break.

    Example:
        >>> percent(0.98765)
        '98.8\xa0%'
    """
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def accuracy(mean: float, std: float) -> str:
    """Mean and standard deviation of fractions, in per cent.

    Example:
        >>> accuracy(0.98765, 0.0123)
        '98.8 ± 1.2 %'
    """
    return f"{100 * mean:.1f} ± {100 * std:.1f} %"


def count(value: int | float | None) -> str:
    """A whole number with thin spaces between thousands; a dash for None.

    Example:
        >>> count(123456.4), count(None)
        ('123\u202f456', '–')
    """
    return "–" if value is None else f"{value:,.0f}".replace(",", "\u202f")


def rate(value: float) -> str:
    """A learning rate to three digits.

    Example:
        >>> rate(0.0031622), rate(1e-4), rate(0.01)
        ('0.00316', '0.0001', '0.01')
    """
    return f"{value:.3g}"


def listing(names: list[str]) -> str:
    """Names joined as in a sentence.

    Example:
        >>> listing(["a", "b", "c"])
        'a, b and c'
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def leaders(entries: tuple[Entry, ...]) -> list[Entry]:
    """The best mixer and those that seeds do not tell apart from it.

    A mixer counts as equal to the best one when their means differ by no more than the larger of
    their two standard deviations, or by no more than half a percentage point.

    Args:
        entries: Ordered by mean accuracy, best first; at least one.

    Returns:
        At least one entry, in the same order.
    """
    best = entries[0]
    return [
        entry
        for entry in entries
        if best.accuracy_mean - entry.accuracy_mean
        <= max(best.accuracy_std, entry.accuracy_std, TIE)
    ]


def verdict(comparison: Comparison) -> str:
    """Who won, by how much, and what that is worth: two or three sentences made from the numbers.

    Args:
        comparison: At least one entry, ordered by mean accuracy.

    Returns:
        Plain text.
    """
    entries = comparison.entries
    top = leaders(entries)
    best, rest = top[0], [entry for entry in entries if entry not in top]
    seeds = f"{len(best.curves)} seed{'s' if len(best.curves) != 1 else ''}"
    if len(entries) == 1:
        text = f"{best.mixer} answers {percent(best.accuracy_mean)} of the queries"
        text += f" (mean over {seeds} at its best learning rate)"
    elif len(top) == 1:
        text = f"{best.mixer} recalls best: it answers {percent(best.accuracy_mean)} of the queries"
        text += f" (mean over {seeds} at its best learning rate)"
    else:
        low, high = percent(min(e.accuracy_mean for e in top)), percent(best.accuracy_mean)
        share = high if low == high else f"{low} to {high}"
        text = f"{listing([entry.mixer for entry in top])} recall best, and {seeds} cannot tell "
        text += f"them apart: they answer {share} of the queries, each at its best learning rate"
    if rest:
        text += f"; next comes {rest[0].mixer} with {percent(rest[0].accuracy_mean)}"
    if len(rest) > 1:
        text += f", last {rest[-1].mixer} with {percent(rest[-1].accuracy_mean)}"
    text += f". Guessing would answer {percent(comparison.chance)}, naming any value of the "
    text += f"sequence {percent(comparison.unbound)}."
    timed = [entry for entry in entries if entry.steps_to_90 is not None]
    if len(timed) > 1:
        steps = min(entry.steps_to_90 for entry in timed if entry.steps_to_90 is not None)
        first = [entry.mixer for entry in timed if entry.steps_to_90 == steps]
        verb = "was" if len(first) == 1 else "were"
        text += f" {listing(first)} {verb} the first to reach 90 %, after {count(steps)} steps."
    return text
