"""OLMo-Hybrid (arXiv:2604.03444): gated delta rules with eigenvalues down to −1, and attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.interop.published.families.attention_models import attention_settings, rotary_attention
from dsfjax.interop.published.families.qwen_hybrid_models import (
    FULL,
    LINEAR,
    delta_rule,
    layer_types,
)
from dsfjax.interop.published.naming import Definition, Stream, Weights, family, layer
from dsfjax.interop.published.parts import (
    decoder,
    gated_mlp,
    linear,
    norm_then_gate,
    rms_norm,
)
from dsfjax.interop.published.running import Run
from dsfjax.interop.published.tensor_files import Config

_NORM_EPS = 1e-5  # of the norm after the delta rule, whatever the config says of the others


def convolved_heads(
    w: Weights,
    x: Array,
    run: Run,
    *,
    heads: tuple[int, int, int],
    channels: tuple[int, int, int],
    width: int,
    rows: tuple[int, ...] | None = None,
) -> list[Array]:
    """The maps to q, k and v, convolution and SiLU, under ``q_proj``, ``q_conv1d`` and so on.

    Args:
        w: Tensors.
        x: Input (L, d).
        run: The run.
        heads: Of q, k and v.
        channels: Of their heads.
        width: Of the convolution.
        rows: Rows of its three tensors, if they are together those of q, k and v in this order, cut
            elsewhere; by default each has its own.
    """
    sizes = [count * size for count, size in zip(heads, channels, strict=True)]
    rows = rows if rows is not None and sum(rows) == sum(sizes) else tuple(sizes)
    qkv = [linear(w.within(f"{n}_proj"), x, size) for n, size in zip("qkv", sizes, strict=True)]
    weight = [w(f"{n}_conv1d.weight", size, 1, width) for n, size in zip("qkv", rows, strict=True)]
    y = jax.nn.silu(run.conv(jnp.concatenate(qkv, axis=1), jnp.concatenate(weight)))
    parts = jnp.split(y, [sizes[0], sizes[0] + sizes[1]], axis=1)
    return [part.reshape(x.shape[0], n, -1) for part, n in zip(parts, heads, strict=True)]


def _mixer(
    w: Weights,
    x: Array,
    run: Run,
    *,
    key_heads: int,
    value_heads: int,
    key_dim: int,
    value_dim: int,
    width: int,
    rows: tuple[int, ...] | None,
    negative: bool,
) -> Array:
    heads, channels = (key_heads, key_heads, value_heads), (key_dim, key_dim, value_dim)
    q, k, v = convolved_heads(w, x, run, heads=heads, channels=channels, width=width, rows=rows)
    a, b = (linear(w.within(name), x, value_heads) for name in ("a_proj", "b_proj"))
    y = delta_rule(w, run, q, k, v, a, b, negative=negative)
    gate = linear(w.within("g_proj"), x, value_heads * value_dim).reshape(y.shape)
    y = norm_then_gate(y, gate, w("o_norm.weight", value_dim), _NORM_EPS)
    return linear(w.within("o_proj"), y.reshape(x.shape[0], -1), x.shape[1])


def _delta_layer(
    w: Weights, stream: Stream, run: Run, *, eps: float, mlp: int, **own: Any
) -> Stream:
    x = stream["x"]
    d = x.shape[1]
    before = w.first_of("attention_layer_norm", "input_layernorm")("weight", d)
    x = x + _mixer(w.within("linear_attn"), rms_norm(x, before, eps), run, **own)
    before = w.first_of("feedforward_layer_norm", "post_attention_layernorm")("weight", d)
    return {"x": x + gated_mlp(w.within("mlp"), rms_norm(x, before, eps), mlp)}


def _attention_layer(
    w: Weights, stream: Stream, run: Run, *, eps: float, mlp: int, **own: Any
) -> Stream:
    x = stream["x"]
    d = x.shape[1]
    y = rotary_attention(w.within("self_attn"), x, run, norm_eps=eps, whole_norms=True, **own)
    # The name of the other layers' second norm is that of this layer's first, as files have it.
    after = w.first_of("feedforward_layer_norm", "post_attention_layernorm")("weight", d)
    x = x + rms_norm(y, after, eps)
    y = gated_mlp(w.within("mlp"), x, mlp)
    return {"x": x + rms_norm(y, w("post_feedforward_layernorm.weight", d), eps)}


@family("olmo_hybrid")
def olmo_hybrid(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Definition:
    """OLMo-Hybrid: norms before the delta rules and after attention; no positions without θ."""
    count, eps = config.count("num_hidden_layers"), config.positive("rms_norm_eps", 1e-6)
    d, heads = config.size("hidden_size"), config.size("num_attention_heads")
    config.only("hidden_act", "silu")
    config.ignore("linear_a_log_max", "linear_a_log_min")
    config.ignore("linear_dt_init_floor", "linear_dt_max", "linear_dt_min")
    default = [FULL if i % 4 == 3 else LINEAR for i in range(count)]
    if FULL not in default:
        default[-1] = FULL
    types, full = layer_types(config, default), attention_settings(config)
    key_heads = config.size("linear_num_key_heads", heads)
    key_dim = config.size("linear_key_head_dim", int(0.75 * d / key_heads))
    delta = {
        "key_heads": key_heads,
        "value_heads": config.size("linear_num_value_heads", heads),
        "key_dim": key_dim,
        "value_dim": config.size("linear_value_head_dim", 2 * key_dim),
        "width": config.size("linear_conv_kernel_dim", 4),
        "negative": config.flag("linear_allow_neg_eigval", True),
    }
    mlp = config.size("intermediate_size")
    layers = (
        layer(
            _delta_layer if kind == LINEAR else _attention_layer,
            f"model.layers.{i}.",
            eps=eps,
            mlp=mlp,
            **({"rows": _rows(shapes, i), **delta} if kind == LINEAR else full),
        )
        for i, kind in enumerate(types)
    )
    return decoder(config, layers, eps=eps)


def _rows(shapes: Mapping[str, tuple[int, ...]], index: int) -> tuple[int, ...] | None:
    """Rows of the three tensors of a convolution if all have the same.

    Some files have the one tensor of q, k and v cut into thirds, wherever these three begin.
    """
    names = (f"model.layers.{index}.linear_attn.{n}_conv1d.weight" for n in "qkv")
    rows = tuple(shapes[name][0] for name in names if name in shapes)
    return rows if len(rows) == 3 and len(set(rows)) == 1 else None
