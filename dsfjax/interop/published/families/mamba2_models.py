"""Mamba-2, Bamba and Falcon-H1 (arXiv:2405.21060, 2507.22448): SSD, also next to attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from dsfjax import ops
from dsfjax.core.dtypes import state_dtype
from dsfjax.core.norms import rms_norm
from dsfjax.interop.published.families.attention_models import attention_settings, rotary_attention
from dsfjax.interop.published.naming import Definition, Stream, Weights, family, layer
from dsfjax.interop.published.parts import decoder, gated_mlp, linear, pre_norm
from dsfjax.interop.published.running import Run
from dsfjax.interop.published.tensor_files import Config

_NORM = "model.final_layernorm.weight"


def gated_norm(
    y: Float[Array, "L C"],
    z: Float[Array, "L C"],
    weight: Float[Array, " C"],
    eps: float,
    groups: int,
    *,
    norm_first: bool = False,
) -> Float[Array, "L C"]:
    """RMS norm of every group of channels of y ⊙ silu(z), or of y, gated after it."""
    wide = state_dtype(y.dtype, z.dtype)
    gate, y = jax.nn.silu(z.astype(wide)), y.astype(wide)
    grouped = (y if norm_first else y * gate).reshape(y.shape[0], groups, -1)
    y = rms_norm(grouped, None, eps).reshape(y.shape) * weight.astype(wide)
    return y * gate if norm_first else y


def ssd_mixer(
    w: Weights,
    x: Array,
    run: Run,
    *,
    heads: int,
    head_dim: int,
    groups: int,
    state: int,
    width: int,
    bias: bool,
    conv_bias: bool,
    out_bias: bool | None = None,
    limit: tuple[float, float] = (0.0, math.inf),
    norm_eps: float | None = None,
    norm_first: bool = False,
    multipliers: tuple[float, ...] | None = None,
) -> Array:
    """Convolution and SiLU of what B, C and the values are made of, SSD, gated norm, the map out.

    Args:
        w: Tensors.
        x: Input (L, d).
        run: The run.
        heads: Of the values.
        head_dim: Channels of a head.
        groups: Of heads that share B and C, and of channels that are normed together.
        state: N.
        width: Of the convolution.
        bias: Whether the map in has one.
        conv_bias: Whether the convolution has one.
        out_bias: Whether the map out has one; as ``bias`` by default.
        limit: Between which Δ is clipped.
        norm_eps: ε of the gated norm; None for the gate alone.
        norm_first: Whether it gates what is normed.
        multipliers: Of the gate, the values, B, C and Δ before its bias, as they leave the map in.
    """
    length, inner, keys = x.shape[0], heads * head_dim, groups * state
    sizes = (inner, inner, keys, keys, heads)
    mixed = linear(w.within("in_proj"), x, sum(sizes), bias=bias)
    if multipliers is not None:
        mixed = mixed * jnp.asarray(np.repeat(multipliers, sizes), x.dtype)
    z, u, dt = jnp.split(mixed, [inner, 2 * inner + 2 * keys], axis=1)
    own, channels = w.within("conv1d"), inner + 2 * keys
    u = jax.nn.silu(
        run.conv(u, own("weight", channels, 1, width), own("bias", channels) if conv_bias else None)
    )
    u, b, c = jnp.split(u, [inner, inner + keys], axis=1)
    y = run.op(
        ops.mamba_chunk_scan_combined,
        u.reshape(length, heads, head_dim),
        dt,
        -jnp.exp(w("A_log", heads).astype(state_dtype(x.dtype))),
        b.reshape(length, groups, state),
        c.reshape(length, groups, state),
        D=w("D", heads),
        dt_bias=w("dt_bias", heads),
        dt_softplus=True,
        dt_limit=limit,
    )
    y = y.reshape(length, inner)
    if norm_eps is None:
        y = y * jax.nn.silu(z.astype(y.dtype))
    else:
        weight = w("norm.weight", inner)
        y = gated_norm(y, z, weight, norm_eps, groups, norm_first=norm_first)
    out_bias = bias if out_bias is None else out_bias
    return linear(w.within("out_proj"), y.astype(x.dtype), x.shape[1], bias=out_bias)


def expect_inner(config: Config, names: str, heads: int, head_dim: int, inner: int) -> None:
    """Raise `ValueError` unless the heads have the inner channels together."""
    if heads * head_dim != inner:
        raise ValueError(
            f"{config.where}: {names}: expected {heads} heads of {head_dim} channels to have the "
            f"{inner} inner channels together, a multiple of hidden_size."
        )


def ssd_settings(config: Config, d: int, inner: int | None = None) -> dict[str, Any]:
    """The settings of `ssd_mixer` from the names that Bamba and its relatives give them."""
    config.ignore("mamba_chunk_size", "mamba_expand", "time_step_min", "time_step_max")
    inner = config.size("mamba_expand", 2) * d if inner is None else inner
    heads, size = config.size("mamba_n_heads"), config.get("mamba_d_head")
    head_dim = inner // heads if size in (None, "auto") else config.size("mamba_d_head")
    names = "mamba_n_heads, mamba_d_head, mamba_expand or mamba_d_ssm"
    expect_inner(config, names, heads, head_dim, inner)
    return {
        "heads": heads,
        "head_dim": head_dim,
        "groups": config.divisor("mamba_n_groups", "mamba_n_heads", heads, 1),
        "state": config.size("mamba_d_state"),
        "width": config.size("mamba_d_conv", 4),
        "bias": config.flag("mamba_proj_bias", False),
        "conv_bias": config.flag("mamba_conv_bias", True),
        "limit": config.interval("time_step_limit", (0.0, math.inf)),
    }


def _mamba2_layer(w: Weights, stream: Stream, run: Run, *, eps: float, **own: Any) -> Stream:
    x = stream["x"]
    mixed = rms_norm(x, w("norm.weight", x.shape[1]), eps)
    return {"x": x + ssd_mixer(w.within("mixer"), mixed, run, **own)}


@family("mamba2")
def mamba2(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Definition:
    """Mamba-2."""
    del shapes
    d, eps = config.size("hidden_size"), config.positive("layer_norm_epsilon", 1e-5)
    heads, head_dim = config.size("num_heads"), config.size("head_dim")
    config.only("hidden_act", "silu")
    config.only("rms_norm", True)
    config.ignore("chunk_size", "norm_before_gate", "residual_in_fp32", "time_step_rank")
    config.ignore("rescale_prenorm_residual", "time_step_floor", "time_step_max", "time_step_min")
    inner = config.size("expand", 2) * d
    expect_inner(config, "num_heads, head_dim, expand", heads, head_dim, inner)
    own = {
        "heads": heads,
        "head_dim": head_dim,
        "groups": config.divisor("n_groups", "num_heads", heads),
        "state": config.size("state_size"),
        "width": config.size("conv_kernel"),
        "bias": config.flag("use_bias", False),
        "conv_bias": config.flag("use_conv_bias", True),
        "limit": config.interval("time_step_limit", (0.0, math.inf)),
        "norm_eps": eps,
    }
    layers = tuple(
        layer(_mamba2_layer, f"backbone.layers.{i}.", eps=eps, **own)
        for i in range(config.count("num_hidden_layers"))
    )
    return decoder(
        config,
        layers,
        eps=eps,
        norm="backbone.norm_f.weight",
        embeddings="backbone.embeddings.weight",
    )


MIXERS: dict[str, Callable[..., Array]] = {"mamba": ssd_mixer, "self_attn": rotary_attention}
"""By the name under which layers hold their tensors."""


def _bamba_layer(
    w: Weights,
    stream: Stream,
    run: Run,
    *,
    mixer: str,
    eps: float,
    mlp: int,
    mlp_bias: bool,
    **own: Any,
) -> Stream:
    return pre_norm(
        *(w, stream, partial(MIXERS[mixer], w.within(mixer), run=run, **own)),
        partial(gated_mlp, w.within("feed_forward"), width=mlp, bias=mlp_bias),
        eps,
        norms=("input_layernorm", "pre_ff_layernorm"),
    )


@family("bamba")
def bamba(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Definition:
    """Bamba: SSD, and attention in some layers, that rotates half of the channels of a head."""
    del shapes
    d, count = config.size("hidden_size"), config.count("num_hidden_layers")
    eps = config.positive("rms_norm_eps", 1e-5)
    config.only("hidden_act", "silu")
    config.ignore("num_logits_to_keep", "z_loss_coefficient")
    for rotary in (config, config.section("rope_parameters")):
        rotary.only("partial_rotary_factor", 0.5)
    own = {"eps": eps, "mlp": config.size("intermediate_size")}
    own["mlp_bias"] = config.flag("mlp_bias", False)
    mixers = {
        "mamba": {"norm_eps": eps, **ssd_settings(config, d)},
        "self_attn": attention_settings(config, share=0.5),
    }
    attending = config.places("attn_layer_indices", count)
    kinds = ["self_attn" if i in attending else "mamba" for i in range(count)]
    layers = tuple(
        layer(_bamba_layer, f"model.layers.{i}.", mixer=kind, **own, **mixers[kind])
        for i, kind in enumerate(kinds)
    )
    return decoder(config, layers, eps=eps, norm=_NORM)


def _falcon_layer(
    w: Weights,
    stream: Stream,
    run: Run,
    *,
    eps: float,
    mlp: int,
    mlp_bias: bool,
    attention: tuple[tuple[str, Any], ...],
    ssd: tuple[tuple[str, Any], ...],
    scales: tuple[tuple[float, float], ...],
) -> Stream:
    """SSD and attention side by side; each of them and the MLP has a scale in and one out."""
    x = stream["x"]
    d = x.shape[1]
    (ssd_in, ssd_out), (attention_in, attention_out), (gate, mlp_out) = scales
    mixed = rms_norm(x, w("input_layernorm.weight", d), eps)
    recurrent = ssd_mixer(w.within("mamba"), mixed * ssd_in, run, **dict(ssd))
    seen = rotary_attention(w.within("self_attn"), mixed * attention_in, run, **dict(attention))
    x = x + recurrent * ssd_out + seen * attention_out
    mixed = rms_norm(x, w("pre_ff_layernorm.weight", d), eps)
    mixed = gated_mlp(w.within("feed_forward"), mixed, mlp, bias=mlp_bias, scale=gate)
    return {"x": x + mixed * mlp_out}


@family("falcon_h1")
def falcon_h1(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Definition:
    """Falcon-H1: SSD and attention on the same input in every layer, with μP multipliers."""
    del shapes
    d, eps = config.size("hidden_size"), config.positive("rms_norm_eps", 1e-5)
    config.only("hidden_act", "silu")
    config.only("attn_layer_indices", None)
    config.only("mamba_use_mlp", True)
    config.ignore("num_logits_to_keep", "mlp_expansion_factor")
    one = {
        name: config.number(f"{name}_multiplier", 1.0)
        for name in ("ssm_in", "ssm_out", "attention_in", "attention_out", "key")
    }
    attention = attention_settings(config)
    attention["scale"] = one["key"] * attention["head_dim"] ** -0.5  # the scores are linear in k
    inner = config.size("mamba_d_ssm") if config.given("mamba_d_ssm") else None
    ssd = ssd_settings(config, d, inner)
    ssd["out_bias"] = config.flag("projectors_bias", False)
    ssd["multipliers"] = config.numbers("ssm_multipliers", 5)
    normed = config.flag("mamba_rms_norm", False)
    ssd["norm_eps"] = eps if normed else None
    ssd["norm_first"] = config.flag("mamba_norm_before_gate", True)
    gate, out = config.numbers("mlp_multipliers", 2)
    own = {
        "eps": eps,
        "mlp": config.size("intermediate_size"),
        "mlp_bias": config.flag("mlp_bias", False),
        "attention": tuple(attention.items()),
        "ssd": tuple(ssd.items()),
        "scales": (
            (one["ssm_in"], one["ssm_out"]),
            (one["attention_in"], one["attention_out"]),
            (gate, out),
        ),
    }
    layers = tuple(
        layer(_falcon_layer, f"model.layers.{i}.", **own)
        for i in range(config.count("num_hidden_layers"))
    )
    scales = (
        config.number("embedding_multiplier", 1.0),
        config.number("lm_head_multiplier", 1.0),
    )
    return decoder(config, layers, eps=eps, norm=_NORM, scales=scales)
