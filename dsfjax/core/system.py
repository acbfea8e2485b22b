r"""The central object: a causal sequence mixer as a linear time-varying system.

.. math:: h_t = A_t h_{t-1} + B_t u_t, \qquad y_t = C_t h_t / η_t + D_t u_t.

References:
    Sieber, Amo Alonso, Didier, Zeilinger, Orvieto (2024), arXiv:2405.15731.
"""

from __future__ import annotations

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core.dtypes import floating, real_dtype, real_numbers, state_dtype
from dsfjax.core.maps import InputMap, OutputMap
from dsfjax.core.normalizers import Normalizer
from dsfjax.core.pytree import pytree, static
from dsfjax.core.skips import Skip
from dsfjax.core.steps import common_length, steps
from dsfjax.core.transitions import Transition


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
        A: `Transition`; its type is its structure (`Scalar`, `Diagonal`, `DiagonalPlusLowRank`,
            `Dense`, or a subclass of your own). The paper calls it Λ.
        B: `InputMap`: `OuterInput`, `DenseInput`, or your own.
        C: `OutputMap`: `InnerOutput`, `DenseOutput`, or your own.
        D: `Skip`: `TokenSkip`, `ValueSkip`, `DenseSkip`, your own, or None.
        eta: `Normalizer`: `GivenNormalizer`, `SummedNormalizer`, your own, or None.
        reset: Boolean (L,) or None. Before a step where it is true, state and normaliser are zero.
        state_shape: (H, n, p), static.
        length: L, static. By default the common number of steps above 1 of all time axes; None if
            nothing varies in time: such a time-invariant system fits any number of steps. A time
            axis of 1 means constant, so the system of a single step has to say ``length=1``.

    Raises:
        ValueError: While tracing, if shapes or lengths do not fit together.
        TypeError: If a part is not of its kind.

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
    B: InputMap
    C: OutputMap
    D: Skip | None = None
    eta: Normalizer | None = None
    reset: Array | None = None
    state_shape: tuple[int, int, int] = static(kw_only=True)
    length: int | None = static(kw_only=True, default=None)

    multiplied: ClassVar[tuple[str, ...]] = ("B", "C", "D")
    accumulated: ClassVar[tuple[str, ...]] = ("A", "eta")
    """What a `Precision` rounds, and what it keeps in the dtype of the state."""

    def __post_init__(self) -> None:
        kinds = {"A": Transition, "B": InputMap, "C": OutputMap, "D": Skip, "eta": Normalizer}
        for name, kind in kinds.items():
            part = getattr(self, name)
            if not isinstance(part, kind) and (part is not None or name in "ABC"):
                raise TypeError(
                    f"System: expected {name} to be of type {kind.__name__}, got "
                    f"{type(part).__name__}. Subclass dsfjax.{kind.__name__} for one of your own."
                )
        _take_real_numbers(self)
        for part in (self.A, self.B, self.C):
            part.check(self.state_shape)
        for part in (self.D, self.eta):
            if part is not None:
                part.check(self)
        object.__setattr__(self, "length", common_length("System", self, self.length))
        if self.reset is not None and (self.reset.ndim != 1 or self.reset.dtype != jnp.bool_):
            raise ValueError(
                f"System: expected reset of shape (L,) and dtype bool, got {self.reset.dtype}"
                f"{list(self.reset.shape)}. Build it with reset_from_segment_ids or "
                "reset_from_lengths."
            )
        if self.reset is not None and self.length is not None:
            steps(self, owner="System")  # an axis of 1 would pass for constant in time

    @property
    def num_heads(self) -> int:
        """H."""
        return self.state_shape[0]

    @property
    def num_states(self) -> int:
        """N = H·n·p (without the channel that carries a summed normaliser)."""
        return math.prod(self.state_shape)

    def state_size(self, length: int) -> int:
        """Numbers that are carried after ``length`` tokens: N, however many those are."""
        del length
        return self.num_states

    @property
    def token_width(self) -> int:
        """d, the width of the tokens u."""
        return self.B.token_width(self.state_shape)

    @property
    def output_width(self) -> int:
        """d_out, the width of the outputs y."""
        return self.C.output_width(self.state_shape)

    @property
    def W(self) -> Array | None:
        """The map from tokens to values, or None if the tokens are the values."""
        return self.B.W

    @property
    def slot_size(self) -> int:
        """Numbers that a cache of everything written would keep of one step."""
        return self.B.slot_size(self.state_shape)

    @property
    def acts_on_values(self) -> bool:
        """Whether B writes values and C reads each value channel by itself (no dense map)."""
        return self.B.acts_on_values and self.C.acts_on_values

    @property
    def is_complex(self) -> bool:
        """Whether the state is complex (the output is real in any case)."""
        return jnp.issubdtype(self.dtype, jnp.complexfloating)

    @property
    def dtype(self) -> jnp.dtype:
        """Dtype of the state: that of the widest array, at least float32; complex if any is."""
        return state_dtype(self.A.dtype, *(x.dtype for x in jax.tree.leaves(self)))

    @property
    def real_dtype(self) -> jnp.dtype:
        """The real counterpart of `dtype`, that of the normaliser and the outputs."""
        return jnp.finfo(self.dtype).dtype

    @property
    def carried_shape(self) -> tuple[int, int, int]:
        """Shape of the state that `scan` carries: (H, n, p), or (H, n, p + 1) with a summed η."""
        heads, n, p = self.state_shape
        return (heads, n, p + (0 if self.eta is None else self.eta.num_channels))


def _take_real_numbers(system: System) -> None:
    """Promote integers and booleans, and refuse complex numbers where only real ones have a sense.

    In parts of this package; what integers mean in one of your own is known to nobody else. A
    Python number, as a normaliser may have, takes the dtype of what it meets, as elsewhere in JAX.
    """
    plain, leaves = lambda x: getattr(x, "weak_type", False), jax.tree.leaves(system)
    real = real_dtype(state_dtype(system.A.dtype, *(x.dtype for x in leaves if not plain(x))))
    eta = jax.tree.map(lambda x: x.astype(real) if plain(x) else x, system.eta)
    object.__setattr__(system, "eta", eta)
    for name in ("A", "B", "C", "D", "eta"):
        part = getattr(system, name)
        if not type(part).__module__.startswith("dsfjax.core."):
            continue
        object.__setattr__(system, name, floating(part, system.dtype))
        real = part if name in ("D", "eta") else [getattr(part, x, None) for x in _REAL]
        for leaf in jax.tree.leaves(real):
            real_numbers("System", f"{name} (scale, gate, W, skip or normaliser)", leaf)


_REAL = ("scale", "gate", "W")
