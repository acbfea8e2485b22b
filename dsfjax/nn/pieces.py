"""Small reusable pieces: linear maps, norms, the short causal convolution, MLP and GLU, dropout."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float

from dsfjax.core.dtypes import product_dtype
from dsfjax.core.norms import layer_norm, rms_norm
from dsfjax.core.rows import dot_general
from dsfjax.engines import WHOLE, Shards

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "identity": lambda x: x,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


def param_dtype() -> Any:
    """Parameters are float32, or float64 where JAX has it enabled."""
    return jnp.result_type(float)


def linear(
    d_in: int,
    d_out: int,
    *,
    rngs: nnx.Rngs,
    init: str = "published",
    bias: bool = True,
    depth: int = 0,
    precision: str = "highest",
) -> nnx.Linear:
    """A linear map: N(0, 1/d_in) as published, N(0, 0.02²) by the authors; bias 0.

    Args:
        d_in: Input width.
        d_out: Output width.
        rngs: Source of randomness.
        init: "published" or "authors".
        bias: Whether there is one.
        depth: By the authors, maps into the residual stream are scaled by 1/√(2 · layers).
        precision: JAX's name for how products of float32 are computed.
    """
    std = 1 / math.sqrt(d_in)
    if init == "authors":
        std = 0.02 / math.sqrt(2 * depth) if depth else 0.02
    kernel_init = nnx.initializers.normal(std)
    return nnx.Linear(
        d_in,
        d_out,
        use_bias=bias,
        kernel_init=kernel_init,
        param_dtype=param_dtype(),
        precision=precision,
        dot_general=dot_general,
        rngs=rngs,
    )


class LayerNorm(nnx.LayerNorm):
    """That of Flax, computed by `dsfjax.core.norms`, which is faster on CPUs."""

    def __call__(self, x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
        """Bring rows to mean 0 and variance 1, scale and shift them."""
        assert self.scale is not None and self.bias is not None
        scale, bias = self.scale[...], self.bias[...]
        return layer_norm(_as_wide(x, scale), scale, bias, self.epsilon)


class RMSNorm(nnx.RMSNorm):
    """That of Flax, computed by `dsfjax.core.norms`, which is faster on CPUs."""

    def __call__(self, x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
        """Bring rows to a mean square of 1, and scale them."""
        assert self.scale is not None
        scale = self.scale[...]
        return rms_norm(_as_wide(x, scale), scale, self.epsilon)


def _as_wide(x: Array, scale: Array) -> Array:
    return x.astype(product_dtype(x.dtype, scale.dtype))


def norm(kind: str, width: int, *, rngs: nnx.Rngs) -> LayerNorm | RMSNorm:
    """LayerNorm or RMSNorm with ε = 1e-5."""
    make = LayerNorm if kind == "layer" else RMSNorm
    return make(width, epsilon=1e-5, param_dtype=param_dtype(), rngs=rngs)


class CausalConv(nnx.Module):
    r"""Depthwise causal convolution, :math:`y_t = b + \sum_{j<W} w_j ⊙ x_{t-W+1+j}`.

    The last tap multiplies the current sample. Samples before the sequence, and before the start of
    a document (``reset``), are zero. Taps and bias start uniform in ±1/√W, whatever ``init`` is.

    Attributes:
        kernel: (W, d).
        bias: (d,).
    """

    def __init__(self, width: int, channels: int, *, rngs: nnx.Rngs) -> None:
        bound = 1 / math.sqrt(width)

        def uniform(shape: tuple[int, ...]) -> Array:
            return jax.random.uniform(rngs.params(), shape, param_dtype(), -bound, bound)

        self.kernel = nnx.Param(uniform((width, channels)))
        self.bias = nnx.Param(uniform((channels,)))

    def __call__(
        self,
        x: Float[Array, "L d"],
        tail: Float[Array, "W d"] | None = None,
        *,
        reset: Bool[Array, " L"] | None = None,
    ) -> tuple[Float[Array, "L d"], Float[Array, "W d"]]:
        """Convolve x (L, d).

        Args:
            x: Input (L, d).
            tail: The last W − 1 inputs before x (W − 1, d), zeros by default.
            reset: Boolean (L,) or None.

        Returns:
            Output (L, d), and the tail after x.
        """
        kernel, bias = self.kernel[...], self.bias[...]
        width, length = kernel.shape[0], x.shape[0]
        if tail is None:
            tail = jnp.zeros((width - 1, x.shape[1]), x.dtype)
        padded = jnp.concatenate([tail.astype(x.dtype), x])
        segment = jnp.zeros(width - 1 + length, jnp.int32)
        if reset is not None:
            segment = segment.at[width - 1 :].set(jnp.cumsum(reset, dtype=jnp.int32))
        y = jnp.broadcast_to(bias[None], x.shape).astype(x.dtype)
        for tap in range(width):
            piece = padded[tap : tap + length]
            if reset is not None:
                same = segment[tap : tap + length] == segment[width - 1 :]
                piece = jnp.where(same[:, None], piece, 0)
            y = y + kernel[tap][None].astype(x.dtype) * piece
        tail = jnp.where((segment[length:] == segment[-1])[:, None], padded[length:], 0)
        return y, tail


class Decoder(nnx.Module):
    r"""Tokens from one vector: :math:`W\, n_3(f_2(n_2(f_1(n_1(x + p_i)))))` for token i.

    The n are norms, the f linear maps of width d with a GELU, and p are sines and cosines of the
    position i, as in the autoencoder of MAD (arXiv:2403.17844).
    """

    def __init__(
        self,
        num_tokens: int,
        width: int,
        vocab_size: int,
        *,
        kind: str,
        make: Callable[..., nnx.Linear],
        rngs: nnx.Rngs,
    ) -> None:
        self.num_tokens = num_tokens
        self.norms = nnx.Dict({f"norm_{i}": norm(kind, width, rngs=rngs) for i in range(3)})
        sizes = (width, width, vocab_size)
        self.maps = nnx.Dict({f"map_{i}": make(width, size) for i, size in enumerate(sizes)})

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... L vocab"]:
        """Logits of all tokens from x (…, d)."""
        x = x[..., None, :] + positions(self.num_tokens, x.shape[-1]).astype(x.dtype)
        for i in range(2):
            x = jax.nn.gelu(self.maps[f"map_{i}"](self.norms[f"norm_{i}"](x)), approximate=False)
        return self.maps["map_2"](self.norms["norm_2"](x))


def positions(length: int, width: int) -> Float[Array, "L d"]:
    """Sines, then cosines of the position at frequencies from 1 down to 1/10,000.

    Args:
        length: Positions, from 0.
        width: d; the last column is 0 where it is odd.
    """
    half = width // 2
    rates = 10_000.0 ** (-jnp.arange(half) / max(half - 1, 1))
    angles = jnp.arange(length)[:, None] * rates[None]
    waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
    return jnp.pad(waves, ((0, 0), (0, width - 2 * half)))


class MLP(nnx.Module):
    """W₂ gelu(W₁ x + b₁) + b₂, or W₂ (silu(W₁ x) ⊙ W₃ x), with a hidden layer of ``ratio`` · d."""

    def __init__(
        self,
        d_model: int,
        ratio: int,
        *,
        kind: str = "gelu",
        init: str,
        depth: int,
        precision: str = "highest",
        rngs: nnx.Rngs,
    ) -> None:
        self.gated = kind == "swiglu"
        make = partial(linear, init=init, precision=precision, bias=not self.gated, rngs=rngs)
        self.fc1 = make(d_model, ratio * d_model)
        if self.gated:
            self.fc3 = make(d_model, ratio * d_model)
        self.fc2 = make(ratio * d_model, d_model, depth=depth)

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Apply to every row of x (…, d)."""
        if self.gated:
            return self.fc2(ACTIVATIONS["silu"](self.fc1(x)) * self.fc3(x))
        return self.fc2(ACTIVATIONS["gelu"](self.fc1(x)))


class GLU(nnx.Module):
    """Gated linear unit: [a, b] = W x, a ⊙ σ(b)."""

    def __init__(
        self, d_in: int, d_out: int, *, precision: str = "highest", rngs: nnx.Rngs
    ) -> None:
        self.linear = linear(d_in, 2 * d_out, precision=precision, rngs=rngs)

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... e"]:
        """Apply to every row of x (…, d); (…, d_out)."""
        a, b = jnp.split(self.linear(x), 2, axis=-1)
        return a * jax.nn.sigmoid(b)


def dropout(x: Array, rate: float | Array, key: Array | None, shards: Shards = WHOLE) -> Array:
    """Zero a fraction ``rate`` of x and scale the rest; nothing without a key (evaluation).

    What is dropped of a part of a sequence is what would be dropped there of the whole.
    """
    # A traced rate is computed with even where it is 0, which then keeps every entry as it is.
    if key is None or (isinstance(rate, float | int) and rate == 0):
        return x
    if isinstance(rate, Array):
        rate = rate.astype(x.dtype)
    keep = jax.random.bernoulli(key, 1 - rate, (shards.count * x.shape[0], *x.shape[1:]))
    keep = shards.own(keep)
    return jnp.where(keep, x / (1 - rate), 0)
