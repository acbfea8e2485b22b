"""What is left of marked tokens, by age: retention over many tokens as one curve."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dsfjax import analysis
from dsfjax.report.findings import Trace

# Traces below this are rounding errors, and count as this.
FLOOR = 1e-8


def trace(
    found: analysis.Retention,
    agreement: analysis.Agreement,
    marks: Int[np.ndarray, "batch M"],
    asked: Int[np.ndarray, "batch M"],
) -> Trace:
    """Geometric means of retention over tokens, sequences and heads.

    Args:
        found: Of `dsfjax.analysis.retention`, NumPy arrays with the sequences in front,
            (batch, M, L, H).
        agreement: Of what was measured in the state, else in the outputs, with what was predicted.
        marks: Of each sequence the steps of the marked tokens.
        asked: Of each sequence the steps at which the task asks for them.

    Returns:
        The `Trace`.
    """
    measured = np.asarray(found.output if found.state is None else found.state)
    when_asked = np.take_along_axis(measured, asked[:, :, None, None], axis=2)
    return Trace(
        state=None if found.state is None else _by_age(found.state, marks),
        output=_by_age(found.output, marks),
        predicted=_by_age(found.predicted, marks),
        correlation=float(agreement.correlation),
        ratio=float(agreement.ratio),
        until_asked=float(_geometric_mean(when_asked.reshape(1, -1))[0]),
    )


def _by_age(values: Any, marks: Int[np.ndarray, "batch M"]) -> Float[np.ndarray, " L"]:
    values = np.asarray(values, float)
    steps, shifted = values.shape[2], np.full_like(values, np.nan)
    for (i, m), mark in np.ndenumerate(marks):
        shifted[i, m, : steps - mark] = values[i, m, mark:]
    return _geometric_mean(np.moveaxis(shifted, 2, 0).reshape(steps, -1))


def _geometric_mean(rows: Float[np.ndarray, "rows k"]) -> Float[np.ndarray, " rows"]:
    """Of each row, over what is not NaN; NaN where nothing is."""
    logs = np.log(np.maximum(rows, FLOOR))  # NaN stays NaN
    count = np.sum(~np.isnan(logs), axis=1)
    mean = np.nansum(logs, axis=1) / np.maximum(count, 1)
    return np.where(count > 0, np.exp(mean), np.nan)
