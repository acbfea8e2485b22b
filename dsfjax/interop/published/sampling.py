"""The next token from logits."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array


def check_sampling(n: int, temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise `ValueError` for arguments of generation that make no sense."""
    if n < 1:
        raise ValueError(f"generate: expected n of at least 1 token, got {n}.")
    if not temperature >= 0:
        raise ValueError(f"generate: expected temperature of at least 0, got {temperature}.")
    if top_k is not None and top_k < 1:
        raise ValueError(f"generate: expected top_k of at least 1, got {top_k}.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"generate: expected top_p above 0 and at most 1, got {top_p}.")


@partial(jax.jit, static_argnums=(2, 3, 4))
def sampled(
    logits: Array, key: Array, temperature: float, top_k: int | None, top_p: float | None
) -> Array:
    """One token per sequence from logits (B, vocab)."""
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits.astype(jnp.float32) / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p is not None and top_p < 1:
        ordered = jnp.sort(logits, axis=-1)[:, ::-1]
        share = jax.nn.softmax(ordered, axis=-1)
        enough = jnp.cumsum(share, axis=-1) - share < top_p  # the first that reach it, with it
        least = jnp.min(jnp.where(enough, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)
