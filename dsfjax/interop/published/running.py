"""A sequence on its way through a layer: what the layer remembers, and the Systems that it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Shaped

from dsfjax.core import KernelSystem, System
from dsfjax.core.dtypes import state_dtype
from dsfjax.engines import scan
from dsfjax.ops.op import Assembled, Op

Used = tuple[System | KernelSystem, Array]


class Run:
    """One stretch of one sequence in one layer.

    A layer is written once, for the steps of a whole sequence. What it takes from the tokens before
    goes through here, so that the same lines prefill, continue and decode; and so does every
    System, which is how the layer shows what it is made of.

    Args:
        positions: Places of the steps in their document, (L,); negative for padding before it.
        reset: Boolean (L,), the first steps of documents, or None if there is none but the first.
        state: What the same layer has left behind (``left``) after the tokens before; None at the
            beginning.
        capacity: Slots for a cache of keys and values; None where nothing continues.
        nudges: Added to the outputs of the Systems, in their order, to differentiate by them.

    Attributes:
        capacity: As given.
        left: What is to be remembered, by name.
        systems: Every System that was run, with its tokens.
    """

    def __init__(
        self,
        positions: Int[Array, " L"],
        *,
        reset: Bool[Array, " L"] | None = None,
        state: Mapping[str, Any] | None = None,
        capacity: int | None = None,
        nudges: Sequence[Array] | None = None,
    ) -> None:
        self.positions, self.reset = positions, reset
        self.left: dict[str, Any] = {}
        self.systems: list[Used] = []
        self._state, self.capacity, self._nudges = state, capacity, nudges
        self._counts: dict[str, int] = {}

    @property
    def starts(self) -> Bool[Array, " L"]:
        """The first steps of documents."""
        return self.positions == 0

    @property
    def reach(self) -> int:
        """How many steps a document may come to have, as far as that is known beforehand."""
        length = self.positions.shape[0]
        return length if self.capacity is None else max(length, self.capacity - 1)

    def recall(self, name: str, first: Any) -> Any:
        """What was left under a name after the tokens before; ``first`` at the beginning."""
        return first if self._state is None else self._state[name]

    def leave(self, name: str, value: Any) -> None:
        """Leave something behind for the tokens that follow."""
        self.left[name] = value

    def op(self, op: Op[..., Any], *arguments: Any, **keywords: Any) -> Array:
        """Run the System of an op on one sequence, (L, H, p): arguments without the axis B."""
        found = op.assembled(*arguments, reset=self.reset, **keywords)
        assert isinstance(found, Assembled), op
        system = found.system
        p = system.num_channels if isinstance(system, KernelSystem) else system.state_shape[2]
        return self.scan(system, found.u).reshape(found.u.shape[0], -1, p)

    def attend(
        self,
        q: Float[Array, "L H m"],
        k: Float[Array, "L G m"],
        v: Float[Array, "L G p"],
        *,
        scale: float | None = None,
        window: int | None = None,
        soft_cap: float | None = None,
    ) -> Float[Array, "L H p"]:
        """Softmax attention with H / G queries per key; ``scale`` is m^(−1/2) by default."""
        length, heads, m = q.shape
        system = KernelSystem(
            q * jnp.asarray(m**-0.5 if scale is None else scale, q.dtype),
            k,
            reset=self.reset,
            num_channels=v.shape[2],
            value_heads=v.shape[1],
            window=window,
            soft_cap=soft_cap,
        )
        return self.scan(system, v.reshape(length, -1)).reshape(length, heads, -1)

    def scan(self, system: System | KernelSystem, u: Shaped[Array, "L d"]) -> Array:
        """Run a System that has this run's ``reset`` from where the tokens before ended."""
        name = self._next("state")
        h0 = self.recall(name, None)
        if h0 is None and isinstance(system, KernelSystem) and self.capacity is not None:
            h0 = system.cache(self.capacity, u.dtype)
        y, after = scan(system, u, h0)
        self.leave(name, after)
        if self._nudges is not None:
            y = y + self._nudges[len(self.systems)]
        self.systems.append((system, u))
        return y

    def shown(self, systems: Sequence[Used]) -> tuple[Array, ...] | None:
        """Show Systems that a layer runs by itself; what it has to add to their outputs, if any."""
        first = len(self.systems)
        self.systems.extend(systems)
        return None if self._nudges is None else tuple(self._nudges[first : len(self.systems)])

    def conv(
        self,
        x: Float[Array, "L C"],
        weight: Float[Array, "C 1 W"],
        bias: Float[Array, " C"] | None = None,
    ) -> Float[Array, "L C"]:
        """Causal depthwise convolution, y_t = Σ_j w_{W−1−j} x_{t−j} + b, within documents."""
        length, width = x.shape[0], weight.shape[2]
        rows, same = self._rows("conv", x, width - 1)
        wide = state_dtype(x.dtype, weight.dtype)
        y = jnp.zeros(x.shape, wide) if bias is None else jnp.broadcast_to(bias, x.shape)
        for lag in range(width):
            begin = width - 1 - lag
            row = rows[begin : begin + length].astype(wide) * weight[:, 0, begin].astype(wide)
            y = y + (row if same is None else jnp.where(same(lag)[:, None], row, 0))
        return y.astype(x.dtype)

    def before(self, x: Float[Array, "L d"]) -> Float[Array, "L d"]:
        """The token before each, 0 before the first of a document."""
        rows, same = self._rows("shift", x, 1)
        rows = rows[: x.shape[0]]
        return rows if same is None else jnp.where(same(1)[:, None], rows, 0)

    def _rows(self, kind: str, x: Array, count: int) -> tuple[Array, Any]:
        """The rows x after those before; and whether a lag stays in the document."""
        name = self._next(kind)
        tail = self.recall(name, jnp.zeros((count, x.shape[1]), x.dtype))
        rows = jnp.concatenate([tail, x])
        self.leave(name, rows[x.shape[0] :])
        if self.reset is None:
            return rows, None
        document = jnp.cumsum(self.reset)
        documents = jnp.concatenate([jnp.zeros(count, document.dtype), document])
        length = x.shape[0]

        def same(lag: int) -> Array:
            return documents[count - lag : count - lag + length] == document

        return rows, same

    def _next(self, kind: str) -> str:
        count = self._counts[kind] = self._counts.get(kind, 0) + 1
        return f"{kind}_{count}"
