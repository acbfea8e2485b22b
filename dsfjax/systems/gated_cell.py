r"""Gated recurrent cells as architectures: the affine system along their own trajectory.

A gated cell (LSTM, GRU, sLSTM) has a state s of k parts of d channels. Its first part is its output
and the one that the recurrent weights read; everything else goes channel by channel:

.. math:: x_t = W_u u_t + b, \qquad r_t = W_h s_{t-1}^{(1)}, \qquad s_t = φ(x_t, r_t, s_{t-1}),

with g gates in x and r. So the derivative of a step has a form of its own,

.. math:: A_t = \frac{∂s_t}{∂s_{t-1}} = P_t W_h E_1 + K_t, \qquad
   P_t = \frac{∂φ}{∂r}, \quad K_t = \frac{∂φ}{∂s},

where E_1 takes the first part and all blocks of P_t and K_t are diagonal: g·k·d + k²·d numbers per
step, and the weights once, in place of k²·d² per step. W_h may be block-diagonal over H heads of p
channels. A step of the system costs what a step of
the cell costs.

The signals of the tokens are these blocks and v_t = s_t − A_t s_{t−1}. A loop over the steps of the
cell finds them, and with them the outputs: whoever only wants these, as a mixer does, has them
without the blocks (`Architecture.solved`). `dsfjax.engines.nonlinear` has the theory and the way
for any cell.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core import OutputMap, System, Transition
from dsfjax.core.dtypes import state_dtype
from dsfjax.core.pytree import constant, pytree, static
from dsfjax.core.resets import starts
from dsfjax.engines.nonlinear import EntryInput
from dsfjax.engines.recurrence import read_map
from dsfjax.systems.architecture import Architecture, Traits
from dsfjax.systems.primitives import affine, labels_without_decay

Update = Callable[[Any, Array, Array, Array], Array]
"""``update(params, x (…, g, d), r (…, g, d), s (…, k, d)) -> s (…, k, d)``, channel by channel."""


@pytree
class Gated(Transition):
    """The derivative of a gated cell, A_t = P_t W_h E_1 + K_t, for one head of n = k·d states.

    Attributes:
        gates: P_t, (T, k, g, d).
        keep: K_t, (T, k, k, d).
        W_h: Recurrent weights (g, H, p, p) with d = H·p, constant in time.
    """

    gates: Array
    keep: Array
    W_h: Array = constant()

    @property
    def dtype(self) -> Any:
        """Dtype of A_t."""
        return state_dtype(self.gates.dtype, self.keep.dtype, self.W_h.dtype)

    def matrix(self) -> Array:
        """A_t of every step, (T, 1, n, n)."""
        (steps, k, g, d), (_, heads, p, _) = self.gates.shape, self.W_h.shape
        gates, keep, W_h = (x.astype(self.dtype) for x in (self.gates, self.keep, self.W_h))
        eye, own = (jnp.eye(size, dtype=self.dtype) for size in (d, heads))
        blocks = jnp.einsum("tkjd,de->tkdje", keep, eye)
        gates = gates.reshape(steps, k, g, heads, p)
        read = jnp.einsum("tkghp,ghpq,hi->tkhpiq", gates, W_h, own, precision="highest")
        read = read.reshape(steps, k, d, d)
        return blocks.at[:, :, :, 0].add(read).reshape(steps, 1, k * d, k * d)

    def apply(self, h: Array, precision: str = "highest") -> Array:
        """A_t h_t: one product with the weights, and elementwise ones."""
        _, k, _, d = self.gates.shape
        s = h.reshape(h.shape[0], k, d, h.shape[3])
        r = recurrent(self.W_h.astype(h.dtype), s[:, 0].swapaxes(1, 2), precision)  # (T, p, g, d)
        r = jnp.moveaxis(r, 1, 3)
        gates, keep = (x.astype(h.dtype)[..., None] for x in (self.gates, self.keep))
        new = (gates * r[:, None]).sum(axis=2) + (keep * s[:, None]).sum(axis=2)
        return new.reshape(-1, *h.shape[1:])

    def rescale(self, log_r: Array) -> Gated:
        """The transition exp(log_r_t) A_t."""
        r = jnp.exp(log_r)[:, :, None, None]
        return Gated(self.gates * r.astype(self.gates.dtype), self.keep * r, self.W_h)

    def describe(self) -> str:
        """The structure in words."""
        return "gated recurrent weights"


def recurrent(W_h: Array, h: Array, precision: str = "highest") -> Array:
    """What the recurrent weights (g, H, p, p) make of outputs (…, d), (…, g, d)."""
    (g, heads, p, _), lead = W_h.shape, h.shape[:-1]
    h = h.reshape(*lead, heads, p)
    r = jnp.einsum("ghpq,...hq->...ghp", W_h, h, precision=precision)
    return r.reshape(*lead, g, heads * p)


def _in_heads(W_h: Array) -> Array:
    """Weights (g, d, d) of one head, or (g, H, p, p), as (g, H, p, p)."""
    return W_h.reshape(W_h.shape[0], -1, *W_h.shape[-2:])


@pytree
class FirstEntries(OutputMap):
    """C_t = [I 0]: the first entries of the flattened state.

    Attributes:
        width: How many, static.
    """

    width: int = static()

    def matrix(self, state_shape: tuple[int, int, int]) -> Array:
        """C from the flattened state to the output, (1, width, N)."""
        heads, n, p = state_shape
        return jnp.eye(self.width, heads * n * p)[None]

    def output_width(self, state_shape: tuple[int, int, int]) -> int:
        """The width."""
        return self.width


@read_map.register
def _(C: FirstEntries, system: System, h: Array, precision: str) -> Array:
    return h.reshape(h.shape[0], -1)[:, : C.width]


class Signals(NamedTuple):
    """P_t (L, k, g, d) and K_t (L, k, k, d), v_t = s_t − A_t s_{t−1} and s_t itself (L, k, d)."""

    gates: Array
    keep: Array
    v: Array
    s: Array


def gated_cell(
    init: Callable[[Array], Any], update: Update, parts: int, traits: Traits, *vectors: str
) -> Architecture:
    """The architecture of a gated cell.

    Args:
        init: ``init(key) -> params``, a NamedTuple with W_u (g, d, d), bias (g, d), and W_h
            (g, d, d) or, block-diagonal over H heads, (g, H, p, p).
        update: φ, elementwise over channels.
        parts: k, parts of the state.
        traits: As of `Architecture`.
        *vectors: Further parameters that have no weight decay.

    Returns:
        The `Architecture`; state (1, k·d, 1), which is that of the cell.
    """

    def signals(
        params: Any, u: Array, start: Array | None = None, h: Array | None = None
    ) -> Signals:
        dtype, d = state_dtype(u.dtype), params.bias.shape[-1]
        start = starts(u.shape[0]) if start is None else start
        first = jnp.zeros((parts, d), dtype) if h is None else h.reshape(parts, d).astype(dtype)
        x = affine(params.W_u, u, params.bias, wide=True)
        own = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        W_h = _in_heads(own.W_h)

        def advance(s: Array, now: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
            x_t, starts_here = now
            before = jnp.where(starts_here, 0, s)
            s = update(own, x_t, recurrent(W_h, before[0]), before)
            return s, (before, s)

        _, (before, after) = jax.lax.scan(advance, first, (x, start))
        r = recurrent(W_h, before[:, 0])

        # φ goes channel by channel: one derivative per gate and part, for all channels at once.
        def slope(towards: Array) -> Array:
            dr, ds = (
                jnp.broadcast_to(e[None, :, None], like.shape)
                for e, like in zip(jnp.split(towards, [len(W_h)]), (r, before), strict=True)
            )
            return jax.jvp(lambda r, s: update(own, x, r, s), (r, before), (dr, ds))[1]

        slopes = jax.vmap(slope, out_axes=2)(jnp.eye(len(W_h) + parts, dtype=dtype))
        gates, keep = jnp.split(slopes, [len(W_h)], axis=2)
        moved = (gates * r[:, None]).sum(axis=2) + (keep * before[:, None]).sum(axis=2)
        return Signals(gates, keep, (after - moved).astype(u.dtype), after)

    def assemble(params: Any, signals: Signals, *, reset: Array | None = None) -> System:
        _, parts, d = signals.v.shape
        A = Gated(signals.gates, signals.keep, _in_heads(params.W_h))
        shape = (1, parts * d, 1)
        return System(A, EntryInput(), FirstEntries(d), reset=reset, state_shape=shape)

    def solved(signals: Signals) -> tuple[Array, Array]:
        return signals.s[:, 0].astype(signals.v.dtype), signals.s[-1].reshape(1, -1, 1)

    def value_map(params: Any) -> Array:
        raise ValueError(
            "system: expected values that are linear in the token, got those of a cell that is not "
            "linear. Use system_and_tokens, or run assemble(params, signals) on values(signals)."
        )

    labels = labels_without_decay(*vectors)
    parts_of_it = init, signals, assemble, value_map, labels, traits
    return Architecture(*parts_of_it, reads_state=True, solved=solved)


def cell_of(update: Update) -> Callable[[Any, Array, Array], Array]:
    """A gated cell as ``cell(params, s (k, d), u_t (d,)) -> s``, for `dsfjax.linearize`.

    Args:
        update: φ, elementwise over channels.
    """

    def cell(params: Any, s: Array, u_t: Array) -> Array:
        x = jnp.einsum("gde,e->gd", params.W_u, u_t, precision="highest") + params.bias
        return update(params, x, recurrent(_in_heads(params.W_h), s[0]), s)

    return cell
