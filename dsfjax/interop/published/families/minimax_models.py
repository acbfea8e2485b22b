"""MiniMax-Text-01 (arXiv:2501.08313): lightning attention and softmax attention, with experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax import ops
from dsfjax.core.dtypes import state_dtype
from dsfjax.interop.published.families.attention_models import rotary_attention
from dsfjax.interop.published.families.qwen_hybrid_models import FULL, LINEAR, layer_types
from dsfjax.interop.published.naming import Definition, Layer, Stream, Weights, family, layer
from dsfjax.interop.published.parts import (
    ACTIVATIONS,
    chosen_experts,
    decoder,
    expert_mlps,
    linear,
    rms_norm,
    routed,
)
from dsfjax.interop.published.rotary import rotation_of
from dsfjax.interop.published.running import Run
from dsfjax.interop.published.tensor_files import Config

_NORM_EPS = 1e-6  # of the norm after lightning attention, whatever the config says of the others


def lightning_mixer(
    w: Weights, x: Array, run: Run, *, slopes: tuple[float, ...], head_dim: int, activation: str
) -> Array:
    """Linear attention with decays exp(−slope) that are constant in time, norm, gate and map out.

    Args:
        w: Tensors.
        x: Input (L, d).
        run: The run.
        slopes: One per head.
        head_dim: Channels of a head.
        activation: Of q, k and v.
    """
    length, heads = x.shape[0], len(slopes)
    inner = heads * head_dim
    qkv = ACTIVATIONS[activation](linear(w.within("qkv_proj"), x, 3 * inner))
    q, k, v = jnp.split(qkv.reshape(length, heads, 3 * head_dim), 3, axis=2)
    decay = -jnp.asarray(slopes, state_dtype(x.dtype))
    y = run.op(ops.chunk_simple_gla, q, k, v, g_gamma=decay, scale=1.0).reshape(length, inner)
    y = rms_norm(y, w("norm.weight", inner), _NORM_EPS).astype(x.dtype)
    y = y * jax.nn.sigmoid(linear(w.within("output_gate"), x, inner))
    return linear(w.within("out_proj"), y, x.shape[1])


def _around(
    w: Weights,
    stream: Stream,
    mixer: Callable[[Array], Array],
    *,
    eps: float,
    factors: tuple[float, float, float, float],
    experts: tuple[int, int, int],
    activation: str,
) -> Stream:
    """Residuals are taken after the norms, and what is added has factors as well."""
    d = stream["x"].shape[1]
    kept, added, mlp_kept, mlp_added = factors
    x = rms_norm(stream["x"], w("input_layernorm.weight", d), eps)
    x = kept * x + added * mixer(x)
    x = rms_norm(x, w("post_attention_layernorm.weight", d), eps)
    own, (count, chosen, width) = w.within("block_sparse_moe"), experts
    scores = routed(own.within("gate"), x, count, chosen)
    mlps = expert_mlps(own, count, width, activation=activation, names=("w1", "w3", "w2"))
    return {"x": mlp_kept * x + mlp_added * chosen_experts(scores, mlps, x)}


def _lightning_layer(
    w: Weights,
    stream: Stream,
    run: Run,
    *,
    slopes: tuple[float, ...],
    head_dim: int,
    activation: str,
    **around: Any,
) -> Stream:
    own = {"slopes": slopes, "head_dim": head_dim, "activation": activation}
    mixer = partial(lightning_mixer, w.within("self_attn"), run=run, **own)
    return _around(w, stream, mixer, activation=activation, **around)


def _attention_layer(
    w: Weights,
    stream: Stream,
    run: Run,
    *,
    eps: float,
    factors: tuple[float, float, float, float],
    experts: tuple[int, int, int],
    activation: str,
    **own: Any,
) -> Stream:
    mixer = partial(rotary_attention, w.within("self_attn"), run=run, **own)
    around = {"eps": eps, "factors": factors, "experts": experts, "activation": activation}
    return _around(w, stream, mixer, **around)


@family("minimax")
def minimax(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Definition:
    """MiniMax-Text-01. Slopes are computed: the files have them rounded to float32."""
    del shapes
    count, eps = config.count("num_hidden_layers"), config.positive("rms_norm_eps", 1e-5)
    d, heads = config.size("hidden_size"), config.count("num_attention_heads")
    head_dim = config.size("head_dim") if config.given("head_dim") else d // heads
    config.ignore("block_size", "router_jitter_noise")
    experts = config.count("num_local_experts", 8)
    around = {
        "eps": eps,
        "activation": config.word("hidden_act", ACTIVATIONS, "silu"),
        "experts": (
            experts,
            config.part("num_experts_per_tok", "num_local_experts", experts, 2),
            config.size("intermediate_size", 14336),
        ),
    }
    rotary = config.part("rotary_dim", "head_dim", head_dim, head_dim)
    full = {
        "heads": heads,
        "kv_heads": config.divisor("num_key_value_heads", "num_attention_heads", heads, heads),
        "head_dim": head_dim,
        "rotation": rotation_of(config, head_dim, share=rotary / head_dim, theta=1_000_000.0),
        "window": config.size("sliding_window") if config.given("sliding_window") else None,
    }
    factors = {
        kind: tuple(
            config.number(f"{name}_{letter}_factor", 1.0)
            for name in (f"{short}_attn", "mlp")
            for letter in ("alpha", "beta")
        )
        for kind, short in ((LINEAR, "linear"), (FULL, "full"))
    }

    def of_layer(i: int, kind: str) -> Layer:
        prefix, own = f"model.layers.{i}.", {"factors": factors[kind], **around}
        if kind == FULL:
            return layer(_attention_layer, prefix, **own, **full)
        slopes = _slopes(heads, i, count)
        return layer(_lightning_layer, prefix, slopes=slopes, head_dim=head_dim, **own)

    default = (LINEAR if i % 2 else FULL for i in range(count))
    layers = (of_layer(i, kind) for i, kind in enumerate(layer_types(config, default)))
    buffers = ("slope_rate", "query_decay", "key_decay", "diagonal_decay")
    return decoder(config, layers, eps=eps, unused=buffers)


def _slopes(heads: int, index: int, count: int) -> tuple[float, ...]:
    """2^(−8 (h + 1) / H), smaller in later layers."""
    factor = 1 - index / (count - 1 + 1e-5) + 1e-5
    return tuple(2 ** (-8 * (h + 1) / heads) * factor for h in range(heads))
