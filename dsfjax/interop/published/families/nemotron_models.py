"""Nemotron-H (arXiv:2504.03624): every layer is SSD, attention, an MLP or experts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
from jax import Array

from dsfjax.core.dtypes import state_dtype
from dsfjax.interop.published.families.attention_models import rotary_attention
from dsfjax.interop.published.families.mamba2_models import ssd_mixer
from dsfjax.interop.published.naming import Definition, Stream, Weights, family, layer
from dsfjax.interop.published.parts import (
    ACTIVATIONS,
    ROUTER,
    chosen_experts,
    decoder,
    linear,
    rms_norm,
    top_scores,
)
from dsfjax.interop.published.running import Run
from dsfjax.interop.published.tensor_files import Config

_PATTERN = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
_KINDS = {name: name for name in _PATTERN.values()} | {
    "linear_attention": "mamba",
    "full_attention": "attention",
}


def _mlp(
    w: Weights, x: Array, run: Run | None = None, *, width: int, activation: str, bias: bool = False
) -> Array:
    """down(φ(up x))."""
    del run
    inner = ACTIVATIONS[activation](linear(w.within("up_proj"), x, width, bias=bias))
    return linear(w.within("down_proj"), inner, x.shape[1], bias=bias)


def _moe(
    w: Weights,
    x: Array,
    run: Run,
    *,
    count: int,
    chosen: int,
    width: int,
    shared: int,
    latent: int | None,
    normed: bool,
    scale: float,
    activation: str,
    bias: bool,
) -> Array:
    """Experts chosen by sigmoid and bias, weighted by the sigmoid; and one that sees every token.

    Args:
        w: Tensors.
        x: Input (L, d).
        run: The run.
        count: Of the experts.
        chosen: How many of them a token sees.
        width: Inner channels of an expert.
        shared: Inner channels of the one that sees every token.
        latent: Channels that the experts read and write; None for d.
        normed: Whether the weights of a token add up to 1.
        scale: Of the weights.
        activation: Of all.
        bias: Whether the maps of the shared expert and to the latent channels have one.
    """
    del run
    d = x.shape[1]
    scores = jax.nn.sigmoid(linear(w.within("gate"), x.astype(state_dtype(x.dtype)), count))
    by = scores + w("gate.e_score_correction_bias", count)
    scores = top_scores(scores, chosen, by)
    if normed:
        scores = scores / (scores.sum(axis=-1, keepdims=True) + 1e-20)
    inner = x if latent is None else linear(w.within("fc1_latent_proj"), x, latent, bias=bias)
    every = [
        partial(_mlp, w.within(f"experts.{e}"), width=width, activation=activation)
        for e in range(count)
    ]
    y = chosen_experts(scores * scale, every, inner)
    y = y if latent is None else linear(w.within("fc2_latent_proj"), y, d, bias=bias)
    return y + _mlp(w.within("shared_experts"), x, width=shared, activation=activation, bias=bias)


_MIXERS = {"mamba": ssd_mixer, "attention": rotary_attention, "mlp": _mlp, "moe": _moe}


def _layer(w: Weights, stream: Stream, run: Run, *, mixer: str, eps: float, **own: Any) -> Stream:
    x = stream["x"]
    mixed = rms_norm(x, w("norm.weight", x.shape[1]), eps)
    return {"x": x + _MIXERS[mixer](w.within("mixer"), mixed, run, **own)}


def _kinds(config: Config) -> list[str]:
    """The kind of every layer, from names or from letters."""
    name, letters = "hybrid_override_pattern", config.get("hybrid_override_pattern")
    if isinstance(letters, str) and not config.given("layers_block_type"):
        found = Config({name: list(letters)}, config.where).words(name, _PATTERN)
        return [_PATTERN[letter] for letter in found]
    return [_KINDS[name] for name in config.words("layers_block_type", _KINDS)]


def _ssd(config: Config, eps: float) -> dict[str, Any]:
    config.only("mamba_hidden_act", "silu")
    heads = config.size("mamba_num_heads")
    return {
        "heads": heads,
        "head_dim": config.size("mamba_head_dim"),
        "groups": config.divisor("n_groups", "mamba_num_heads", heads, 8),
        "state": config.size("ssm_state_size"),
        "width": config.size("conv_kernel", 4),
        "bias": config.flag("use_bias", False),
        "conv_bias": config.flag("use_conv_bias", True),
        # The published model clips Δ by this bound and reads no time_step_limit.
        "limit": (config.number("time_step_min", 1e-3), math.inf),
        "norm_eps": eps,
    }


def _experts(config: Config) -> dict[str, Any]:
    for name in ("n_group", "topk_group", "n_shared_experts"):
        config.only(name, 1)
    count = config.count("n_routed_experts")
    return {
        "count": count,
        "chosen": config.part("num_experts_per_tok", "n_routed_experts", count),
        "width": config.size("moe_intermediate_size"),
        "shared": config.size("moe_shared_expert_intermediate_size"),
        "latent": config.size("moe_latent_size") if config.given("moe_latent_size") else None,
        "normed": config.flag("norm_topk_prob", True),
        "scale": config.number("routed_scaling_factor", 1.0),
    }


_OF_EXPERTS = """n_group topk_group n_shared_experts n_routed_experts num_experts_per_tok
    moe_intermediate_size moe_shared_expert_intermediate_size moe_latent_size norm_topk_prob
    routed_scaling_factor""".split()
_WITHOUT_EFFECT = """attention_bias mamba_proj_bias time_step_limit time_step_max time_step_floor
    chunk_size expand mamba_ssm_cache_dtype moe_shared_expert_overlap mtp_layers_block_type
    mtp_hybrid_override_pattern num_hidden_layers num_logits_to_keep num_nextn_predict_layers
    rescale_prenorm_residual residual_in_fp32 use_mamba_kernels rope_theta
    partial_rotary_factor""".split()


@family("nemotron_h")
def nemotron_h(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Definition:
    """Nemotron-H: attention without positions, MLPs with a squared ReLU."""
    eps = config.positive("layer_norm_epsilon", 1e-5)
    config.only("sliding_window", None)
    config.ignore(*_OF_EXPERTS, *_WITHOUT_EFFECT)
    kinds, heads = _kinds(config), config.size("num_attention_heads")
    activation = config.word("mlp_hidden_act", ACTIVATIONS, "relu2")
    shape = {"activation": activation, "bias": config.flag("mlp_bias", False)}
    own: dict[str, dict[str, Any]] = {
        "mamba": _ssd(config, eps),
        "attention": {
            "heads": heads,
            "kv_heads": config.divisor("num_key_value_heads", "num_attention_heads", heads, heads),
            "head_dim": config.size("head_dim", config.size("attention_head_dim", 128)),
            "rotation": None,
        },
        "mlp": {"width": config.size("intermediate_size"), **shape},
        "moe": {**_experts(config), **shape} if "moe" in kinds else {},
    }
    layers = tuple(
        layer(_layer, f"backbone.layers.{i}.", mixer=kind, eps=eps, **own[kind])
        for i, kind in enumerate(kinds)
    )
    return decoder(
        config,
        layers,
        eps=eps,
        norm="backbone.norm_f.weight",
        embeddings="backbone.embeddings.weight",
        wide=ROUTER,
        unused=tuple(name for name in shapes if name.startswith("mtp.")),  # further predictions
    )
