"""What one check has found."""

from __future__ import annotations

from typing import NamedTuple


class Check(NamedTuple):
    """One engine on one structure, or one op, in one precision.

    Attributes:
        structure: Of the transition and the maps around it, or the name of an op.
        method: The engine; of an op "auto", the one that it runs by.
        precision: "float32", "bfloat16", "tf32" or "float64".
        value_error: Normwise, the worse of outputs and last state; infinite where anything is NaN.
        gradient_error: Normwise, the worst over the arrays of the system, u and h0, or over the
            arguments of the op.
        worst: The array with that gradient error.
        value_bound: What the value error may be.
        gradient_bound: What the gradient error may be.
        failure: The exception, if the engine raised one.
    """

    structure: str
    method: str
    precision: str
    value_error: float
    gradient_error: float
    worst: str
    value_bound: float
    gradient_bound: float
    failure: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the engine ran and both errors are within their bounds."""
        within = self.value_error <= self.value_bound
        return within and self.gradient_error <= self.gradient_bound and self.failure is None
