"""Jamba (arXiv:2403.19887): S6, attention in some layers, experts in some."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from jax import Array

from dsfjax.interop.published.families.attention_models import attention_settings, rotary_attention
from dsfjax.interop.published.families.mamba_models import s6_mixer
from dsfjax.interop.published.naming import Definition, Stream, Weights, family, layer
from dsfjax.interop.published.parts import (
    chosen_experts,
    decoder,
    expert_mlps,
    gated_mlp,
    pre_norm,
    routed,
)
from dsfjax.interop.published.running import Run
from dsfjax.interop.published.tensor_files import Config

_MIXERS: dict[str, Callable[..., Array]] = {"mamba": s6_mixer, "self_attn": rotary_attention}


def _experts(w: Weights, x: Array, mlp: int, *, count: int, chosen: int) -> Array:
    """MLPs times their probabilities; those of the chosen ones do not add up to 1."""
    scores = routed(w.within("router"), x, count, chosen, renormalised=False)
    return chosen_experts(scores, expert_mlps(w, count, mlp), x)


def _layer(
    w: Weights,
    stream: Stream,
    run: Run,
    *,
    mixer: str,
    eps: float,
    mlp: int,
    experts: int,
    chosen: int,
    **own: Any,
) -> Stream:
    inner = w.within("feed_forward")
    dense = partial(gated_mlp, inner, width=mlp)
    sparse = partial(_experts, inner, mlp=mlp, count=experts, chosen=chosen)
    return pre_norm(
        *(w, stream, partial(_MIXERS[mixer], w.within(mixer), run=run, **own)),
        sparse if experts > 1 else dense,
        eps,
        norms=("input_layernorm", "pre_ff_layernorm"),
    )


def _place(config: Config, name: str, period: int, offset: int) -> tuple[int, int]:
    """Period and offset of the layers of a kind."""
    period, found = (
        config.size(f"{name}_period", period),
        config.size(f"{name}_offset", offset, least=0),
    )
    if found >= period:
        raise config.wrong(f"{name}_offset", f"less than {period}, {name}_period", found)
    return period, found


@family("jamba")
def jamba(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Definition:
    """Jamba: Mamba with learnt norms of Δ, B and C; attention without positions."""
    del shapes
    d, eps = config.size("hidden_size"), config.positive("rms_norm_eps", 1e-6)
    config.only("hidden_act", "silu")
    config.only("mamba_inner_layernorms", True)
    config.only("sliding_window", None)
    config.only("attention_bias", False)
    config.ignore("use_mamba_kernels", "use_mambapy", "use_associative_scan", "num_logits_to_keep")
    config.ignore("calc_logits_for_entire_prompt")
    rank = config.get("mamba_dt_rank", "auto")
    mixers = {
        "mamba": {
            "inner": config.size("mamba_expand", 2) * d,
            "state": config.size("mamba_d_state", 16),
            "rank": -(-d // 16) if rank == "auto" else config.size("mamba_dt_rank"),
            "width": config.size("mamba_d_conv", 4),
            "bias": config.flag("mamba_proj_bias", False),
            "conv_bias": config.flag("mamba_conv_bias", True),
            "norm_eps": eps,
            "norms": ("dt_layernorm", "b_layernorm", "c_layernorm"),
        },
        "self_attn": attention_settings(config, rotates=False),
    }
    mlp, count = config.size("intermediate_size"), config.count("num_experts", 16)
    chosen = config.part("num_experts_per_tok", "num_experts", max(count, 2), 2)
    period, offset = _place(config, "attn_layer", 8, 4)
    expert_period, expert_offset = _place(config, "expert_layer", 2, 1)
    layers = []
    for i in range(config.count("num_hidden_layers")):
        kind = "self_attn" if i % period == offset else "mamba"
        experts = count if i % expert_period == expert_offset else 1
        own = {"mixer": kind, "eps": eps, "mlp": mlp, "experts": experts, "chosen": chosen}
        layers.append(layer(_layer, f"model.layers.{i}.", **own, **mixers[kind]))
    return decoder(config, layers, eps=eps, norm="model.final_layernorm.weight")
