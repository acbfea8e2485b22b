"""The numbers behind the page, as CSV files that any tool reads."""

import csv
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dsfjax.analysis.cost import PHASES
from dsfjax.report.aspects import Aspect, registered
from dsfjax.report.comparison import Comparison, Entry
from dsfjax.report.findings import MODULUS_BINS, Findings, Layer
from dsfjax.training.probes import QUANTILES

_SUMMARY = (
    "mixer run learning_rate accuracy_mean accuracy_std steps_to_90 state_size grows num_params "
    "tokens_per_second bounds num_diverged"
).split()
_FINDINGS = (
    "horizon half_life until_asked mean_age dimension share_used growing exponent gradient_ratio"
).split()
_EXPONENTS = (*QUANTILES, 1.0)


def write_data(comparison: Comparison, folder: Path) -> list[str]:
    """Write the numbers of tables and figures, in full precision (``repr`` of a float).

    * ``summary.csv``: one row per mixer, the first two tables of the page.
    * ``members.csv``: one row per mixer, learning rate and seed.
    * ``curves.csv``: one row per mixer, seed and evaluation, at the best learning rate.
    * ``cost.csv``: one row per mixer and phase.
    * ``layers.csv``: one row per mixer and layer: what is said of it in one number each.
    * ``moduli.csv``, ``phases.csv``: one row per mixer, layer and bin of the histograms; the last
      bin of |λ| also counts what lies above it.
    * ``memory.csv``: one row per mixer, layer and number of steps: share of products of |λ| that
      are still large after them, what is left of a marked token that long after its entry, and
      the mean age of what is read at that step.
    * ``state_use.csv``: one row per mixer, layer and Hankel singular value.
    * ``gradients.csv``: one row per mixer, layer and step.
    * ``dynamics.csv``: one row per mixer, probe and layer, if there are probes.
    * ``<aspect>.csv``: one row per mixer, layer and row of every registered aspect.
    * ``phi_<mixer>.csv``: one row per layer and entry t ≥ s of the shown Φ, as it is (not
      rescaled).

    Args:
        comparison: What the page shows.
        folder: Made if it does not exist.

    Returns:
        The names of the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {"summary.csv": _summary, "members.csv": _members, "curves.csv": _curves}
    files |= {"cost.csv": _costs}
    found = [(entry, entry.findings) for entry in comparison.entries if entry.findings is not None]
    names = [_write(folder / name, rows(comparison.entries)) for name, rows in files.items()]
    if found:
        each = {
            "layers.csv": _layer,
            "moduli.csv": _moduli,
            "phases.csv": _phases,
            "memory.csv": _memory,
            "state_use.csv": _state_use,
            "gradients.csv": _gradients,
        }
        for name, rows in each.items():
            names.append(_write(folder / name, _by_layer(found, rows)))
    for aspect in registered():
        own = list(_registered(found, aspect))
        names += [_write(folder / f"{aspect.name}.csv", own)] if own else []
    if any(entry.dynamics is not None for entry in comparison.entries):
        names.append(_write(folder / "dynamics.csv", _dynamics(comparison.entries)))
    for entry, findings in found:
        names.append(_write(folder / f"phi_{entry.mixer}.csv", _kernels(findings)))
    return names


Rows = Iterator[dict[str, Any]]


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    rows = list(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)
    return path.name


def _summary(entries: Sequence[Entry]) -> Rows:
    for entry in entries:
        found = entry.findings
        yield {
            **{name: getattr(entry, name) for name in _SUMMARY},
            "num_members": len(entry.outcomes),
            **{name: None if found is None else getattr(found, name) for name in _FINDINGS},
        }


def _members(entries: Sequence[Entry]) -> Rows:
    for entry in entries:
        for outcome in entry.outcomes:
            yield {"mixer": entry.mixer, **dataclasses.asdict(outcome)}


def _curves(entries: Sequence[Entry]) -> Rows:
    for entry in entries:
        for curve in entry.curves:
            for step, value in zip(curve.steps, curve.accuracy, strict=True):
                yield {
                    "mixer": entry.mixer,
                    "seed": curve.seed,
                    "step": int(step),
                    "accuracy": float(value),
                }


def _costs(entries: Sequence[Entry]) -> Rows:
    for entry in entries:
        for name in PHASES:
            phase = getattr(entry.cost, name)
            if phase is None:  # a classifier decodes nothing
                continue
            yield {
                "mixer": entry.mixer,
                "phase": name,
                "flops": phase.flops,
                "transcendentals": phase.transcendentals,
                "bytes": phase.bytes,
                "cache_equivalent": entry.cost.cache_equivalent,
            }


def _by_layer(found: Sequence[tuple[Entry, Findings]], rows: Any) -> Rows:
    for entry, findings in found:
        for i, layer in enumerate(findings.layers):
            for row in rows(layer):
                yield {"mixer": entry.mixer, "layer": i + 1, **row}


def _registered(found: Sequence[tuple[Entry, Findings]], aspect: Aspect) -> Rows:
    for entry, findings in found:
        for i, layer in enumerate(findings.aspects.get(aspect.name, ())):
            for row in aspect.rows(layer):
                yield {"mixer": entry.mixer, "layer": i + 1, **row}


def _layer(layer: Layer) -> Rows:
    yield {
        **{f"modulus_{q:g}": x for q, x in zip(QUANTILES, layer.quantiles, strict=True)},
        "growing": layer.growing,
        "horizon": layer.horizon,
        "half_life": layer.half_life,
        "until_asked": layer.trace.until_asked,
        "correlation": layer.trace.correlation,
        "ratio": layer.trace.ratio,
        "states": None if layer.use is None else layer.use.size,
        "dimension": layer.dimension,
        "participation": layer.participation,
        **{f"exponent_{q:g}": x for q, x in zip(_EXPONENTS, layer.exponents, strict=True)},
        "warnings": " ".join(layer.warnings),
    }


def _moduli(layer: Layer) -> Rows:
    return _bins(MODULUS_BINS, layer.moduli)


def _phases(layer: Layer) -> Rows:
    return _bins(np.linspace(-np.pi, np.pi, layer.phases.size + 1), layer.phases)


def _bins(edges: np.ndarray, shares: np.ndarray) -> Rows:
    for low, high, share in zip(edges[:-1], edges[1:], shares, strict=True):
        yield {"low": float(low), "high": float(high), "share": float(share)}


def _memory(layer: Layer) -> Rows:
    trace = layer.trace
    for i in range(layer.survival.size):
        yield {
            "steps": i,
            "survival": float(layer.survival[i]),
            "state": None if trace.state is None else float(trace.state[i]),
            "output": float(trace.output[i]),
            "predicted": float(trace.predicted[i]),
            "mean_age": float(layer.mean_age[i]),
        }


def _state_use(layer: Layer) -> Rows:
    for i, value in enumerate([] if layer.use is None else layer.use.tolist()):
        yield {"index": i, "hankel_singular_value": value}


def _gradients(layer: Layer) -> Rows:
    for i, value in enumerate([] if layer.gradient is None else layer.gradient.tolist()):
        yield {"step": i, "gradient_norm": value}


def _dynamics(entries: Sequence[Entry]) -> Rows:
    for entry in entries:
        if (found := entry.dynamics) is None:
            continue
        for t, step in enumerate(found.steps.tolist()):
            for i in range(found.dimension.shape[1]):
                modulus = zip(QUANTILES, found.modulus[t, i].tolist(), strict=True)
                yield {
                    "mixer": entry.mixer,
                    "seed": found.seed,
                    "step": step,
                    "layer": i + 1,
                    "loss": float(found.loss[t]),
                    "accuracy": float(found.accuracy[t]),
                    "sharpness": float(found.sharpness[t]),
                    **{f"modulus_{q:g}": x for q, x in modulus},
                    **{f"gradient_{k + 1}": float(found.gradient[t, i, k]) for k in range(4)},
                    "dimension": float(found.dimension[t, i]),
                }


def _kernels(findings: Findings) -> Rows:
    cell = findings.cell
    pairs = {(t // cell, s // cell) for t, s in findings.pairs}
    for i, layer in enumerate(findings.layers):
        for t in range(len(layer.kernel)):
            for s in range(t + 1):
                yield {
                    "layer": i + 1,
                    "t": t * cell,
                    "s": s * cell,
                    "phi": float(layer.kernel[t, s]),
                    "query_meets_value": int((t, s) in pairs),
                }
