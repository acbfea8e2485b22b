r"""What one writes without this library: recurrences and attention in a few lines of JAX.

They are differentiated automatically and read the parts of the same `System`, so that they compute
the same function as the engines do. Inputs in bfloat16 have their states and sums in float32, as in
the engines; in which precision products are computed is left to `jax.default_matmul_precision`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from dsfjax.analysis.normalizer import channel_maps
from dsfjax.core import Elementwise, KernelSystem, System
from dsfjax.core.transitions import to_heads

Run = Callable[[Any, Array], Array]


def associative_scan(system: System, u: Float[Array, "L d"]) -> Float[Array, "L d"]:
    """`jax.lax.associative_scan` over all pairs (a_t, f_t), then y_t = c_tᵀ h_t.

    Args:
        system: With a scalar or diagonal transition and the token as the value.
        u: Tokens (L, H·p).

    Returns:
        Outputs (L, H·p).
    """
    log_a, b, x, c = _parts(system, u)
    a, f = jnp.exp(log_a), b[..., None] * x[:, :, None, :]
    f = f.astype(jnp.result_type(a, f))
    a = jnp.broadcast_to(a, (f.shape[0], *a.shape[1:]))
    h = jax.lax.associative_scan(lambda i, j: (j[0] * i[0], j[0] * i[1] + j[1]), (a, f))[1]
    return _real(jnp.einsum("lhn,lhnp->lhp", c, h), system, u)


def lax_scan(system: System, u: Float[Array, "L d"]) -> Float[Array, "L d"]:
    """`jax.lax.scan`, one step after the other. Arguments as in `associative_scan`."""
    log_a, b, x, c = _parts(system, u)
    a = jnp.broadcast_to(jnp.exp(log_a), (x.shape[0], *log_a.shape[1:]))

    def body(h: Array, step: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
        a, b, x, c = step
        h = a * h + b[:, :, None] * x[:, None, :]
        return h, jnp.einsum("hn,hnp->hp", c, h)

    h = jnp.zeros((*b.shape[1:], x.shape[-1]), jnp.result_type(a, b, x))
    return _real(jax.lax.scan(body, h, (a, b, x, c))[1], system, u)


def quadratic(system: System, u: Float[Array, "L d"]) -> Float[Array, "L d"]:
    """(C Bᵀ ⊙ decay) X with all L × L entries, for a scalar decay."""
    log_a, b, x, c = _parts(system, u)
    total = jnp.cumsum(jnp.broadcast_to(log_a[:, :, 0, 0], x.shape[:2]), axis=0).T
    causal = jnp.tril(jnp.ones((x.shape[0], x.shape[0]), bool))
    decay = jnp.exp(jnp.where(causal, total[:, :, None] - total[:, None, :], -jnp.inf))
    scores = jnp.einsum("thn,shn->hts", c, b) * decay
    return _real(jnp.einsum("hts,shp->thp", scores, x), system, u)


def dot_product_attention(system: KernelSystem, u: Float[Array, "L d"]) -> Float[Array, "L d"]:
    """`jax.nn.dot_product_attention` with a causal mask, for softmax attention."""
    v = u.reshape(u.shape[0], system.num_heads, -1)
    y = jax.nn.dot_product_attention(system.q, system.k, v, scale=1.0, is_causal=True)
    return y.reshape(u.shape[0], -1)


BASELINES: dict[str, Run] = {
    "autodiff associative_scan": associative_scan,
    "autodiff lax.scan": lax_scan,
    "quadratic attention": quadratic,
    "jax.nn.dot_product_attention": dot_product_attention,
}


def _parts(system: System, u: Array) -> tuple[Array, Array, Array, Array]:
    """Log decays (L or 1, H, n, p), keys (L, H, n), scaled values (L, H, p), queries (L, H, n)."""
    (B, C), A = channel_maps(system), system.A
    assert isinstance(A, Elementwise)
    heads, n, p = system.state_shape
    x = u.reshape(u.shape[0], heads, p)
    x = x if B.scale is None else x * B.scale

    def vector(v: Array | None) -> Array:
        v = jnp.ones((1, heads, 1), u.dtype) if v is None else to_heads(v, heads)
        return jnp.broadcast_to(v, (u.shape[0], heads, n))

    return A.log_decay(), vector(B.b), x, vector(C.c)


def _real(y: Array, system: System, u: Array) -> Array:
    return system.C.real(y.reshape(y.shape[0], -1)).astype(u.dtype)
