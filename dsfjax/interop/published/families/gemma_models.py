"""Gemma 2, Gemma 3 and RecurrentGemma (arXiv:2408.00118, 2503.19786, 2404.07839).

Softmax attention with windows, and in RecurrentGemma RG-LRU (arXiv:2402.19427) next to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from dsfjax.interop.published.families.attention_models import rotary_attention
from dsfjax.interop.published.naming import Definition, Layer, Stream, Weights, family, layer
from dsfjax.interop.published.parts import (
    ACTIVATIONS,
    decoder,
    gated_mlp,
    linear,
    pre_norm,
    rms_norm,
)
from dsfjax.interop.published.rotary import Rotation, rotation_of
from dsfjax.interop.published.running import Run
from dsfjax.interop.published.tensor_files import Config
from dsfjax.ops import rg_lru

_KINDS = ("sliding_attention", "full_attention")
_ACTIVATIONS = ("gelu_pytorch_tanh", "gelu_new", "gelu", "silu")
_BLOCKS = ("recurrent", "recurrent", "attention")


def _norm(w: Weights, name: str, x: Array, eps: float) -> Array:
    return rms_norm(x, w(f"{name}.weight", x.shape[1]), eps, plus_one=True)


def _layer(
    w: Weights,
    stream: Stream,
    run: Run,
    *,
    eps: float,
    mlp: int,
    activation: str,
    **attention: Any,
) -> Stream:
    """Attention and MLP, each with a norm before and one behind it."""
    x = stream["x"]
    y = _norm(w, "input_layernorm", x, eps)
    y = rotary_attention(w.within("self_attn"), y, run, plus_one=True, **attention)
    x = x + _norm(w, "post_attention_layernorm", y, eps)
    y = _norm(w, "pre_feedforward_layernorm", x, eps)
    y = gated_mlp(w.within("mlp"), y, mlp, activation=activation)
    return {"x": x + _norm(w, "post_feedforward_layernorm", y, eps)}


def _model(
    config: Config,
    layers: tuple[Layer, ...],
    scale: float,
    cap: float | None,
    norm: str = "model.norm.weight",
) -> Definition:
    return decoder(
        config,
        layers,
        eps=config.positive("rms_norm_eps", 1e-6),
        tied=True,
        norm=norm,
        scales=(scale, 1.0),
        plus_one=True,
        cap=cap,
    )


def _attention(config: Config) -> dict[str, Any]:
    """What the attention of all layers has in common, and the MLP."""
    heads = config.size("num_attention_heads")
    return {
        "heads": heads,
        "kv_heads": config.divisor("num_key_value_heads", "num_attention_heads", heads, 4),
        "head_dim": config.size("head_dim", 256),
        "bias": config.flag("attention_bias", False),
        "scale": config.positive("query_pre_attn_scalar", 256) ** -0.5,
        "eps": config.positive("rms_norm_eps", 1e-6),
        "mlp": config.size("intermediate_size"),
        "activation": config.word("hidden_activation", _ACTIVATIONS, "gelu_pytorch_tanh"),
    }


def _kinds(config: Config, period: int) -> tuple[str, ...]:
    """The kinds of all layers; by default every one at the end of a period is not sliding."""
    count = config.count("num_hidden_layers")
    if config.given("layer_types"):
        return config.words("layer_types", _KINDS, count)
    return tuple(_KINDS[0] if (i + 1) % period else _KINDS[1] for i in range(count))


def _cap(config: Config, name: str, default: float | None) -> float | None:
    """A cap, None where the config says null, the default where it says nothing."""
    found = config.get(name, default)
    return None if found is None else config.positive(name, default)


def _common(config: Config) -> None:
    config.only("use_bidirectional_attention", False)
    config.ignore("cache_implementation", "hidden_act")  # the activation is hidden_activation


@family("gemma2")
def gemma2(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Definition:
    """Gemma 2 (arXiv:2408.00118): a soft cap of the scores, a window in every other layer."""
    del shapes
    _common(config)
    own = _attention(config)
    own["rotation"] = rotation_of(config, own["head_dim"])
    own["soft_cap"] = _cap(config, "attn_logit_softcapping", 50.0)
    window = config.size("sliding_window", 4096)
    layers = tuple(
        layer(_layer, f"model.layers.{i}.", window=window if kind == _KINDS[0] else None, **own)
        for i, kind in enumerate(_kinds(config, 2))
    )
    cap = _cap(config, "final_logit_softcapping", 30.0)
    return _model(config, layers, config.size("hidden_size") ** 0.5, cap)


def _rotation(config: Config, head_dim: int, kind: str) -> Rotation | None:
    """The rotation of a kind of layers, each of which has its own θ."""
    scaling, given = config.section("rope_scaling").values, config.section("rope_parameters")
    bases = {
        _KINDS[0]: config.positive("rope_local_base_freq", 10000.0),
        _KINDS[1]: config.positive("rope_theta", 1000000.0),
    }
    if given.values and not set(given.values) & set(_KINDS):
        raise config.wrong("rope_parameters", "an entry per layer type", given.values)
    own = {"rope_theta": bases[kind], **(scaling if kind == _KINDS[1] else {})}
    own |= given.section(kind).values
    return rotation_of(Config({"rope_parameters": own}, config.where), head_dim)


@family("gemma3_text")
def gemma3(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Definition:
    """Gemma 3 (arXiv:2503.19786): norms of queries and keys, a window in five of six layers."""
    del shapes
    _common(config)
    config.only("attn_logit_softcapping", None)
    own = _attention(config)
    window = config.size("sliding_window", 4096)
    period = config.size("sliding_window_pattern", config.size("_sliding_window_pattern", 6))
    by_kind = {
        kind: {
            "rotation": _rotation(config, own["head_dim"], kind),
            "window": window if kind == _KINDS[0] else None,
        }
        for kind in _KINDS
    }
    layers = tuple(
        layer(_layer, f"model.layers.{i}.", norm_eps=own["eps"], **own, **by_kind[kind])
        for i, kind in enumerate(_kinds(config, period))
    )
    cap = _cap(config, "final_logit_softcapping", None)
    return _model(config, layers, config.size("hidden_size") ** 0.5, cap)


def _rg_lru(w: Weights, u: Array, run: Run, heads: int) -> Array:
    """RG-LRU of the tokens u (L, d)."""
    width = u.shape[1]
    p = width // heads
    weights = {"a_param": w("recurrent_param", width)}
    for ours, name in (("a_gate", "recurrent_gate"), ("input_gate", "input_gate")):
        weights[f"{ours}_w"] = w(f"{name}_weight", heads, p, p)
        weights[f"{ours}_b"] = w(f"{name}_bias", heads, p)
    return run.op(rg_lru, u, run.positions, **weights).reshape(u.shape).astype(u.dtype)


def recurrent_block(
    w: Weights, x: Array, run: Run, *, heads: int, width: int, conv: int, activation: str
) -> Array:
    """RG-LRU behind a convolution, gated, between two linear maps.

    Args:
        w: Tensors.
        x: Input (L, d).
        run: The run.
        heads: Blocks of the gates of RG-LRU.
        width: Channels.
        conv: Width of the convolution.
        activation: Of the gate.
    """
    gate = ACTIVATIONS[activation](linear(w.within("linear_y"), x, width, bias=True))
    u, own = linear(w.within("linear_x"), x, width, bias=True), w.within("conv_1d")
    u = run.conv(u, own("weight", width, 1, conv), own("bias", width))
    y = _rg_lru(w.within("rg_lru"), u, run, heads)
    return linear(w.within("linear_out"), y * gate, x.shape[1], bias=True)


def _griffin_layer(
    w: Weights,
    stream: Stream,
    run: Run,
    *,
    eps: float,
    mlp: int,
    activation: str,
    recurrent: bool,
    **own: Any,
) -> Stream:
    block = w.within("temporal_block")
    mixer = (
        partial(recurrent_block, block, run=run, activation=activation, **own)
        if recurrent
        else partial(rotary_attention, block, run=run, out_bias=True, **own)
    )
    inner = w.within("mlp_block")
    inner = partial(gated_mlp, inner, width=mlp, activation=activation, bias=True)
    norms = ("temporal_pre_norm", "channel_pre_norm")
    return pre_norm(w, stream, mixer, inner, eps, norms=norms, plus_one=True)


def _pattern(config: Config) -> tuple[str, ...]:
    """The kinds of layers that repeat."""
    name = "block_types" if config.given("block_types") else "_block_types"
    config.follows("_block_types", config.get(name), name)
    return config.words(name, _BLOCKS[1:]) if config.given(name) else _BLOCKS


@family("recurrent_gemma")
def recurrent_gemma(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Definition:
    """RecurrentGemma (arXiv:2404.07839); embeddings are scaled by √d as bfloat16 rounds it."""
    del shapes
    d, count = config.size("hidden_size"), config.count("num_hidden_layers")
    heads = config.divisor("num_attention_heads", "hidden_size", d)
    head_dim = d // heads
    config.follows("head_dim", head_dim, "hidden_size", "num_attention_heads")
    config.ignore("final_w_init_variance_scale", "w_init_variance_scale", "hidden_act")
    config.only("embeddings_scale_by_sqrt_dim", True)
    config.ignore("layer_types", "layers_block_type")  # they repeat what block_types says
    common = {
        "eps": config.positive("rms_norm_eps", 1e-6),
        "mlp": config.size("intermediate_size") // 2,
        "activation": config.word("hidden_activation", _ACTIVATIONS, "gelu_pytorch_tanh"),
        "heads": heads,
    }
    attention = {
        "recurrent": False,
        "kv_heads": config.divisor("num_key_value_heads", "num_attention_heads", heads, heads),
        "head_dim": head_dim,
        "rotation": rotation_of(config, head_dim, share=0.5),
        "bias": config.flag("attention_bias", False),
        "window": config.size("attention_window_size", 2048),
    }
    recurrent = {
        "recurrent": True,
        "width": config.multiple("lru_width", "num_attention_heads", heads, d),
        "conv": config.size("conv1d_width", 4),
    }
    pattern = _pattern(config)
    layers = tuple(
        layer(
            _griffin_layer,
            f"model.layers.{i}.",
            **common,
            **(recurrent if pattern[i % len(pattern)] == "recurrent" else attention),
        )
        for i in range(count)
    )
    scale = float(np.asarray(math.sqrt(d), jnp.bfloat16))
    cap = _cap(config, "logits_soft_cap", 30.0)
    return _model(config, layers, scale, cap, "model.final_norm.weight")
