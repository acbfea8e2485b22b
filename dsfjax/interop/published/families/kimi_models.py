"""Kimi Linear (arXiv:2510.26692): Kimi Delta Attention, and multi-head latent attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax import ops
from dsfjax.core.dtypes import state_dtype
from dsfjax.interop.published.families.olmo_models import convolved_heads
from dsfjax.interop.published.families.qwen_hybrid_models import FULL, LINEAR, layer_types
from dsfjax.interop.published.naming import Definition, Stream, Weights, family, layer
from dsfjax.interop.published.parts import (
    ROUTER,
    chosen_experts,
    decoder,
    expert_mlps,
    gated_mlp,
    linear,
    norm_then_gate,
    pre_norm,
    rms_norm,
    top_scores,
)
from dsfjax.interop.published.running import Run
from dsfjax.interop.published.tensor_files import Config

_LATENT_EPS = 1e-6  # of the norms of latents, whatever the config says of the others


class GroupedExperts(NamedTuple):
    """Sizes of experts, of which a router chooses within some groups of them.

    Attributes:
        count: Of experts.
        chosen: Of them for a token.
        width: Of an expert.
        shared: How many widths the one has that every token takes.
        groups: Of experts.
        chosen_groups: Of them for a token.
        renormalised: Whether the scores of the chosen sum to 1, before the factor.
        factor: Of the scores.
    """

    count: int
    chosen: int
    width: int
    shared: int
    groups: int
    chosen_groups: int
    renormalised: bool
    factor: float


def kda_mixer(
    w: Weights, x: Array, run: Run, *, heads: int, channels: int, width: int, eps: float
) -> Array:
    """Convolutions of q, k and v, the delta rule with a decay per channel, norm and σ gate, map.

    Args:
        w: Tensors.
        x: Input (L, d).
        run: The run.
        heads: Number of heads.
        channels: Of a head; the rank of the maps to decays and gates too.
        width: Of the convolutions.
        eps: Of the norm.
    """
    inner, shape = heads * channels, (x.shape[0], heads, channels)
    q, k, v = convolved_heads(
        *(w, x, run),
        heads=(heads, heads, heads),
        channels=(channels, channels, channels),
        width=width,
    )
    decay, gate = (
        linear(w.within(f"{n}_b_proj"), linear(w.within(f"{n}_a_proj"), x, channels), inner)
        for n in "fg"
    )
    y = run.op(
        *(ops.chunk_kda, q, k, v, decay.reshape(shape), linear(w.within("b_proj"), x, heads)),
        use_qk_l2norm_in_kernel=True,
        use_beta_sigmoid_in_kernel=True,
        use_gate_in_kernel=True,
        A_log=w("A_log", 1, 1, heads, 1).reshape(heads),
        dt_bias=w("dt_bias", inner),
    )
    norm = w("o_norm.weight", channels)
    y = norm_then_gate(y, gate.reshape(shape), norm, eps, activation="sigmoid")
    return linear(w.within("o_proj"), y.reshape(x.shape[0], inner), x.shape[1])


def latent_attention(
    w: Weights,
    x: Array,
    run: Run,
    *,
    heads: int,
    rank: int,
    query_rank: int | None,
    own_dim: int,
    shared_dim: int,
    value_dim: int,
) -> Array:
    """Multi-head latent attention (arXiv:2405.04434) without positions.

    Args:
        w: Tensors.
        x: Input (L, d).
        run: The run.
        heads: Number of heads.
        rank: Of the latent that keys and values are made of.
        query_rank: Of the latent of the queries; None for none.
        own_dim: Channels of a key that each head has.
        shared_dim: Channels of a key that all heads share.
        value_dim: Channels of a value.
    """
    length, m = x.shape[0], own_dim + shared_dim
    if query_rank is None:
        q = linear(w.within("q_proj"), x, heads * m)
    else:
        low = linear(w.within("q_a_proj"), x, query_rank)
        low = rms_norm(low, w("q_a_layernorm.weight", query_rank), _LATENT_EPS)
        q = linear(w.within("q_b_proj"), low, heads * m)
    low = linear(w.within("kv_a_proj_with_mqa"), x, rank + shared_dim)
    low, shared = low[:, :rank], low[:, rank:]
    low = rms_norm(low, w("kv_a_layernorm.weight", rank), _LATENT_EPS)
    kv = linear(w.within("kv_b_proj"), low, heads * (own_dim + value_dim))
    kv = kv.reshape(length, heads, -1)
    shared = jnp.broadcast_to(shared[:, None], (length, heads, shared_dim))
    k = jnp.concatenate([kv[..., :own_dim], shared], axis=2)
    y = run.attend(q.reshape(length, heads, m), k, kv[..., own_dim:])
    return linear(w.within("o_proj"), y.reshape(length, -1).astype(x.dtype), x.shape[1])


def _experts(w: Weights, x: Array, own: GroupedExperts) -> Array:
    scores = linear(w.within("gate"), x.astype(state_dtype(x.dtype)), own.count)
    scores = jax.nn.sigmoid(scores)
    by = scores + w("gate.e_score_correction_bias", own.count)
    if own.groups > 1:
        by = _within_groups(by, own.groups, own.chosen_groups)
    scores = top_scores(scores, own.chosen, by)
    if own.renormalised:
        scores = scores / (scores.sum(axis=-1, keepdims=True) + 1e-20)
    experts = expert_mlps(w, own.count, own.width, names=("w1", "w3", "w2"))
    y = chosen_experts(scores * own.factor, experts, x)
    if own.shared:
        y = y + gated_mlp(w.within("shared_experts"), x, own.shared * own.width)
    return y


def _within_groups(by: Array, groups: int, chosen: int) -> Array:
    """What experts are chosen by, 0 outside of the groups whose two best have the largest sums."""
    grouped = by.reshape(by.shape[0], groups, -1)
    best = jax.lax.top_k(grouped, 2)[0].sum(axis=-1)
    kept = top_scores(jnp.ones_like(best), chosen, best)
    return jnp.where(kept[..., None] > 0, grouped, 0).reshape(by.shape)


def _around(
    w: Weights,
    stream: Stream,
    mixer: Callable[[Array], Array],
    eps: float,
    mlp: int | GroupedExperts,
) -> Stream:
    own = w.first_of("block_sparse_moe", "mlp")
    sparse = isinstance(mlp, GroupedExperts)
    inner = partial(_experts, own, own=mlp) if sparse else partial(gated_mlp, own, width=mlp)
    return pre_norm(w, stream, mixer, inner, eps)


def _kda_layer(
    w: Weights, stream: Stream, run: Run, *, eps: float, mlp: int | GroupedExperts, **own: Any
) -> Stream:
    mixer = partial(kda_mixer, w.within("self_attn"), run=run, eps=eps, **own)
    return _around(w, stream, mixer, eps, mlp)


def _attention_layer(
    w: Weights, stream: Stream, run: Run, *, eps: float, mlp: int | GroupedExperts, **own: Any
) -> Stream:
    mixer = partial(latent_attention, w.within("self_attn"), run=run, **own)
    return _around(w, stream, mixer, eps, mlp)


@family("kimi_linear")
def kimi_linear(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Definition:
    """Kimi Linear, with the names of its config and with those of its published files."""
    del shapes
    count, eps = config.count("num_hidden_layers"), config.positive("rms_norm_eps", 1e-5)
    heads = config.size("num_attention_heads")
    config.only("hidden_act", "silu")
    config.only("attention_bias", False)
    config.follows("num_key_value_heads", heads, "num_attention_heads")
    config.only("mla_use_nope", True)
    # Nothing is rotated, and the size of a head follows from others.
    config.ignore("rope_parameters", "rope_theta", "rope_scaling", "head_dim", "qk_head_dim")
    config.ignore("model_max_length", "pretraining_tp", "num_nextn_predict_layers")
    inner = config.section("linear_attn_config")
    kda = {
        "heads": inner.size("num_heads", config.size("linear_num_heads", 32)),
        "channels": inner.size("head_dim", config.size("linear_head_dim", 128)),
        "width": inner.size("short_conv_kernel_size", config.size("linear_conv_kernel_dim", 4)),
    }
    full = {
        "heads": heads,
        "rank": config.size("kv_lora_rank", 512),
        "query_rank": config.size("q_lora_rank") if config.given("q_lora_rank") else None,
        "own_dim": config.size("qk_nope_head_dim", 128),
        "shared_dim": config.size("qk_rope_head_dim", 64),
        "value_dim": config.size("v_head_dim", 128),
    }
    types, mlps = _types(config, inner, count), _mlps(config, count)
    inner.check_all_read()
    layers = (
        layer(
            _kda_layer if types[i] == LINEAR else _attention_layer,
            f"model.layers.{i}.",
            eps=eps,
            mlp=mlps[i],
            **(kda if types[i] == LINEAR else full),
        )
        for i in range(count)
    )
    return decoder(config, layers, eps=eps, wide=ROUTER)


def _types(config: Config, inner: Config, count: int) -> tuple[str, ...]:
    """The type of every layer; published files count layers from 1."""
    full, linear_ones = (
        inner.places(f"{name}_layers", count, first=1) for name in ("full_attn", "kda")
    )
    if not config.given("layer_types") and (full or linear_ones):
        if sorted([*full, *linear_ones]) != list(range(1, count + 1)):
            raise inner.wrong(
                "full_attn_layers and kda_layers",
                f"every number from 1 to {count} (num_hidden_layers) once",
                [*full, *linear_ones],
            )
        return tuple(FULL if i + 1 in full else LINEAR for i in range(count))
    return layer_types(config, (LINEAR if (i + 1) % 4 else FULL for i in range(count)))


def _mlps(config: Config, count: int) -> list[int | GroupedExperts]:
    """The MLP of every layer."""
    config.only("moe_layer_freq", 1)
    config.only("moe_router_activation_func", "sigmoid")
    config.only("use_grouped_topk", True)
    first = config.size("first_k_dense_replace", 1, least=0)
    if not config.given("mlp_layer_types"):
        types = tuple("dense" if i < first else "sparse" for i in range(count))
    else:
        types = config.words("mlp_layer_types", ("dense", "sparse"), count)
    number = config.count("num_experts", 256)
    groups = config.divisor("num_expert_group", "num_experts", number, 1)
    if groups > 1 and groups == number:
        raise config.wrong("num_expert_group", "groups of at least 2 of num_experts", groups)
    experts = GroupedExperts(
        number,
        config.part("num_experts_per_token", "num_experts", number, 8),
        config.size("moe_intermediate_size", 1024),
        config.size("num_shared_experts", 1, least=0),
        groups,
        config.part("topk_group", "num_expert_group", groups, 1),
        config.flag("moe_renormalize", True),
        config.number("routed_scaling_factor", 2.446),
    )
    dense = config.size("intermediate_size", 9216)
    return [dense if kind == "dense" else experts for kind in types]
