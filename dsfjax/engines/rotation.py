r"""Complex decays as positive ones, in coordinates that turn with them.

With σ_t the product of the phases a / |a| of the steps up to t, the state before the write of step
t is :math:`a_t ⊙ h_{t-1} = σ_t ⊙ g_t`, where

.. math:: g_t = |a_t| ⊙ (g_{t-1} + (\bar σ_{t-1} ⊙ b_{t-1}) \, x_{t-1}^\top), \qquad
   s_t = (σ_t ⊙ c_t)^\top g_t + (c_t^\top b_t) \, x_t^\top .

The decays of g are positive. With its real and imaginary part as 2n states, all products are of
real numbers:

.. math:: \mathrm{Re}(c^\top g)
   = \mathrm{Re}(c)^\top \mathrm{Re}(g) - \mathrm{Im}(c)^\top \mathrm{Im}(g) .

So a complex system is a real one whose vectors b and c are rotated, by angles that add up over the
steps: rotary positions that the decays set. A complex x is two real ones, that of i b the second,
and a complex s is read twice, by c and by −i c.

What a step writes it reads unturned: the two turns would undo each other, but their derivatives
only up to rounding, which is more than is left where decays forget within a step.

References:
    Rotary positions: Su et al. (2021), arXiv:2104.09864.
"""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax._util.accumulation import running
from dsfjax.core.diagonal import Diagonal, Scalar
from dsfjax.core.transitions import to_heads
from dsfjax.engines.guard import finite
from dsfjax.engines.recurrence import Recurrence

TURN = Fraction("0.15915494309189533576888376337251436203445964574046")
"""1 / 2π, to 50 digits."""
BLOCK = 128
"""Steps whose cosines are found at once."""


class Rotated(NamedTuple):
    """A recurrence of real numbers that stands for one with complex decays.

    Attributes:
        problem: That of g, with 2n states. A decay per state is of n, for both parts of a number,
            as chunks of matrix products take it (`chunks.products.for_states`).
        h0: State before it, (H, 2n, p).
        own: What every step reads of what it writes, (L, R, H, p).
        turn: σ_t, (L, H, n or 1).
        of: The complex recurrence.
    """

    problem: Recurrence
    h0: Array
    own: Array
    turn: Array
    of: Recurrence

    @classmethod
    def make(cls, problem: Recurrence, h0: Array) -> Rotated:
        """From a recurrence whose transition is a `Scalar` or `Diagonal` with complex decays.

        Args:
            problem: Recurrence with b, x and c, and no decays over p.
            h0: State before it, (H, n, p).
        """
        # A sum would carry what is not finite to all later steps: the guard has those values.
        problem, h0 = finite((problem, h0))
        A, heads, precision = problem.A, h0.shape[0], problem.precision
        assert isinstance(A, Scalar | Diagonal)
        log_a = A.log_decay()[..., 0]
        log_a = jnp.broadcast_to(log_a, (problem.length, *log_a.shape[1:]))
        cos, sin = running_phase(log_a.imag)
        modulus = jnp.exp(log_a.real)[:, None]
        if problem.reset is not None:
            modulus = jnp.where(problem.reset[:, None, None, None], 0, modulus)
        if modulus.shape[-1] > 1:
            modulus = _stacked(modulus, modulus)
        one = jnp.ones((1, 1, 1, 1), modulus.dtype)
        b, c = (one if v is None else to_heads(v, heads) for v in (problem.b, problem.c))
        x, is_real = problem.x.real, problem.is_real
        if not is_real:
            x = jnp.concatenate([x, problem.x.imag], axis=1)
        weight = jnp.einsum("trhn,tqhn->trqh", *_products(c, b, is_real), precision=precision)
        # A step writes what the one before it is given, after its own decay.
        late = dataclasses.replace(
            problem,
            A=_moduli(A),
            b=_late(_writer(*_turned(b, cos, -sin), is_real)) * modulus,
            x=_late(x),
            c=_reader(*_turned(c, cos, sin), is_real),
            is_real=False,
        )
        return cls(
            late,
            _stacked(h0.real, h0.imag, axis=-2),
            jnp.einsum("trqh,tqhp->trhp", weight, x, precision=precision),
            jax.lax.complex(cos, sin),
            problem,
        )

    def by_steps(self) -> Recurrence:
        """That of g with a decay for each of its 2n states, which single steps take as well."""
        A = self.problem.A
        if not isinstance(A, Diagonal) or A.log_decay().shape[-2] == 1:
            return self.problem
        log_a, sign = A.log_decay(), A.sign
        sign = None if sign is None else _stacked(sign, sign, axis=-2)
        log_a = _stacked(log_a, log_a, axis=-2)
        return dataclasses.replace(self.problem, A=Diagonal(log_a, sign))

    def outputs(self, out: Array) -> Array:
        """What is read of the complex states; its imaginary part is 0 where nobody reads it."""
        out = out + self.own
        if self.of.is_real:
            return out.astype(self.turn.dtype)
        return jax.lax.complex(*jnp.split(out, 2, axis=1))

    def last(self, g: Array) -> Array:
        """The last complex state (H, n, p) from that of g."""
        return self.states(g[None], jnp.array([self.of.length - 1]))[0]

    def states(self, g: Array, steps: Array) -> Array:
        """The complex states (K, H, n, p) after steps (K,) from those of g."""
        b, x = self.of.b, self.of.x[steps]
        b = b if b is None or b.shape[0] == 1 else b[steps]
        written = dataclasses.replace(self.of, b=b, x=x).forcing()
        return jax.lax.complex(*jnp.split(g, 2, axis=-2)) * self.turn[steps][..., None] + written


def _turned(v: Array, cos: Array, sin: Array) -> tuple[Array, Array]:
    """Real and imaginary part of v (cos + i sin), of vectors (T, r, H, n)."""
    cos, sin = cos[:, None], sin[:, None]
    if not jnp.iscomplexobj(v):
        return v * cos, v * sin
    return v.real * cos - v.imag * sin, v.real * sin + v.imag * cos


def _writer(re: Array, im: Array, is_real: bool) -> Array:
    """The vectors that write b x to real and imaginary parts, also i b unless x is real."""
    v = _stacked(re, im)
    return v if is_real else jnp.concatenate([v, _stacked(-im, re)], axis=1)


def _reader(re: Array, im: Array, is_real: bool) -> Array:
    """The vectors that read Re(cᵀh) of real and imaginary parts, also Im(cᵀh) unless not wanted."""
    v = _stacked(re, -im)
    return v if is_real else jnp.concatenate([v, _stacked(im, re)], axis=1)


def _products(c: Array, b: Array, is_real: bool) -> tuple[Array, Array]:
    """Real vectors with the inner products that those that read and write have unturned."""
    if is_real and not (jnp.iscomplexobj(b) or jnp.iscomplexobj(c)):
        return c, b
    return _reader(c.real, c.imag, is_real), _writer(b.real, b.imag, is_real)


def _late(v: Array) -> Array:
    """Every step has what the one before it had, the first has zeros."""
    return jnp.concatenate([jnp.zeros_like(v[:1]), v[:-1]])


def _moduli(A: Scalar | Diagonal) -> Scalar | Diagonal:
    """The transition with the moduli |a|."""
    if isinstance(A, Scalar):
        return Scalar(A.log_a.real, A.sign)
    return Diagonal(A.log_decay().real, A.sign)


def _stacked(re: Array, im: Array, *, axis: int = -1) -> Array:
    return jnp.concatenate([re, im], axis=axis)


@jax.custom_jvp
def running_phase(angle: Array) -> tuple[Array, Array]:
    """Cosine and sine of the sums of angles over the first axis, up to and including each.

    They are summed as whole numbers, in which a turn is 2³² (2⁶⁴ in float64). Such a sum drops
    whole turns by itself, however many there are, and they take no digits from what is left.
    """
    sums = running("sum", _whole(angle))
    # A loop, also for XLA on CPUs: what it makes is there, and not made again, a call per cosine,
    # in every kernel that uses it.
    angle = sums.astype(angle.dtype) * (2 * math.pi / 2.0 ** jnp.finfo(angle.dtype).bits)
    return jax.lax.map(lambda x: (jnp.cos(x), jnp.sin(x)), angle, batch_size=BLOCK)


@running_phase.defjvp
def _running_phase_jvp(primals: tuple[Array], tangents: tuple[Array]) -> Any:
    cos, sin = running_phase(*primals)
    moved = running("sum", tangents[0])
    return (cos, sin), (-sin * moved, cos * moved)


def _whole(angle: Array) -> Array:
    """Angles as whole numbers, of which a turn has 2³² or 2⁶⁴, without whole turns."""
    kind = jnp.finfo(angle.dtype)
    whole, turn, half = f"int{kind.bits}", 2.0**kind.bits, int(kind.nmant) // 2
    # Numbers of half the digits have exact products, so that no error of 2π adds up over the steps.
    large = jax.lax.reduce_precision(angle, int(kind.nexp), half)
    per_radian = round(TURN * 2 ** (half + 3)) / 2 ** (half + 3)
    first, left = large * per_radian, float(TURN - Fraction(per_radian))
    rest = large * left + (angle - large) * float(TURN)
    first, rest = first - jnp.round(first), rest - jnp.round(rest)
    return jnp.round(first * turn).astype(whole) + jnp.round(rest * turn).astype(whole)
