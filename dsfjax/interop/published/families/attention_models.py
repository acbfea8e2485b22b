"""Llama and Qwen3 (arXiv:2407.21783, 2505.09388): rotary softmax attention in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
from jax import Array

from dsfjax.interop.published.naming import Definition, Stream, Weights, family, layer
from dsfjax.interop.published.parts import (
    decoder,
    gated_mlp,
    linear,
    pre_norm,
    rms_norm,
)
from dsfjax.interop.published.rotary import Rotation, rotated, rotation_of
from dsfjax.interop.published.running import Run
from dsfjax.interop.published.tensor_files import Config


def rotary_attention(
    w: Weights,
    x: Array,
    run: Run,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    rotation: Rotation | None,
    bias: bool = False,
    out_bias: bool | None = None,
    norm_eps: float | None = None,
    plus_one: bool = False,
    whole_norms: bool = False,
    gated: bool = False,
    scale: float | None = None,
    window: int | None = None,
    soft_cap: float | None = None,
) -> Array:
    """Attention under q_proj, k_proj, v_proj, o_proj; norms of q and k before rotation.

    Args:
        w: Tensors.
        x: Input (L, d).
        run: The run.
        heads: Of queries.
        kv_heads: Of keys and values.
        head_dim: Channels of a head.
        rotation: Of q and k; None for no positions.
        bias: Whether q, k and v have one.
        out_bias: Whether the map out has one; as ``bias`` by default.
        norm_eps: ε of RMS norms of q and k under q_norm, k_norm; None for none.
        plus_one: Whether those norms multiply by 1 + weight.
        whole_norms: Whether those norms are over all heads together, not one by one.
        gated: Whether q_proj has a gate after the query of each head, whose sigmoid multiplies the
            output of that head.
        scale: Of the scores; head_dim^(−1/2) by default.
        window: Steps that a query sees, itself included; None for all.
        soft_cap: Of the scores.
    """
    query = head_dim * (2 if gated else 1)
    q, k, v = (
        linear(w.within(name), x, count * size, bias=bias).reshape(-1, count, size)
        for name, count, size in (
            ("q_proj", heads, query),
            ("k_proj", kv_heads, head_dim),
            ("v_proj", kv_heads, head_dim),
        )
    )
    q, gate = q[..., :head_dim], q[..., head_dim:]
    if norm_eps is not None:
        q, k = (
            _normed(w(f"{name}.weight", size), part, norm_eps, plus_one)
            for name, part, size in (
                ("q_norm", q, heads * head_dim if whole_norms else head_dim),
                ("k_norm", k, kv_heads * head_dim if whole_norms else head_dim),
            )
        )
    q, k = (rotated(part, run.positions, rotation) for part in (q, k))
    y = run.attend(q, k, v, scale=scale, window=window, soft_cap=soft_cap).astype(x.dtype)
    y = y * jax.nn.sigmoid(gate) if gated else y
    y = y.reshape(x.shape[0], -1)
    return linear(w.within("o_proj"), y, x.shape[1], bias=bias if out_bias is None else out_bias)


def _normed(weight: Array, x: Array, eps: float, plus_one: bool) -> Array:
    """RMS norm of x (L, H, m), over as many channels as the weight has."""
    rows = x.reshape(x.shape[0], -1, weight.shape[0])
    return rms_norm(rows, weight, eps, plus_one=plus_one).reshape(x.shape)


def _layer(
    w: Weights,
    stream: Stream,
    run: Run,
    *,
    eps: float,
    mlp: int,
    activation: str,
    mlp_bias: bool,
    **attention: Any,
) -> Stream:
    mixer = partial(rotary_attention, w.within("self_attn"), run=run, **attention)
    own = partial(gated_mlp, w.within("mlp"), width=mlp, activation=activation, bias=mlp_bias)
    return pre_norm(w, stream, mixer, own, eps)


def attention_settings(
    config: Config,
    *,
    head_dim: int | None = None,
    rotates: bool = True,
    share: float = 1.0,
) -> dict[str, Any]:
    """The settings of `rotary_attention` by their usual names.

    Args:
        config: The config.
        head_dim: Where the config does not say; d / heads by default.
        rotates: Whether there are rotary positions.
        share: Of the channels that are rotated, where the config does not say.
    """
    d = config.size("hidden_size")
    heads = config.part("num_attention_heads", "hidden_size", d)
    each = config.size("head_dim", d // heads if head_dim is None else head_dim)
    return {
        "heads": heads,
        "kv_heads": config.divisor("num_key_value_heads", "num_attention_heads", heads, heads),
        "head_dim": each,
        "rotation": rotation_of(config, each, share=share) if rotates else None,
        "bias": config.flag("attention_bias", False),
    }


@family("llama", "qwen3")
def llama(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Definition:
    """Llama; Qwen3 with norms of q and k per head, and windows in later layers if it says so."""
    del shapes
    qwen = config.get("model_type") == "qwen3"
    count, eps = config.count("num_hidden_layers"), config.positive("rms_norm_eps", 1e-6)
    windowed = qwen and config.flag("use_sliding_window", False)
    config.ignore("pretraining_tp", "layer_types", "max_window_layers", "sliding_window")
    config.ignore("use_sliding_window")
    own = {
        **attention_settings(config, head_dim=128 if qwen else None),
        "norm_eps": eps if qwen else None,
        "eps": eps,
        "mlp": config.size("intermediate_size"),
        "mlp_bias": not qwen and config.flag("mlp_bias", False),
        "activation": config.word("hidden_act", ("silu", "gelu", "gelu_pytorch_tanh"), "silu"),
    }
    first = config.size("max_window_layers", count) if windowed else count
    layers = (
        layer(
            _layer,
            f"model.layers.{i}.",
            window=config.size("sliding_window") if i >= first else None,
            **own,
        )
        for i in range(count)
    )
    return decoder(config, layers, eps=eps)
