r"""Two ways to run a constant diagonal system such as S4D that one writes by hand, as engines.

The models of this process run with them inside of `named`.

References:
    Gu et al. (2022), arXiv:2111.00396 (the convolution).
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax import Engine
from dsfjax.core.diagonal import Elementwise
from dsfjax.engines import ENGINES
from dsfjax.engines.recurrence import Recurrence


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
