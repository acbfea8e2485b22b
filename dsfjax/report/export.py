"""The numbers behind the figures, as CSV files that any tool reads."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from dsfjax.report.comparison import Comparison
from dsfjax.report.figures import MODULUS_BINS, modulus_fractions


def _write(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)
    return path.name


def write_data(comparison: Comparison, folder: Path) -> list[str]:
    """Write one CSV per kind of figure, numbers in full precision (``repr`` of a float).

    * ``summary.csv``: one row per mixer, the table of the page.
    * ``curves.csv``: one row per mixer, seed and evaluation.
    * ``accuracy.csv``: one row per mixer and seed.
    * ``moduli.csv``: one row per mixer and bin of the |λ| histogram; the last bin of a mixer also
      counts what lies above it.
    * ``phi_<mixer>.csv``: one row per entry t ≥ s of the shown Φ, as it is (not rescaled).

    Args:
        comparison: What the page shows.
        folder: Made if it does not exist.

    Returns:
        The names of the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = comparison.entries
    summary = (
        "mixer learning_rate accuracy_mean accuracy_std steps_to_90 state_size num_params "
        "tokens_per_second bounds num_diverged num_members"
    ).split()
    names = [
        _write(
            folder / "summary.csv",
            summary,
            ([getattr(entry, name) for name in summary] for entry in entries),
        ),
        _write(
            folder / "curves.csv",
            ["mixer", "seed", "step", "accuracy"],
            (
                [entry.mixer, curve.seed, int(step), float(value)]
                for entry in entries
                for curve in entry.curves
                for step, value in zip(curve.steps, curve.accuracy, strict=True)
            ),
        ),
        _write(
            folder / "accuracy.csv",
            ["mixer", "seed", "accuracy"],
            (
                [entry.mixer, curve.seed, value]
                for entry in entries
                for curve, value in zip(entry.curves, entry.accuracies, strict=True)
            ),
        ),
    ]
    probed = [(entry.mixer, entry.probe) for entry in entries if entry.probe is not None]
    if probed:
        rows = (
            [mixer, float(low), float(high), float(fraction)]
            for mixer, probe in probed
            for low, high, fraction in zip(
                MODULUS_BINS[:-1], MODULUS_BINS[1:], modulus_fractions(probe.moduli), strict=True
            )
        )
        names.append(_write(folder / "moduli.csv", ["mixer", "low", "high", "fraction"], rows))
    for mixer, probe in probed:
        pairs = set(probe.pairs)
        rows = (
            [t, s, float(probe.kernel[t, s]), int((t, s) in pairs)]
            for t in range(probe.kernel.shape[0])
            for s in range(t + 1)
        )
        head = ["t", "s", "phi", "query_meets_value"]
        names.append(_write(folder / f"phi_{mixer}.csv", head, rows))
    return names
