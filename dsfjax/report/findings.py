"""What the analysis of one trained model found: plain data, no JAX."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

# The |λ| axis: everything above MODULUS_TOP is counted in the last bin, marked as such.
MODULUS_TOP = 1.5
MODULUS_BINS = np.linspace(0.0, MODULUS_TOP, 31)
# A product of eigenvalues below this counts as forgotten.
FADED = 0.1


@dataclass(frozen=True)
class Trace:
    """What is left of a marked token after 0, 1, … L − 1 steps, relative to its entry.

    Geometric means over tokens, sequences and heads; NaN at ages that no marked token reaches.

    Attributes:
        state: Norm of its trace in the state; None where there is no finite state.
        output: Norm of its trace in the outputs.
        predicted: What the eigenvalues alone say.
        correlation: Of the logarithms of measured (state, else output) and predicted values.
        ratio: Geometric mean of measured over predicted values.
        until_asked: What is left (state, else output) when the task asks for the token.
    """

    state: Float[np.ndarray, " L"] | None
    output: Float[np.ndarray, " L"]
    predicted: Float[np.ndarray, " L"]
    correlation: float
    ratio: float
    until_asked: float

    @property
    def measured(self) -> Float[np.ndarray, " L"]:
        """The trace in the state, or in the outputs where there is no finite state."""
        return self.output if self.state is None else self.state


@dataclass(frozen=True)
class Layer:
    """One layer on real sequences.

    Attributes:
        moduli: Share of |λ| per bin of ``MODULUS_BINS``; the last one takes what lies above, too.
        phases: Share of arg λ per bin of equal width over [−π, π).
        quantiles: |λ| at the quantiles of :mod:`dsfjax.training.probes`.
        growing: Share of |λ| > 1.
        survival: Share of products of |λ| that are at least ``FADED`` after τ = 0, 1, … steps.
        half_life: Steps in which the median eigenvalue halves what it keeps.
        mean_age: Mean age in steps of what is read at every step.
        trace: What is left of marked tokens.
        use: Hankel singular values of the middle step, (N,) descending, the root mean square over
            sequences; None where there is no finite state.
        dimension: Directions of the state that carry 99 % of their energy; None as above.
        participation: (Σ σ²)² / Σ σ⁴, another count that needs no threshold; None as above.
        exponents: Lyapunov exponents at the same quantiles, and the largest.
        gradient: Norm of ∂L/∂h_t at every step, root mean square over sequences; None as above.
        warnings: What looks wrong, in words.
        kernel: Φ of head 0 on one sequence; where it differs between channels, the root mean
            square over them. Longer sequences are averaged over cells of steps.
        num_channels: Number of channels behind ``kernel``: 1 where they share one Φ.
    """

    moduli: Float[np.ndarray, " bins"]
    phases: Float[np.ndarray, " turns"]
    quantiles: Float[np.ndarray, " q"]
    growing: float
    survival: Float[np.ndarray, " L"]
    half_life: float
    mean_age: Float[np.ndarray, " L"]
    trace: Trace
    use: Float[np.ndarray, " N"] | None
    dimension: float | None
    participation: float | None
    exponents: Float[np.ndarray, " q1"]
    gradient: Float[np.ndarray, " L"] | None
    warnings: tuple[str, ...]
    kernel: Float[np.ndarray, "R R"]
    num_channels: int

    @property
    def horizon(self) -> float:
        """Steps after which half of the products of |λ| are below ``FADED``; ∞ if none in L."""
        faded = np.flatnonzero(self.survival <= 0.5)
        return float(faded[0]) if faded.size else math.inf

    @property
    def is_positive(self) -> bool:
        """Whether all eigenvalues are real and positive."""
        return bool(self.phases[len(self.phases) // 2] > 1 - 1e-6)


@dataclass(frozen=True)
class Findings:
    """One trained model on a few sequences that it was not trained on.

    Attributes:
        layers: Its layers, the first one first.
        pairs: ``(query, value)`` positions of the sequence whose Φ is shown: at ``query`` the model
            must name the token that stands at ``value``.
        cell: Steps of the sequence per row and column of the kernels.
        aspects: Name of a registered aspect to its summary of every layer, of those that apply.
    """

    layers: tuple[Layer, ...]
    pairs: tuple[tuple[int, int], ...]
    cell: int = 1
    aspects: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def horizon(self) -> float:
        """The longest horizon of a layer."""
        return max(layer.horizon for layer in self.layers)

    @property
    def half_life(self) -> float:
        """The longest half-life of a layer."""
        return max(layer.half_life for layer in self.layers)

    @property
    def mean_age(self) -> float:
        """Mean age of what is read over the second half of the sequence, in the oldest layer."""
        return max(
            float(np.nanmean(layer.mean_age[len(layer.mean_age) // 2 :])) for layer in self.layers
        )

    @property
    def until_asked(self) -> float:
        """What is left of a value when it is asked for, in the layer that keeps most."""
        return max(layer.trace.until_asked for layer in self.layers)

    @property
    def dimension(self) -> float | None:
        """Directions in use, all layers; None without a finite state."""
        counts = [layer.dimension for layer in self.layers]
        return None if None in counts else float(sum(c for c in counts if c is not None))

    @property
    def share_used(self) -> float | None:
        """Directions in use over N."""
        sizes = [layer.use.size for layer in self.layers if layer.use is not None]
        return None if self.dimension is None else self.dimension / sum(sizes)

    @property
    def growing(self) -> float:
        """Largest share of |λ| > 1 of a layer."""
        return max(layer.growing for layer in self.layers)

    @property
    def exponent(self) -> float:
        """The largest Lyapunov exponent."""
        return max(float(layer.exponents[-1]) for layer in self.layers)

    @property
    def gradient_ratio(self) -> float | None:
        """‖∂L/∂h_t‖ in the first quarter over the last quarter, in the layer where it is least."""
        ratios = []
        for layer in self.layers:
            if layer.gradient is None:
                return None
            quarter = max(1, len(layer.gradient) // 4)
            first, last = layer.gradient[:quarter].mean(), layer.gradient[-quarter:].mean()
            ratios.append(float(first / last) if last > 0 else math.inf)
        return min(ratios)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What looks wrong, layer by layer."""
        return tuple(
            f"layer {i + 1}, {text}"
            for i, layer in enumerate(self.layers)
            for text in layer.warnings
        )
