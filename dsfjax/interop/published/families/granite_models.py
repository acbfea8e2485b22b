"""Granite 4 (IBM, 2025): SSD, attention in some layers, experts and a shared MLP in all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jax import Array

from dsfjax.interop.published.families.attention_models import attention_settings
from dsfjax.interop.published.families.mamba2_models import MIXERS, ssd_settings
from dsfjax.interop.published.naming import Definition, Stream, Weights, family, layer
from dsfjax.interop.published.parts import (
    chosen_experts,
    decoder,
    joined_expert_mlps,
    joined_mlp,
    pre_norm,
    routed,
)
from dsfjax.interop.published.running import Run
from dsfjax.interop.published.tensor_files import Config


def _experts(w: Weights, x: Array, mlp: int, activation: str, *, count: int, chosen: int) -> Array:
    """MLPs times the softmax of their scores, over the chosen ones alone."""
    d = x.shape[1]
    up = w("input_linear.weight", count, 2 * mlp, d)
    down = w("output_linear.weight", count, d, mlp)
    scores = routed(w.within("router.layer"), x, count, chosen)
    return chosen_experts(scores, joined_expert_mlps(up, down, activation=activation), x)


def _layer(
    w: Weights,
    stream: Stream,
    run: Run,
    *,
    mixer: str,
    eps: float,
    mlp: int,
    shared: int,
    experts: int,
    chosen: int,
    activation: str,
    branch: float,
    **own: Any,
) -> Stream:
    def mixed(x: Array) -> Array:
        return MIXERS[mixer](w.within(mixer), x, run, **own) * branch

    def all_mlps(x: Array) -> Array:
        d = x.shape[1]
        up = w("shared_mlp.input_linear.weight", 2 * shared, d)
        down = w("shared_mlp.output_linear.weight", d, shared)
        y = joined_mlp(x, up, down, activation=activation)
        if experts:
            sparse = w.within("block_sparse_moe")
            y = y + _experts(sparse, x, mlp, activation, count=experts, chosen=chosen)
        return y * branch

    return pre_norm(w, stream, mixed, all_mlps, eps)


def _kinds(config: Config, count: int) -> list[str]:
    """Where the tensors of each layer's mixer are."""
    if not config.given("layer_types"):
        return ["mamba"] * count
    known = ("linear_attention", "mamba", "full_attention", "attention")
    given = config.words("layer_types", known, count)
    return ["mamba" if kind in known[:2] else "self_attn" for kind in given]


@family("granitemoehybrid")
def granite(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Definition:
    """Granite 4, with multipliers of embeddings, branches, scores and logits."""
    del shapes
    d, count = config.size("hidden_size"), config.count("num_hidden_layers")
    eps = config.positive("rms_norm_eps", 1e-6)
    config.only("hidden_act", "silu")
    config.only("normalization_function", "rmsnorm")
    config.only("mamba_n_groups", 1)  # whether more would be normed apart has had two answers
    config.ignore("init_method", "rope_parameters", "rope_scaling", "rope_theta")
    config.ignore("partial_rotary_factor")
    positions = config.word("position_embedding_type", ("rope", "nope"), "nope")
    attention = attention_settings(config, rotates=positions == "rope")
    attention["scale"] = config.number("attention_multiplier", 1.0)
    mixers = {"mamba": {"norm_eps": eps, **ssd_settings(config, d)}, "self_attn": attention}
    experts = config.count("num_local_experts", least=0)
    own = {
        "eps": eps,
        "experts": experts,
        "chosen": config.part("num_experts_per_tok", "num_local_experts", experts)
        if experts
        else 0,
        "mlp": config.size("intermediate_size"),
        "shared": config.size("shared_intermediate_size"),
        "activation": "silu",
        "branch": config.number("residual_multiplier", 1.0),
    }
    config.ignore("num_experts_per_tok")
    layers = tuple(
        layer(_layer, f"model.layers.{i}.", mixer=kind, **own, **mixers[kind])
        for i, kind in enumerate(_kinds(config, count))
    )
    scales = (
        config.number("embedding_multiplier", 1.0),
        1 / config.positive("logits_scaling", 1.0),
    )
    return decoder(config, layers, eps=eps, scales=scales)
