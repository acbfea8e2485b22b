"""The families of flash-linear-attention, by its names of configs and tensors.

GLA (arXiv:2312.06635), Gated DeltaNet (arXiv:2412.06464), DeltaNet (arXiv:2406.06484), RetNet
(arXiv:2307.08621) and HGRN2 (arXiv:2404.07904), each with layers of softmax attention in between if
the config says so. The definitions are those of its release 0.6.0.
"""

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
from dsfjax.interop.published.families.qwen_hybrid_models import delta_rule
from dsfjax.interop.published.naming import Definition, Stream, Weights, family, layer
from dsfjax.interop.published.parts import (
    ACTIVATIONS,
    decoder,
    gated_mlp,
    linear,
    pre_norm,
    rms_norm,
)
from dsfjax.interop.published.rotary import Rotation, rotated
from dsfjax.interop.published.running import Run
from dsfjax.interop.published.tensor_files import Config

_GATE_RANK = 16
_GATE_NORMALIZER = 16
_FEATURES = ("relu", "sigmoid", "silu", "swish", "sqrelu")
_HGRN2_NORM_EPS = 1e-5

Shapes = Mapping[str, tuple[int, ...]]


def _projected(w: Weights, x: Array, run: Run, name: str, out: int, conv: int | None) -> Array:
    """A linear map, and a convolution of a width if there is one."""
    y = linear(w.within(f"{name}_proj"), x, out)
    return y if conv is None else run.conv(y, w(f"{name}_conv1d.weight", out, 1, conv))


def _finished(
    w: Weights, y: Array, x: Array, *, norm: str | None, eps: float, gate: str | None
) -> Array:
    """RMS norm of every head, gate φ(g_proj x), and the map out.

    Args:
        w: Tensors.
        y: What the mixer has read, (L, H, p).
        x: Its input (L, d).
        norm: Name of the weight of the norm; None if it has none.
        eps: ε of the norm.
        gate: φ; None for no gate.
    """
    length, heads, p = y.shape
    y = rms_norm(y.astype(state_dtype(y.dtype)), None if norm is None else w(norm, p), eps)
    y = y.reshape(length, heads * p)
    if gate is not None:
        y = y * ACTIVATIONS[gate](linear(w.within("g_proj"), x, heads * p).astype(y.dtype))
    return linear(w.within("o_proj"), y.astype(x.dtype), x.shape[1])


def _gated_delta_net(
    w: Weights,
    x: Array,
    run: Run,
    *,
    heads: int,
    v_heads: int,
    key: int,
    value: int,
    conv: int | None,
    negative: bool,
    eps: float,
    gate: str | None,
) -> Array:
    q, k, v = (
        jax.nn.silu(_projected(w, x, run, name, count * size, conv)).reshape(-1, count, size)
        for name, count, size in (("q", heads, key), ("k", heads, key), ("v", v_heads, value))
    )
    a, b = (linear(w.within(f"{name}_proj"), x, v_heads) for name in "ab")
    y = delta_rule(w, run, q, k, v, a, b, negative=negative)
    return _finished(w, y, x, norm="o_norm.weight", eps=eps, gate=gate)


def _grouped(
    w: Weights,
    x: Array,
    run: Run,
    *,
    heads: int,
    kv_heads: int,
    key: int,
    value: int,
    conv: int | None,
) -> tuple[Array, Array, Array]:
    """Queries (L, heads, key), keys (L, kv_heads, key) and values (L, kv_heads, value)."""
    found = []
    for name, count, size in (("q", heads, key), ("k", kv_heads, key), ("v", kv_heads, value)):
        part = _projected(w, x, run, name, count * size, conv).reshape(-1, count, size)
        found.append(part if conv is None else jax.nn.silu(part))
    q, k, v = found
    return q, k, v


def _gla(
    w: Weights,
    x: Array,
    run: Run,
    *,
    feature: str | None,
    clamp: float | None,
    norm: str | None,
    eps: float,
    gate: str | None,
    **shape: Any,
) -> Array:
    q, k, v = _grouped(w, x, run, **shape)
    raw = linear(w.within("gk_proj.0"), x, _GATE_RANK)
    raw = linear(w.within("gk_proj.1"), raw, k[0].size, bias=True).reshape(k.shape)
    log_a = jax.nn.log_sigmoid(raw.astype(state_dtype(raw.dtype))) / _GATE_NORMALIZER
    log_a = log_a if clamp is None else jnp.maximum(log_a, clamp)
    if feature is not None:
        q, k = ACTIVATIONS[feature](q), ACTIVATIONS[feature](k)
    k, v, log_a = (jnp.repeat(part, q.shape[1] // k.shape[1], axis=1) for part in (k, v, log_a))
    y = run.op(ops.chunk_gla, q, k, v, log_a)
    return _finished(w, y, x, norm=norm, eps=eps, gate=gate)


def _retention(
    w: Weights,
    x: Array,
    run: Run,
    *,
    feature: str | None,
    rotation: Rotation,
    norm: str | None,
    eps: float,
    gate: str | None,
    **shape: Any,
) -> Array:
    q, k, v = _grouped(w, x, run, conv=None, **shape)
    if feature is not None:
        q, k = ACTIVATIONS[feature](q), ACTIVATIONS[feature](k)
    q, k = (rotated(part, run.positions, rotation) for part in (q, k))
    k, v = (jnp.repeat(part, q.shape[1] // k.shape[1], axis=1) for part in (k, v))
    y = run.op(ops.chunk_retention, q, k, v)
    return _finished(w, y, x, norm=norm, eps=eps, gate=gate)


def _delta_net(
    w: Weights,
    x: Array,
    run: Run,
    *,
    heads: int,
    key: int,
    value: int,
    conv: int | None,
    activation: str,
    unit: bool,
    beta: bool,
    negative: bool,
    eps: float,
    gate: str | None,
) -> Array:
    q, k = (_activated(_projected(w, x, run, name, heads * key, conv), activation) for name in "qk")
    q, k = (part.reshape(-1, heads, key) for part in (q, k))
    v = jax.nn.silu(_projected(w, x, run, "v", heads * value, conv)).reshape(-1, heads, value)
    if not unit:
        q, k = (
            part / jnp.maximum(jnp.abs(part).sum(axis=-1, keepdims=True), 1e-6) for part in (q, k)
        )
    strength = jnp.ones((x.shape[0], heads), state_dtype(x.dtype))
    if beta:
        strength = jax.nn.sigmoid(linear(w.within("b_proj"), x, heads).astype(strength.dtype))
    strength = strength * 2 if negative else strength
    y = run.op(ops.chunk_delta_rule, q, k, v, strength, use_qk_l2norm_in_kernel=unit)
    return _finished(w, y, x, norm="o_norm.weight", eps=eps, gate=gate)


def _activated(x: Array, name: str) -> Array:
    if name == "identity":
        return x
    return jax.nn.elu(x) + 1 if name == "elu" else ACTIVATIONS[name](x)


def _hgrn2(
    w: Weights,
    x: Array,
    run: Run,
    *,
    heads: int,
    conv: int | None,
    affine: bool,
    bound: tuple[int, int] | None,
) -> Array:
    """HGRN2; ``bound`` are its number and that of all layers, if forget gates are bounded below."""
    d = x.shape[1]
    q, f, v = (_projected(w, x, run, name, d, conv) for name in "qfi")
    log_a = jax.nn.log_sigmoid(f.astype(state_dtype(f.dtype)))
    if bound is not None:
        index, count = bound
        share = jax.nn.softmax(w("lower_bounds", count, d).astype(log_a.dtype), axis=0)
        least = share[1 : index + 1].sum(axis=0)
        if index:
            log_a = jnp.logaddexp(jnp.log(least), jnp.log1p(-least) + log_a)
    k = -jnp.expm1(log_a)
    q, k, v, log_a = (part.reshape(-1, heads, d // heads) for part in (jax.nn.silu(q), k, v, log_a))
    y = run.op(ops.chunk_gla, q, k.astype(x.dtype), v, log_a).reshape(x.shape)
    y = rms_norm(y, w("g_norm.weight", d) if affine else None, _HGRN2_NORM_EPS)
    return linear(w.within("o_proj"), y.astype(x.dtype), d)


def _layer(
    w: Weights,
    stream: Stream,
    run: Run,
    *,
    mixer: Callable[..., Array],
    block_eps: float,
    mlp: int,
    **own: Any,
) -> Stream:
    mixed = partial(mixer, w.within("attn"), run=run, **own)
    inner = partial(gated_mlp, w.within("mlp"), width=mlp)
    return pre_norm(w, stream, mixed, inner, block_eps, norms=("attn_norm", "mlp_norm"))


def _attention_layers(config: Config, count: int) -> dict[int, dict[str, Any]]:
    """Settings of the layers that are softmax attention, by their numbers."""
    given, d = config.get("attn"), config.size("hidden_size")
    given = [given] if isinstance(given, dict) else given or []
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise config.wrong("attn", "an object or a list of them", given)
    found: dict[int, dict[str, Any]] = {}
    for values in given:
        one = Config(values, f"{config.where}: attn")
        heads = one.divisor("num_heads", "hidden_size", d)
        own = {
            "mixer": rotary_attention,
            "heads": heads,
            "kv_heads": one.divisor("num_kv_heads", "num_heads", heads, heads),
            "head_dim": d // heads,
            "bias": one.flag("qkv_bias", False),
            "out_bias": False,
            "window": one.size("window_size") if one.given("window_size") else None,
        }
        own["rotation"] = Rotation(d // heads, one.positive("rope_theta", 10000.0))
        places = one.places("layers", count)
        if found.keys() & set(places):
            raise one.wrong("layers", "every layer at most once among all", list(places))
        found |= dict.fromkeys(places, own)
        one.check_all_read()
    return found


def read_training(config: Config) -> None:
    """Settings of kernels, losses and initialisation, which no number depends on."""
    config.ignore("attn_mode", "fuse_norm", "fuse_swiglu", "fuse_cross_entropy", "use_l2warp")
    config.ignore("fuse_linear_cross_entropy")


def _model(
    config: Config, mixer: Callable[..., Array], hidden_ratio: float, **own: Any
) -> Definition:
    """A model whose layers have one mixer, or its several in a list under ``each``."""
    d, count = config.size("hidden_size"), config.count("num_hidden_layers")
    eps, each = config.positive("norm_eps", 1e-6), own.pop("each", [{}] * count)
    config.only("hidden_act", "swish")
    config.only("attnres_block_size", None)
    read_training(config)
    parts = int(config.scaled("hidden_ratio", "hidden_size", d, hidden_ratio) * 2 / 3)
    mlp = config.size("intermediate_size", -(-parts // 256) * 256)
    attention = _attention_layers(config, count)
    layers = []
    for i in range(count):
        names = {"": f"model.layers.{i}."}
        settings = attention.get(i) or {"mixer": mixer, **own, **each[i]}
        if settings.get("bound") is not None:
            names["attn.lower_bounds"] = "model.lower_bounds"
        layers.append(layer(_layer, names, block_eps=eps, mlp=mlp, **settings))
    return decoder(config, layers, eps=eps, embeddings="model.embeddings.weight")


def _conv(config: Config, default: bool) -> int | None:
    width = config.size("conv_size", 4)
    return width if config.flag("use_short_conv", default) else None


def _heads(config: Config, heads: int, expand_k: float, expand_v: float) -> dict[str, int]:
    """How many heads, and the channels of their keys and values."""
    heads, d = config.size("num_heads", heads), config.size("hidden_size")
    key, value = (
        config.scaled("expand_k", "hidden_size", d, expand_k),
        config.scaled("expand_v", "hidden_size", d, expand_v),
    )
    return {"heads": heads, "key": round(key) // heads, "value": round(value) // heads}


def _of_groups(config: Config, heads: int, expand_k: float, expand_v: float) -> dict[str, Any]:
    """What GLA and RetNet have in common."""
    own: dict[str, Any] = _heads(config, heads, expand_k, expand_v)
    own["kv_heads"] = config.divisor("num_kv_heads", "num_heads", own["heads"], own["heads"])
    mapped = config.given("feature_map")
    own["feature"] = config.word("feature_map", _FEATURES) if mapped else None
    own["eps"] = config.positive("norm_eps", 1e-6)
    own["gate"] = "swish" if config.flag("use_output_gate", True) else None
    fused = config.flag("fuse_norm", True) and own["gate"] is not None
    name = "g_norm_swish_gate.weight" if fused else "g_norm.weight"
    own["norm"] = name if config.flag("elementwise_affine", True) else None
    return own


@family("gla")
def gla(config: Config, shapes: Shapes) -> Definition:
    """GLA (arXiv:2312.06635)."""
    del shapes
    config.only("use_gk", True)
    config.only("use_gv", False)
    own = _of_groups(config, 4, 0.5, 1.0)
    clamp = config.number("clamp_min") if config.given("clamp_min") else None
    return _model(config, _gla, 4, conv=_conv(config, False), clamp=clamp, **own)


@family("retnet")
def retnet(config: Config, shapes: Shapes) -> Definition:
    """RetNet (arXiv:2307.08621); FLA gives its layers no convolution whatever the config says."""
    del shapes
    config.only("use_short_conv", False)
    config.ignore("conv_size")
    own = _of_groups(config, 8, 1.0, 2.0)
    return _model(config, _retention, 2, rotation=Rotation(own["key"], 10000.0), **own)


@family("gated_deltanet")
def gated_delta_net(config: Config, shapes: Shapes) -> Definition:
    """Gated DeltaNet (arXiv:2412.06464)."""
    del shapes
    heads, key = config.size("num_heads", 6), config.size("head_dim", 256)
    gate = config.word("output_gate_activation", ("swish", "silu", "sigmoid"), "swish")
    return _model(
        config,
        _gated_delta_net,
        4,
        heads=heads,
        v_heads=config.multiple("num_v_heads", "num_heads", heads, heads),
        key=key,
        value=int(config.scaled("expand_v", "head_dim", key, 2.0)),
        conv=_conv(config, True),
        negative=config.flag("allow_neg_eigval", False),
        eps=config.positive("norm_eps", 1e-6),
        gate=gate if config.flag("use_gate", True) else None,
    )


@family("delta_net")
def delta_net(config: Config, shapes: Shapes) -> Definition:
    """DeltaNet (arXiv:2406.06484)."""
    del shapes
    config.only("use_output_norm", True)
    return _model(
        config,
        _delta_net,
        4,
        conv=_conv(config, True),
        activation=config.word("qk_activation", ("silu", "relu", "elu", "identity"), "silu"),
        unit=config.word("qk_norm", ("l2", "sum"), "l2") == "l2",
        beta=config.flag("use_beta", True),
        negative=config.flag("allow_neg_eigval", False),
        eps=config.positive("norm_eps", 1e-6),
        gate="swish" if config.flag("use_gate", False) else None,
        **_heads(config, 16, 1.0, 1.0),
    )


@family("hgrn2")
def hgrn2(config: Config, shapes: Shapes) -> Definition:
    """HGRN2 (arXiv:2404.07904); ε of the norm before its map out is 1e-5 whatever it says."""
    del shapes
    d, count = config.size("hidden_size"), config.count("num_hidden_layers")
    by_number = config.given("num_heads") and not config.given("expand_ratio")
    heads = (
        config.divisor("num_heads", "hidden_size", d)
        if by_number
        else d // config.divisor("expand_ratio", "hidden_size", d, 128)
    )
    config.ignore("num_heads")
    bounded = config.flag("use_lower_bound", True)
    return _model(
        config,
        _hgrn2,
        4,
        heads=heads,
        conv=_conv(config, False),
        affine=config.flag("elementwise_affine", True),
        each=[{"bound": (i, count) if bounded else None} for i in range(count)],
    )
