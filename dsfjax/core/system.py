r"""The central object: a causal sequence mixer as a linear time-varying system.

.. math:: h_t = A_t h_{t-1} + B_t u_t, \qquad y_t = C_t h_t / η_t + D_t u_t.

References:
    Sieber, Amo Alonso, Didier, Zeilinger, Orvieto (2024), arXiv:2405.15731.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core import maps
from dsfjax.core.dtypes import state_dtype
from dsfjax.core.maps import DenseInput, DenseOutput, InnerOutput, OuterInput
from dsfjax.core.pytree import pytree, static, time_leaves
from dsfjax.core.transitions import Diagonal, Transition


@pytree
class System:
    r"""A linear time-varying system over the L steps of one sequence.

    .. math:: h_t = A_t h_{t-1} + B_t u_t, \qquad y_t = C_t h_t / η_t + D_t u_t

    with tokens u (L, d), outputs y (L, d_out) and a state h (H, n, p) of heads, state expansion
    per head and value channels per head; N = H·n·p. Batches, seeds and layers come from
    `jax.vmap`. A, B, C and the state are those of the *un-normalised* recurrence, which every
    engine runs, dividing by η_t at read-out. The paper's matrices Λ_t = (η_{t−1}/η_t) A_t and
    B_t/η_t are a view of it: `to_dense`.

    Attributes:
        A: Transition; its type is its structure (`Scalar`, `Diagonal`, `DiagonalPlusLowRank`,
            `Dense`). The paper calls it Λ.
        B: Input map, `OuterInput` or `DenseInput`.
        C: Output map, `InnerOutput` or `DenseOutput`.
        D: Skip, `TokenSkip`, `ValueSkip`, `DenseSkip` or None.
        eta: Normaliser η, `GivenNormalizer`, `SummedNormalizer` or None.
        reset: Boolean (L,) or None. Before a step where it is true, state and normaliser are zero.
        state_shape: (H, n, p), static.

    Raises:
        ValueError: While tracing, if shapes or lengths do not fit together.

    Example:
        An exponential moving average of two channels, with decay 0.5:

        >>> import jax.numpy as jnp, dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5]])))
        >>> ema = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 2))
        >>> y, h = dsfjax.scan(ema, jnp.array([[1.0, 0.0], [0.0, 4.0], [0.0, 0.0]]))
        >>> y.tolist()
        [[1.0, 0.0], [0.5, 4.0], [0.25, 2.0]]
    """

    A: Transition
    B: OuterInput | DenseInput
    C: InnerOutput | DenseOutput
    D: maps.Skip | None = None
    eta: maps.Normalizer | None = None
    reset: Array | None = None
    state_shape: tuple[int, int, int] = static(kw_only=True)

    def __post_init__(self) -> None:
        for name, value, types in (
            ("A", self.A, Transition),
            ("B", self.B, maps.InputMap),
            ("C", self.C, maps.OutputMap),
            ("D", self.D, maps.Skip | None),
            ("eta", self.eta, maps.Normalizer | None),
        ):
            if not isinstance(value, types):
                raise TypeError(
                    f"System: expected {name} to be one of {types}, got {type(value).__name__}."
                )
        self.A.check(self.state_shape)
        self.B.check(self.state_shape)
        self.C.check(self.state_shape)
        _check_skip(self)
        _check_normalizer(self)
        lengths = {leaf.shape[0] for leaf in time_leaves(self)} - {1}
        if len(lengths) > 1:
            raise ValueError(
                f"System: parts cover different numbers of steps {sorted(lengths)}; every time "
                "axis must be L, or 1 for what is constant in time."
            )
        if self.reset is not None and (self.reset.ndim != 1 or self.reset.dtype != jnp.bool_):
            raise ValueError(
                f"System: expected reset of shape (L,) and dtype bool, got {self.reset.dtype}"
                f"{list(self.reset.shape)}. Build it with reset_from_segment_ids or "
                "reset_from_lengths."
            )

    @property
    def length(self) -> int:
        """Number of steps L; 1 if nothing varies in time (the system then fits any L)."""
        return max(leaf.shape[0] for leaf in time_leaves(self))

    @property
    def num_states(self) -> int:
        """N = H·n·p (without the channel that carries a summed normaliser)."""
        return math.prod(self.state_shape)

    @property
    def token_width(self) -> int:
        """d, the width of the tokens u."""
        return self.B.token_width(self.state_shape)

    @property
    def output_width(self) -> int:
        """d_out, the width of the outputs y."""
        return self.C.output_width(self.state_shape)

    @property
    def is_complex(self) -> bool:
        """Whether the state is complex (the output is real in any case)."""
        return jnp.issubdtype(self.dtype, jnp.complexfloating)

    @property
    def dtype(self) -> jnp.dtype:
        """Dtype of the state: that of the widest array, at least float32; complex if any is."""
        return state_dtype(*(x.dtype for x in jax.tree.leaves(self)))

    @property
    def carried_shape(self) -> tuple[int, int, int]:
        """Shape of the state that `scan` carries: (H, n, p), or (H, n, p + 1) with a summed η."""
        heads, n, p = self.state_shape
        return (heads, n, p + isinstance(self.eta, maps.SummedNormalizer))


def _check_skip(system: System) -> None:
    heads, _, p = system.state_shape
    d, d_out = system.token_width, system.output_width
    D = system.D
    if isinstance(D, maps.TokenSkip):
        if D.d.ndim != 2 or D.d.shape[1] != d_out or d != d_out:
            raise ValueError(
                f"TokenSkip: expected d of shape (T, {d_out}) and tokens of the output's width "
                f"{d_out}, got {D.d.shape} and tokens of width {d}. Use DenseSkip otherwise."
            )
    elif isinstance(D, maps.ValueSkip):
        if not isinstance(system.B, OuterInput) or d_out != heads * p:
            raise ValueError(
                "ValueSkip: needs an OuterInput and an output of width H·p; use DenseSkip."
            )
        maps._check_channels(D, "d", D.d, heads, p)
    elif isinstance(D, maps.DenseSkip) and (D.matrix.ndim != 3 or D.shape[1:] != (d_out, d)):
        raise ValueError(f"DenseSkip: expected matrix of shape (T, {d_out}, {d}), got {D.shape}.")


def _check_normalizer(system: System) -> None:
    eta = system.eta
    if eta is None:
        return
    if not isinstance(system.C, InnerOutput):
        raise ValueError(
            "System: a normaliser needs an InnerOutput; fold η into the matrix of C instead."
        )
    if isinstance(eta, maps.GivenNormalizer):
        heads = system.state_shape[0]
        if eta.log_eta.ndim != 2 or eta.log_eta.shape[1] != heads:
            raise ValueError(
                f"GivenNormalizer: expected log_eta of shape (T, {heads}), got {eta.log_eta.shape}."
            )
    else:
        if not isinstance(system.B, OuterInput) or system.is_complex:
            raise ValueError("SummedNormalizer: needs an OuterInput and real A, B, C.")
        if isinstance(system.A, Diagonal) and not system.A.per_state:
            raise ValueError(
                "SummedNormalizer: z has one entry per state, so the decay must not vary over the "
                "value channels p."
            )
