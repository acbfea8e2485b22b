"""Zamba2 (arXiv:2411.15242): SSD in every layer, some of it fed by shared blocks of attention."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from dsfjax.interop.published.families.mamba2_models import expect_inner, ssd_mixer
from dsfjax.interop.published.naming import Definition, Stream, Weights, family, layer
from dsfjax.interop.published.parts import (
    ACTIVATIONS,
    decoder,
    embed,
    linear,
    rms_norm,
)
from dsfjax.interop.published.rotary import Rotation, rotated, rotation_of
from dsfjax.interop.published.running import Run
from dsfjax.interop.published.tensor_files import Config


def _adapted(
    w: Weights, name: str, x: Array, out: int, rank: int | None, *, bias: bool = False
) -> Array:
    """A map that layers share, and one of low rank that is the layer's own."""
    y = linear(w.within(name), x, out, bias=bias)
    if rank is None:
        return y
    own = w.within(f"{name}_adapter")
    return y + linear(own.within("1"), linear(own.within("0"), x, rank), out)


def _attention(
    w: Weights,
    x: Array,
    run: Run,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    rotation: Rotation | None,
    rank: int | None,
    out: int,
) -> Array:
    q, k, v = (
        _adapted(w, name, x, count * head_dim, rank).reshape(-1, count, head_dim)
        for name, count in (("q_proj", heads), ("k_proj", kv_heads), ("v_proj", kv_heads))
    )
    q, k = (rotated(part, run.positions, rotation) for part in (q, k))
    y = run.attend(q, k, v, scale=(head_dim / 2) ** -0.5)
    return linear(w.within("o_proj"), y.reshape(x.shape[0], -1).astype(x.dtype), out)


def _shared(
    w: Weights,
    stream: Stream,
    run: Run,
    *,
    eps: float,
    mlp: int,
    mlp_rank: int,
    activation: str,
    bias: bool,
    attention: tuple[tuple[str, Any], ...],
) -> Array:
    """The block of attention and MLP, without residuals, that reads the embeddings as well."""
    x = jnp.concatenate([stream["x"], stream["embedded"]], axis=1)
    x = rms_norm(x, w("input_layernorm.weight", x.shape[1]), eps)
    x = _attention(w.within("self_attn"), x, run, **dict(attention))
    d = x.shape[1]
    x = rms_norm(x, w("pre_ff_layernorm.weight", d), eps)
    inner, own = w.within("feed_forward"), ACTIVATIONS[activation]
    gate, up = jnp.split(
        _adapted(inner, "gate_up_proj", x, 2 * mlp, mlp_rank, bias=bias), 2, axis=1
    )
    return linear(inner.within("down_proj"), own(gate) * up, d, bias=bias)


def _layer(
    w: Weights,
    stream: Stream,
    run: Run,
    *,
    eps: float,
    ssd: tuple[tuple[str, Any], ...],
    shared: tuple[tuple[str, Any], ...] = (),
) -> Stream:
    x = stream["x"]
    d, mixed = x.shape[1], x
    if shared:
        own = _shared(w.within("shared_transformer"), stream, run, **dict(shared))
        mixed = x + linear(w.within("linear"), own, d)
    mixed = rms_norm(mixed, w("input_layernorm.weight", d), eps)
    return {**stream, "x": x + ssd_mixer(w.within("mamba"), mixed, run, **dict(ssd))}


def _embed(w: Weights, stream: Stream, run: Run, *, vocab: int, width: int) -> Stream:
    found = embed(w, stream, run, vocab=vocab, width=width)
    return {**found, "embedded": found["x"]}


_MAPS = ("q_proj", "k_proj", "v_proj")


def _names(layer: int, block: int, place: int) -> dict[str, str]:
    """Where a hybrid layer finds its own tensors, and those of the block that it shares.

    Args:
        layer: Its number.
        block: Number of the layer that holds the block.
        place: Its number among the hybrid layers, under which the block holds its adapters.
    """
    own, block_of = f"model.layers.{layer}.", f"model.layers.{block}.shared_transformer."
    names = {"linear.": own + "linear.", "": own + "mamba_decoder."}
    lists = {f"self_attn.{x}": f"self_attn.linear_{x[0]}_adapter_list" for x in _MAPS}
    lists["feed_forward.gate_up_proj"] = "feed_forward.gate_up_proj_adapter_list"
    others = ("self_attn.o_proj", "feed_forward.down_proj", "input_layernorm", "pre_ff_layernorm")
    for name in (*lists, *others):
        names[f"shared_transformer.{name}."] = f"{block_of}{name}."
    for name, places in lists.items():
        names[f"shared_transformer.{name}_adapter."] = f"{block_of}{places}.{place}."
    return names


def _ssd(config: Config, d: int) -> dict[str, Any]:
    inner, heads = config.size("mamba_expand", 2) * d, config.size("n_mamba_heads")
    given = config.given("mamba_headdim")
    head_dim = config.size("mamba_headdim") if given else inner // heads
    expect_inner(config, "n_mamba_heads, mamba_headdim, mamba_expand", heads, head_dim, inner)
    config.only("use_conv_bias", True)
    return {
        "heads": heads,
        "head_dim": head_dim,
        "groups": config.divisor("mamba_ngroups", "n_mamba_heads", heads, 1),
        "state": config.size("mamba_d_state"),
        "width": config.size("mamba_d_conv", 4),
        "bias": config.flag("add_bias_linear", False),
        "conv_bias": True,
        # The published model clips Δ by this bound and reads no time_step_limit.
        "limit": (config.number("time_step_min", 1e-3), math.inf),
        "norm_eps": 1e-5,
    }


def _block(config: Config, d: int, eps: float) -> dict[str, Any]:
    """The settings of `_shared`."""
    heads, rank = (
        config.divisor("num_attention_heads", "hidden_size", 2 * d),
        config.size("adapter_rank", 128),
    )
    head_dim = 2 * d // heads
    config.follows("attention_hidden_size", 2 * d, "hidden_size")
    config.follows("attention_head_dim", head_dim, "hidden_size", "num_attention_heads")
    config.only("use_long_context", False)
    rotates = config.flag("use_mem_rope", False)
    config.ignore("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor")
    attention = {
        "heads": heads,
        "kv_heads": config.divisor("num_key_value_heads", "num_attention_heads", heads, heads),
        "head_dim": head_dim,
        "rotation": rotation_of(config, head_dim) if rotates else None,
        "rank": rank if config.flag("use_shared_attention_adapter", False) else None,
        "out": d,
    }
    return {
        "eps": eps,
        "mlp": config.size("intermediate_size", 4 * d),
        "mlp_rank": rank,
        "activation": config.word("hidden_act", ACTIVATIONS, "gelu"),
        "bias": config.flag("add_bias_linear", False),
        "attention": tuple(attention.items()),
    }


@family("zamba2")
def zamba2(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Definition:
    """Zamba2: hybrid layers take turns among the shared blocks, each with adapters of its own."""
    del shapes
    d, count = config.size("hidden_size"), config.count("num_hidden_layers")
    eps = config.positive("rms_norm_eps", 1e-5)
    config.ignore("chunk_size", "kv_channels", "num_query_groups", "num_logits_to_keep")
    config.ignore("time_step_floor", "time_step_limit", "time_step_max", "use_mamba_kernels")
    config.ignore("use_mem_eff_path", "use_shared_mlp_adapter")  # it has adapters either way
    kinds = config.words("layers_block_type", ("linear_attention", "mamba", "hybrid"), count)
    hybrid = [i for i, kind in enumerate(kinds) if kind == "hybrid"]
    config.follows("hybrid_layer_ids", hybrid, "layers_block_type")
    blocks = config.size("num_mem_blocks", 1)
    own = {"eps": eps, "ssd": tuple(_ssd(config, d).items())}
    shared, layers = tuple(_block(config, d, eps).items()), []
    for i, kind in enumerate(kinds):
        if kind == "hybrid":
            place = hybrid.index(i)
            names = _names(i, hybrid[place % blocks], place)
            layers.append(layer(_layer, names, shared=shared, **own))
        else:
            layers.append(layer(_layer, f"model.layers.{i}.", **own))
    return decoder(
        config,
        layers,
        eps=eps,
        tied=True,
        norm="model.final_layernorm.weight",
        embedding=_embed,
    )
