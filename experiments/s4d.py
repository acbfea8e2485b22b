r"""S4D, and two ways to run it that one writes by hand: an architecture and engines of one's own.

.. math:: h_t = e^{ΔA} ⊙ h_{t-1} + \frac{e^{ΔA} - 1}{A} u_t, \quad
          y_t = 2\,\mathrm{Re}(C^\top h_t) + D u_t, \quad A = -e^{ρ} + iω,

for every channel by itself, with n complex states that are constant in time (S4D-Lin: ρ = log ½,
ω = π·0, π·1, …). Nothing in the package knows this file: ``dsfjax train digits --import
experiments.s4d --mixer s4d`` trains it, and the models of this process run with the engines inside
of `named`.

References:
    Gu et al. (2022), arXiv:2206.11893 (S4D). Gu et al. (2022), arXiv:2111.00396 (the convolution).
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax import Engine, systems
from dsfjax.core import Diagonal, InnerOutput, OuterInput, System, ValueSkip
from dsfjax.core.diagonal import Elementwise
from dsfjax.engines import ENGINES
from dsfjax.engines.recurrence import Recurrence
from dsfjax.systems import Architecture, Traits
from dsfjax.systems.primitives import labels_without_decay


class Params(NamedTuple):
    """log Δ (H,); ρ, ω, and the two parts of C, (H, n); D (H,)."""

    log_dt: Array
    log_rate: Array
    frequency: Array
    c_re: Array
    c_im: Array
    D: Array


class Signals(NamedTuple):
    """The tokens, as values (L, H, 1)."""

    v: Array


def s4d(*, d_model: int, d_state: int = 16) -> Architecture:
    """A constant complex diagonal system for every channel.

    Args:
        d_model: d, width of tokens and outputs; H = d.
        d_state: n, complex states of a channel.

    Returns:
        The `Architecture`; state (d, n, 1).
    """

    def init(key: Array) -> Params:
        key_dt, key_re, key_im = jax.random.split(key, 3)
        low, high = math.log(1e-3), math.log(1e-1)
        shape = (d_model, d_state)
        return Params(
            log_dt=jax.random.uniform(key_dt, (d_model,), minval=low, maxval=high),
            log_rate=jnp.full(shape, math.log(0.5)),
            frequency=jnp.broadcast_to(math.pi * jnp.arange(d_state), shape).astype(float),
            c_re=jax.random.normal(key_re, shape) * math.sqrt(0.5),
            c_im=jax.random.normal(key_im, shape) * math.sqrt(0.5),
            D=jnp.ones(d_model),
        )

    def assemble(params: Params, signals: Signals, *, reset: Array | None = None) -> System:
        A = jax.lax.complex(-jnp.exp(params.log_rate), params.frequency)
        log_a = jnp.exp(params.log_dt)[:, None] * A
        return System(
            Diagonal(log_a[None, :, :, None]),
            OuterInput(((jnp.exp(log_a) - 1) / A)[None]),
            InnerOutput(jax.lax.complex(params.c_re, params.c_im)[None], conjugate_pairs=True),
            ValueSkip(params.D[None, :, None]),
            reset=reset,
            state_shape=(d_model, d_state, 1),
        )

    return Architecture(
        init,
        lambda params, u: Signals(u[:, :, None]),
        assemble,
        labels=labels_without_decay(*Params._fields),
        traits=Traits(
            "diagonal, complex, constant", "d · n, complex", "yes: Δ, A", "(0, 1)", "none"
        ),
    )


systems.register("s4d", s4d)


@dataclass(frozen=True)
class ByHand(Engine):
    """What is differentiated as it is written, and has nothing around it."""

    # Not true, but so `scan` leaves out what it puts around engines that mix steps: the guard
    # against NaN and ∞, which nobody writes by hand.
    is_stepwise: ClassVar[bool] = True
    has_forward_mode: ClassVar[bool] = True


@dataclass(frozen=True)
class AssociativeByHand(ByHand):
    """`jax.lax.associative_scan` over all pairs (a_t, f_t), with autodiff; no resets."""

    name: ClassVar[str] = "associative_by_hand"

    def run(self, recurrence: Recurrence, h0: Array) -> tuple[Array, Array]:
        """All states, then what is read of them."""
        assert isinstance(recurrence.A, Elementwise)
        f = jnp.broadcast_to(recurrence.forcing(), (recurrence.length, *h0.shape))
        a = jnp.broadcast_to(recurrence.A.decay(), f.shape).astype(f.dtype)
        f = f.at[0].add(a[0] * h0)
        h = jax.lax.associative_scan(lambda i, j: (j[0] * i[0], j[0] * i[1] + j[1]), (a, f))[1]
        return recurrence.read(h), h[-1]


@dataclass(frozen=True)
class Convolution(ByHand):
    r"""The outputs of a constant system as a convolution by FFT, with autodiff; no resets.

    .. math:: s = K * x, \qquad K_t = c^\top (a^t ⊙ b), \quad t = 0, …, L - 1 .
    """

    name: ClassVar[str] = "convolution_by_fft"

    def run(self, recurrence: Recurrence, h0: Array) -> tuple[Array, Array]:
        """The convolution of every channel; complex systems are read by their real part."""
        A, b, c = recurrence.A, recurrence.b, recurrence.c
        assert isinstance(A, Elementwise) and b is not None and c is not None
        length, x = recurrence.length, recurrence.x[:, 0, :, 0].real
        steps = jnp.arange(length)[:, None, None].astype(x.dtype)
        powers = jnp.exp(steps * A.log_decay()[..., 0])  # a^t, (L, H, n)
        # One pass over the powers gives the kernel, and what is read of the state before.
        weights = jnp.stack([b[0, 0], A.decay()[0, ..., 0] * h0[..., 0]], axis=-1)
        kernel, entered = jnp.moveaxis(jnp.einsum("lhn,hnk->lhk", powers * c[0, 0], weights), 2, 0)
        size = 2 * length  # so that nothing wraps around
        spectrum = jnp.fft.rfft(kernel.real, size, axis=0) * jnp.fft.rfft(x, size, axis=0)
        s = jnp.fft.irfft(spectrum, size, axis=0)[:length] + entered.real
        last = jnp.einsum("lhn,lh->hn", powers[::-1], x) * b[0, 0]
        last = last + powers[-1] * A.decay()[0, ..., 0] * h0[..., 0]
        return s[:, None, :, None].astype(h0.dtype), last[..., None]


BY_HAND = (AssociativeByHand(), Convolution())


@contextlib.contextmanager
def named() -> Iterator[None]:
    """Let configs of models name the engines of this file."""
    ENGINES.update({engine.name: engine for engine in BY_HAND})
    try:
        yield
    finally:
        for engine in BY_HAND:
            del ENGINES[engine.name]
