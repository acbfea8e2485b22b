r"""Softmax attention: a mixer that no finite-dimensional system represents.

The kernel exp(qᵀk) has infinitely many features, so its state is the past itself. `KernelSystem`
keeps the scores' factors, the values and the normaliser; `KVCache` is its state, which grows by
one slot per step.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from dsfjax.core.dtypes import real_numbers, state_dtype
from dsfjax.core.pytree import constant, pytree, static
from dsfjax.core.transitions import expect


@pytree
class KernelSystem:
    r"""Normalised exponential-kernel attention over the L steps of one sequence.

    .. math:: y_{t,h} = \frac{1}{η_{t,h}} \sum_{s \le t} e^{q_{t,h}^\top k_{s,h}} (W u_s)_h, \qquad
              η_{t,h} = \sum_{s \le t} e^{q_{t,h}^\top k_{s,h}},

    where sums start after the last reset. Scale q beforehand (softmax attention uses q / √m).

    Attributes:
        q: Queries (L, H, m).
        k: Keys (L, G, m), G groups of heads, G divides H.
        W: Value map (H·p, d), constant in time; None if the token is the value.
        reset: Boolean (L,) or None; attention does not reach back across a reset.
        num_channels: p, the value channels per head, static.

    Raises:
        ValueError: While tracing, if shapes do not fit together.
    """

    q: Array
    k: Array
    W: Array | None = constant(default=None)
    reset: Array | None = None
    num_channels: int = static(kw_only=True)

    def __post_init__(self) -> None:
        for name in ("q", "k", "W"):
            if (x := getattr(self, name)) is not None:
                dtypes = (self.q.dtype, self.k.dtype)
                object.__setattr__(self, name, real_numbers("KernelSystem", name, x, *dtypes))
        expect(self.q.ndim == 3, self, "q", "(L, H, m)", self.q.shape)
        length, heads, m = self.q.shape
        ok = self.k.ndim == 3 and self.k.shape[::2] == (length, m) and heads % self.k.shape[1] == 0
        expect(ok, self, "k", f"({length}, G, {m}) with G dividing {heads}", self.k.shape)
        if self.W is not None:
            width = heads * self.num_channels
            expect(
                self.W.ndim == 2 and self.W.shape[0] == width,
                self,
                "W (no time axis)",
                f"({width}, d)",
                self.W.shape,
            )
        if self.reset is not None:
            ok = self.reset.shape == (length,) and self.reset.dtype == jnp.bool_
            got = f"{self.reset.dtype}{list(self.reset.shape)}"
            expect(ok, self, "reset", f"({length},) and dtype bool", got)

    @property
    def length(self) -> int:
        """Number of steps L."""
        return self.q.shape[0]

    @property
    def num_heads(self) -> int:
        """H, the number of query heads."""
        return self.q.shape[1]

    @property
    def token_width(self) -> int:
        """d, the width of the tokens u."""
        return self.output_width if self.W is None else self.W.shape[1]

    @property
    def output_width(self) -> int:
        """d_out = H·p."""
        return self.num_heads * self.num_channels

    @property
    def dtype(self) -> np.dtype:
        """Dtype of scores and sums, at least float32."""
        return state_dtype(self.q.dtype)

    @property
    def real_dtype(self) -> np.dtype:
        """The same: a kernel system is real."""
        return self.dtype

    @property
    def slot_size(self) -> int:
        """G·m + H·p, the numbers of one key and one value: what the cache grows by per step."""
        return math.prod(self.k.shape[1:]) + self.output_width


class KVCache(NamedTuple):
    """The state of a `KernelSystem`: keys and values of the past.

    Attributes:
        k: Keys (S, G, m).
        v: Values (S, H, p).
        first: Integer scalar, the first slot that is visible; a reset moves it.
        length: None if all S slots are in use: each step then appends a slot. An integer array if
            the cache was allocated with spare slots (`allocate`): steps then write in place, with
            constant shapes, as a compiled decoding loop needs.
    """

    k: Array
    v: Array
    first: Array
    length: Array | None = None

    @classmethod
    def allocate(
        cls,
        capacity: int,
        num_groups: int,
        num_features: int,
        num_heads: int,
        num_channels: int,
        dtype: DTypeLike,
    ) -> KVCache:
        """An empty cache with ``capacity`` slots that is written in place."""
        k = jnp.zeros((capacity, num_groups, num_features), dtype)
        v = jnp.zeros((capacity, num_heads, num_channels), dtype)
        zero = jnp.zeros((), jnp.int32)
        return cls(k, v, zero, zero)
