r"""Diagonal recurrences step by step: decays that vary over the value channels, or n = 1.

Nothing here multiplies as matrices, so a segment is run step by step, the steps of all its chunks
side by side: first each chunk from the zero state, which gives Q of h' = P h + Q; then the state
crosses the chunks; then each chunk again, from its state. A segment of one chunk needs only the
last. The cotangent of the state obeys the adjoint recurrence, which runs backwards in the same way:
with G_t the cotangent of h_t and ∂s_t that of s_t = c_tᵀ h_t,

.. math::
   G_t = c_t ⊗ ∂s_t + a_{t+1} ⊙ G_{t+1}, \qquad
   ∂\log a_t = G_t ⊙ a_t ⊙ h_{t-1}, \quad
   ∂b_t = G_t x_t, \quad ∂x_t = b_t^\top G_t, \quad ∂c_t = h_t \, ∂s_t .

With ranks above 1 each step has several b, x and c; what they give is summed up.

Arrays of a step have the axes (chunk, H, n, p), as states have outside: p last, because a CPU goes
through short rows slowly, and where a decay varies over the channels these are many and the states
few. A loop takes its step out of the arrays by an index on the second axis, and puts its results
there, so that no array is copied to bring time to the front.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax._util.varying import zeros_as
from dsfjax.core.diagonal import Elementwise, repeated
from dsfjax.core.rows import inner
from dsfjax.core.system import System
from dsfjax.core.transitions import Transition, to_heads
from dsfjax.engines.chunks.algorithm import ChunkAlgorithm, held
from dsfjax.engines.engine import Cost, flops_of_step
from dsfjax.engines.recurrence import Recurrence
from dsfjax.engines.slices import block, put

_FEW_STATES = 16


class _Inputs(NamedTuple):
    """A recurrence in the axes of this module; the first two are chunk and step, or 1 and 1.

    Attributes:
        log_a: (k, c, H, n, p), any of the last two 1; of a factored decay the step, (…, 1, p or 1).
        rate: Of a factored decay, (1, H, n, p); None otherwise.
        negative: Where the decay is negative, (k, c, H, n, p), any of the last two 1; or None.
        b: (k, c, H, n) of every term that is written; None for n = 1, and with full forcing.
        x: (k, c, H, p) of every term; with b None the forcing (k, c, H, n, p) alone.
        c: (k, c, H, n) of every term that is read; None for n = 1, and if all states are emitted.
        reset: (k, c) or None.
    """

    log_a: Array
    rate: Array | None
    negative: Array | None
    b: tuple[Array, ...] | None
    x: tuple[Array, ...]
    c: tuple[Array, ...] | None
    reset: Array | None

    def at(self, t: Array | int) -> _Inputs:
        """The inputs of one step of every chunk, without the axis of steps."""

        def take(v: Array) -> Array:
            # What is constant in time has one step for all (its chunks are one as well).
            return v[:, 0] if v.shape[1] == 1 else _at(v, t)

        return jax.tree.map(take, self._replace(rate=None))._replace(rate=self.rate)

    def decay(self, dtype: jnp.dtype) -> Array:
        """a_t of one step, (k, H, n, p)."""
        # Step × rate of one step: the product of the two for all steps would be as large as all
        # states.
        log_a = self.log_a if self.rate is None else self.log_a * self.rate
        a = jnp.exp(log_a).astype(dtype)
        return a if self.negative is None else jnp.where(self.negative, -a, a)

    def forcing(self) -> Array:
        """b_t ⊗ x_t of one step, summed over the terms, (k, H, n, p)."""
        return self.x[0] if self.b is None else _outer(self.x, self.b)

    def keep(self, h: Array) -> Array:
        """The state without that of before a reset."""
        # A selection and not a product with 0: a NaN ends at a reset.
        return h if self.reset is None else jnp.where(_column(self.reset), 0, h)

    def advance(self, h: Array) -> Array:
        """The state after the step."""
        return self.decay(h.dtype) * self.keep(h) + self.forcing()

    def retreat(self, G: Array) -> Array:
        """The cotangent of the state before the step, from that of the state after it."""
        # The adjoint of keep-then-decay. A reset ends cotangents as it ends states.
        return self.keep(self.decay(G.dtype) * G)

    def inject(self, ds: tuple[Array, ...]) -> Array:
        """The cotangent of the state from those of what is read of it."""
        return ds[0] if self.c is None else _outer(ds, self.c)


@dataclass(frozen=True)
class SideBySide(ChunkAlgorithm):
    """Steps of many chunks side by side, for diagonal transitions."""

    name: ClassVar[str] = "elementwise"

    def against(self, A: Transition, *, states: bool = False) -> str | None:
        """Why it does not run a transition; see `ChunkAlgorithm.against`."""
        return None if A.is_diagonal else "it is not diagonal"

    def forward(self, problem: Recurrence, h0: Array, chunk: int) -> tuple[Array, Array, Array]:
        """Run one segment; see `ChunkAlgorithm.forward`."""
        inputs = _inputs(problem, h0.shape, chunk)
        starts = _states_between(inputs, h0, problem.length // chunk, chunk)

        def body(t: Array | int, carry: tuple[Array, Any]) -> tuple[Array, Any]:
            h, outs = carry
            now = inputs.at(t)
            h = now.advance(h)
            reads = [h] if now.c is None else [_read(h, c, problem.precision) for c in now.c]
            return h, [_put(out, read, t) for out, read in zip(outs, reads, strict=True)]

        heads, _, p = h0.shape
        shape, terms = (h0.shape, 1) if inputs.c is None else ((heads, p), len(inputs.c))
        outs = [zeros_as(h0, (starts.shape[0], chunk, *shape)) for _ in range(terms)]
        h, outs = jax.lax.fori_loop(0, chunk, body, (starts, outs))
        outs = [out.reshape(-1, *shape) for out in outs]
        if problem.emit_states:
            return outs[0], h[-1], starts
        out = jnp.stack([x[..., 0, :] if inputs.c is None else x for x in outs], axis=1)
        return out, h[-1], starts

    def backward(
        self,
        problem: Recurrence,
        starts: Array,
        d_out: Array,
        dh: Array,
        d_starts: Array | None,
        chunk: int,
    ) -> tuple[list[Array], Array]:
        """Cotangents of one segment; see `ChunkAlgorithm.backward`."""
        precision = problem.precision
        inputs = _inputs(problem, dh.shape, chunk)
        d_out = d_out.reshape(-1, chunk, *d_out.shape[1:])
        # In the axes of what was read: states, the one state of a channel, or each of the terms.
        if problem.emit_states:
            d_outs = (d_out,)
        elif inputs.c is None:
            d_outs = (d_out[:, :, 0, :, None],)
        else:
            d_outs = tuple(d_out[:, :, i] for i in range(len(inputs.c)))
        aG = _cotangents_between(inputs, d_outs, dh, d_starts, chunk)

        # The states inside the chunks were not kept: forwards once more, from the start of each.
        # The cotangents of c come with them.
        def again(t: Array | int, carry: Any) -> Any:
            h, before, d_c = carry
            now = inputs.at(t)
            before, h = _put(before, now.keep(h), t), now.advance(h)
            if inputs.c is not None:
                found = tuple(_sum_channels(_at(x, t), h, precision) for x in d_outs)
                d_c = jax.tree.map(partial(_add_step, t), d_c, found, inputs.c)
            return h, before, d_c

        count, *state = starts.shape
        before = zeros_as(starts, (count, chunk, *state))
        d_c = jax.tree.map(lambda c: zeros_as(starts, (count, *c.shape[1:])), inputs.c)
        _, before, d_c = jax.lax.fori_loop(0, chunk, again, (starts, before, d_c))

        # The loop carries aG = a_{t+1} ⊙ G_{t+1}, the cotangent of h_t from what comes after step
        # t, and the cotangents of the inputs found so far.
        def body(s: Array | int, carry: tuple[Array, _Inputs]) -> tuple[Array, _Inputs]:
            aG, total = carry
            t = chunk - 1 - s
            now, d_b = inputs.at(t), None
            ds = tuple(_at(x, t) for x in d_outs)
            G = aG + now.inject(ds)
            if now.b is None:  # x is what is added to the state
                d_x = (G,)
            else:
                # Products with G = a_{t+1} G_{t+1} + ∂s ⊗ c, without forming it: what ∂s ⊗ c adds
                # to them is a product of numbers and vectors.
                known = G if now.c is None else aG
                read = () if now.c is None else tuple(zip(ds, now.c, strict=True))
                d_x = [_read(known, b, precision) for b in now.b]
                d_b = [_sum_channels(x, known, precision) for x in now.x]
                for i, (b, x) in enumerate(zip(now.b, now.x, strict=True)):
                    for d, c in read:
                        d_x[i] = d_x[i] + d * inner(b, c)
                        d_b[i] = d_b[i] + c * inner(d, x)
                d_x, d_b = tuple(d_x), tuple(d_b)
            aG = now.retreat(G)
            # ∂log a = G ⊙ a ⊙ h_{t-1}, and the step before needs aG = a ⊙ G in any case.
            d_log, d_rate = aG * _at(before, t), None
            if now.rate is not None:  # log a = step × rate
                d_rate = d_log * now.log_a
                d_log = d_log * now.rate
            d_log = _sum_to(d_log, now.log_a.shape[-2:])
            return aG, _accumulate(
                total, _Inputs(d_log, d_rate, None, d_b, d_x, None, None), inputs, t
            )

        # One sum per chunk also for what is constant in time: `_recurrence` adds them up.
        bare = inputs._replace(rate=None, negative=None, c=None, reset=None)
        total = jax.tree.map(lambda v: zeros_as(dh, (starts.shape[0], *v.shape[1:])), bare)
        if inputs.rate is not None:
            total = total._replace(rate=zeros_as(aG, aG.shape))
        aG, total = jax.lax.fori_loop(0, chunk, body, (aG, total))
        total = total._replace(c=d_c)
        # At its end the loop has the cotangents of the states before the chunks. The later ones
        # have gone to the chunks before them (`_cotangents_between`); the first is that of h0.
        dh = aG[0] if d_starts is None else aG[0] + d_starts[0]
        return jax.tree.leaves(_recurrence(total, problem)), dh

    def cost(self, system: System, length: int, chunk: int, segment: int) -> Cost:
        """What a forward pass costs; see `dsfjax.Engine.cost`."""
        passes = 2 if segment > chunk else 1  # chunks side by side are run twice
        flops = length * flops_of_step(system) * passes
        return Cost(flops, held(system, length, chunk, segment))


ELEMENTWISE = SideBySide()


def _states_between(inputs: _Inputs, h0: Array, count: int, chunk: int) -> Array:
    """The states before every chunk, (k, H, n, p)."""
    if count == 1:
        return h0[None]
    # All chunks start from zero here, so that none waits for another.
    added = zeros_as(h0, (count, *h0.shape))
    added = jax.lax.fori_loop(0, chunk, lambda t, h: inputs.at(t).advance(h), added)

    return _cross_chunks(inputs, chunk, h0, added, reverse=False)


def _cotangents_between(
    inputs: _Inputs, d_outs: tuple[Array, ...], dh: Array, d_starts: Array | None, chunk: int
) -> Array:
    """The cotangents of the states after every chunk, (k, H, n, p)."""
    count = d_outs[0].shape[0]
    if count == 1:
        return dh[None]

    def body(s: Array | int, aG: Array) -> Array:
        now = inputs.at(chunk - 1 - s)
        return now.retreat(aG + now.inject(tuple(_at(x, chunk - 1 - s) for x in d_outs)))

    added = zeros_as(dh, (count, *dh.shape))
    added = jax.lax.fori_loop(0, chunk, body, added)
    added = added if d_starts is None else added + d_starts
    return _cross_chunks(inputs, chunk, dh, added, reverse=True)


def _cross_chunks(
    inputs: _Inputs, chunk: int, start: Array, added: Array, *, reverse: bool
) -> Array:
    """What enters every chunk, (k, H, n, p), from what enters the first and what each adds."""
    # The decay of a whole chunk, of which a decay of 0 (log −∞) makes 0.
    log_a = inputs.log_a
    total = repeated(log_a[:, 0], chunk) if log_a.shape[1] == 1 else log_a.sum(axis=1)
    decay = jnp.exp(total if inputs.rate is None else total * inputs.rate).astype(added.dtype)
    if (negative := inputs.negative) is not None:
        count = (
            negative[:, 0].astype(jnp.int32) * chunk
            if negative.shape[1] == 1
            else negative.sum(axis=1)
        )
        # The sign of a product is that of the number of its negative factors.
        decay = jnp.where(count % 2 == 1, -decay, decay)
    decay = jnp.broadcast_to(decay, added.shape)
    # One reset in a chunk is enough to part the state after it from that before it.
    cut = None if inputs.reset is None else inputs.reset.any(axis=1)

    def body(h: Array, step: tuple[Array, Array, Array | None]) -> tuple[Array, Array]:
        decay, added, cut = step
        # A selection and not a decay of 0: a NaN ends at a reset.
        kept = decay * h if cut is None else jnp.where(cut, 0, decay * h)
        return kept + added, h

    return jax.lax.scan(body, start, (decay, added, cut), reverse=reverse)[1]


def _accumulate(total: _Inputs, now: _Inputs, inputs: _Inputs, t: Array | int) -> _Inputs:
    """Put the cotangents of a step in their places; sum those of what is constant in time."""
    rate = None if now.rate is None or total.rate is None else total.rate + now.rate
    bare = [v._replace(rate=None, negative=None, c=None, reset=None) for v in (total, now, inputs)]
    return jax.tree.map(partial(_add_step, t), *bare)._replace(rate=rate)


def _add_step(t: Array | int, total: Array, value: Array, of: Array) -> Array:
    # By the shape of the input and not of the cotangent, which has one place per step in any case.
    return total + value[:, None] if of.shape[1] == 1 else _put(total, value, t)


def _inputs(problem: Recurrence, state_shape: tuple[int, ...], chunk: int) -> _Inputs:
    """Bring a recurrence to the axes of this module."""
    A, heads = problem.A, state_shape[0]
    assert isinstance(A, Elementwise)
    problem = problem.in_dtype(problem.dtype)

    # (L, …) to (k, c, …), and what is constant in time to (1, 1, …), which broadcasts.
    def cut(v: Array) -> Array:
        constant = v.shape[0] != problem.length
        return v[None] if constant else v.reshape(-1, chunk, *v.shape[1:])

    if (factors := A.factors) is None:
        log_a, rate = A.log_decay(), None
    else:
        log_a, rate = factors.step[..., None, :], factors.rate[None]

    def terms(v: Array) -> tuple[Array, ...]:
        return tuple(cut(to_heads(v[:, i], heads)) for i in range(v.shape[1]))

    if problem.f is not None:
        b, x = None, (cut(problem.f),)
    elif problem.b is None:
        b, x = None, (cut(problem.x[:, 0, :, None]),)
    else:
        b, x = terms(problem.b), tuple(cut(problem.x[:, i]) for i in range(problem.x.shape[1]))
    negative = A.negative()
    return _Inputs(
        cut(log_a),
        rate,
        None if negative is None else cut(negative),
        b,
        x,
        None if problem.emit_states or problem.c is None else terms(problem.c),
        None if problem.reset is None else problem.reset.reshape(-1, chunk),
    )


def _recurrence(d: _Inputs, problem: Recurrence) -> tuple[Any, ...]:
    """Cotangents of the arrays of ``problem``, in their axes and order (A, b, x, c, f)."""
    A, full = problem.A, problem.f is not None
    assert isinstance(A, Elementwise)

    def join(v: Array, like: Array) -> Array:
        v = v.sum(axis=0) if like.shape[0] != problem.length else v.reshape(-1, *v.shape[2:])
        # A real array in a recurrence of complex states has a real cotangent.
        return v if jnp.iscomplexobj(like) else v.real

    def vectors(terms: tuple[Array, ...] | None, like: Array | None) -> Array | None:
        if terms is None or like is None:
            return None if like is None else jnp.zeros_like(like)
        v = jnp.stack([join(x, like) for x in terms], axis=1)
        # The cotangent of a vector that heads share is the sum of theirs.
        return v.reshape(*v.shape[:2], like.shape[2], -1, v.shape[-1]).sum(axis=3)

    if (factors := A.factors) is None:
        dA: Any = join(d.log_a, A.log_decay()).reshape(jax.tree.leaves(A)[0].shape)
    else:
        assert d.rate is not None
        rate = _sum_to(d.rate.sum(axis=0), factors.rate.shape[-2:])
        rate = rate if jnp.iscomplexobj(factors.rate) else rate.real
        dA = (join(d.log_a, factors.step)[..., 0, :], rate)
    like = problem.f if problem.f is not None else problem.x
    x = [join(v, like) for v in d.x]
    return (
        dA,
        vectors(d.b, problem.b),
        jnp.zeros_like(problem.x) if full else jnp.stack(x, axis=1).reshape(problem.x.shape),
        vectors(d.c, problem.c),
        x[0] if full else None,
    )


def _outer(x: tuple[Array, ...], b: tuple[Array, ...]) -> Array:
    """The sum of the outer products of (k, H, p) and (k, H, n), (k, H, n, p)."""
    # Elementwise, term by term, and not as one product of matrices: a step has many small ones.
    return reduce(add, (b[..., None] * x[..., None, :] for x, b in zip(x, b, strict=True)))


def _at(v: Array, t: Array | int) -> Array:
    return block(v, t, 1, axis=1).squeeze(1)


def _put(v: Array, value: Array, t: Array | int) -> Array:
    return put(v, value[:, None], t, axis=1)


def _read(h: Array, c: Array, precision: str) -> Array:
    """Sum over n: (k, H, p) from (k, H, n, p) and (k, H, n)."""
    if h.shape[-2] == 1:
        return h[..., 0, :] * c
    # Written out for all chunks where it is constant in time: both operands of the product then
    # have the same batch axes, k and h.
    c = jnp.broadcast_to(c, (h.shape[0], *c.shape[1:]))
    return jnp.einsum("khnp,khn->khp", h, c, precision=precision)


def _sum_channels(x: Array, h: Array, precision: str) -> Array:
    """Sum over p: (k, H, n) from (k, H, p) and (k, H, n, p)."""
    return jnp.einsum("khp,khnp->khn", x, h, precision=precision)


def _sum_to(x: Array, shape: tuple[int, ...]) -> Array:
    """Undo broadcasting of the last two axes: sum where ``shape`` has 1."""
    # As additions or products: inside loops XLA's sums over short axes are slow on CPUs, and so is
    # a product where the states are few.
    if shape[-2] != x.shape[-2]:
        if x.shape[-2] <= _FEW_STATES:
            x = reduce(add, (x[..., i : i + 1, :] for i in range(x.shape[-2])))
        else:
            x = _read(x, _ones_like(x[..., 0]), "highest")[..., None, :]
    if shape[-1] != x.shape[-1]:
        x = jnp.matmul(x, jnp.ones((x.shape[-1], 1), x.dtype), precision="highest")
    return x


def _ones_like(x: Array) -> Array:
    """Ones that `jax.vmap` takes for data: with constants, a product would reorder its operand."""
    one = jnp.ones((), x.dtype)
    return jnp.where(x == 0, one, one)


def _column(reset: Array) -> Array:
    return reset[:, None, None, None]
