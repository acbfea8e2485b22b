"""Qwen3-Next and Qwen3.5: gated delta rules (arXiv:2412.06464) between layers of gated attention.

With dense MLPs, or experts next to one that every token takes (arXiv:2505.09388).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax import ops
from dsfjax.interop.published.families.attention_models import attention_settings, rotary_attention
from dsfjax.interop.published.naming import Definition, Stream, Weights, family, layer
from dsfjax.interop.published.parts import (
    chosen_experts,
    decoder,
    expert_mlps,
    gated_mlp,
    joined_expert_mlps,
    linear,
    norm_then_gate,
    pre_norm,
    routed,
)
from dsfjax.interop.published.running import Run
from dsfjax.interop.published.tensor_files import Config

LINEAR, FULL = "linear_attention", "full_attention"


class Experts(NamedTuple):
    """Sizes of experts, of which a router chooses.

    Attributes:
        count: Of experts.
        chosen: Of them for a token.
        width: Of an expert.
        shared: Width of the one that every token takes.
        renormalised: Whether the scores of the chosen sum to 1.
    """

    count: int
    chosen: int
    width: int
    shared: int
    renormalised: bool


def delta_rule(
    w: Weights, run: Run, q: Array, k: Array, v: Array, a: Array, b: Array, *, negative: bool
) -> Array:
    """The gated delta rule of q, k (L, G, K), v (L, H, V) and raw gates (L, H).

    Args:
        w: Tensors A_log and dt_bias.
        run: The run.
        q: Queries, before they are brought to unit length.
        k: Keys, before they are brought to unit length.
        v: Values.
        a: The decay is exp(−e^A_log softplus(a + dt_bias)).
        b: What is written, β = σ(b).
        negative: Whether β is doubled, so that eigenvalues reach −1 (arXiv:2411.12537).

    Returns:
        (L, H, V).
    """
    heads = v.shape[1]
    return run.op(
        *(ops.chunk_gated_delta_rule, q, k, v, a, b),
        use_qk_l2norm_in_kernel=True,
        use_beta_sigmoid_in_kernel=True,
        allow_neg_eigval=negative,
        use_gate_in_kernel=True,
        A_log=w("A_log", heads),
        dt_bias=w("dt_bias", heads),
    )


def delta_mixer(
    w: Weights,
    x: Array,
    run: Run,
    *,
    key_heads: int,
    value_heads: int,
    key_dim: int,
    value_dim: int,
    width: int,
    eps: float,
    interleaved: bool,
) -> Array:
    """Convolution and SiLU of q, k and v together, the gated delta rule, norm and gate, map out.

    Args:
        w: Tensors.
        x: Input (L, d).
        run: The run.
        key_heads: Of queries and keys.
        value_heads: Of values.
        key_dim: Channels of a key.
        value_dim: Channels of a value.
        width: Of the convolution.
        eps: Of the norm.
        interleaved: Whether the maps in have their rows key head by key head (Qwen3-Next), not q
            before k before v (Qwen3.5).
    """
    length, keys, values = x.shape[0], key_heads * key_dim, value_heads * value_dim
    maps = _interleaved if interleaved else _in_order
    qkv, z, a, b = maps(w, x, key_heads, value_heads, key_dim, value_dim)
    qkv = jax.nn.silu(run.conv(qkv, w("conv1d.weight", qkv.shape[1], 1, width)))
    q, k, v = jnp.split(qkv, [keys, 2 * keys], axis=1)
    y = delta_rule(
        *(w, run, q.reshape(length, key_heads, -1), k.reshape(length, key_heads, -1)),
        *(v.reshape(length, value_heads, -1), a, b),
        negative=False,
    )
    z = z.reshape(length, value_heads, value_dim)
    y = norm_then_gate(y, z, w("norm.weight", value_dim), eps)
    return linear(w.within("out_proj"), y.reshape(length, values), x.shape[1])


def _interleaved(
    w: Weights, x: Array, key_heads: int, value_heads: int, key_dim: int, value_dim: int
) -> tuple[Array, Array, Array, Array]:
    """[q k v] flat, z, a and b of maps whose rows are [q k v z] and [b a] for each key head."""
    length, share = x.shape[0], value_heads // key_heads
    values = share * value_dim
    rows = linear(w.within("in_proj_qkvz"), x, key_heads * 2 * (key_dim + values))
    rows = rows.reshape(length, key_heads, -1)
    parts = jnp.split(rows, [key_dim, 2 * key_dim, 2 * key_dim + values], axis=2)
    q, k, v, z = (part.reshape(length, -1) for part in parts)
    gates = linear(w.within("in_proj_ba"), x, 2 * value_heads).reshape(length, key_heads, -1)
    b, a = (part.reshape(length, -1) for part in jnp.split(gates, 2, axis=2))
    return jnp.concatenate([q, k, v], axis=1), z, a, b


def _in_order(
    w: Weights, x: Array, key_heads: int, value_heads: int, key_dim: int, value_dim: int
) -> tuple[Array, Array, Array, Array]:
    """[q k v] flat, z, a and b of one map each."""
    values = value_heads * value_dim
    qkv, z, a, b = (
        linear(w.within(f"in_proj_{name}"), x, size)
        for name, size in (
            ("qkv", 2 * key_heads * key_dim + values),
            ("z", values),
            ("a", value_heads),
            ("b", value_heads),
        )
    )
    return qkv, z, a, b


def _experts(w: Weights, x: Array, own: Experts) -> Array:
    """Those that the router chooses, and σ(gate) times the one for all."""
    scores = routed(w.within("gate"), x, own.count, own.chosen, renormalised=own.renormalised)
    y = chosen_experts(scores, _mlps_of_experts(w, x.shape[1], own), x)
    gate = jax.nn.sigmoid(linear(w.within("shared_expert_gate"), x, 1))
    return y + gate * gated_mlp(w.within("shared_expert"), x, own.shared)


def _mlps_of_experts(w: Weights, d: int, own: Experts) -> list[Callable[[Array], Array]]:
    """Those of all experts, whose tensors are joined in some files and one by one in others."""
    joined = w.within("experts")
    if "gate_up_proj" not in joined:
        return expert_mlps(w, own.count, own.width)
    up = joined("gate_up_proj", own.count, 2 * own.width, d)
    return joined_expert_mlps(up, joined("down_proj", own.count, d, own.width))


def _around(
    w: Weights, stream: Stream, mixer: Callable[[Array], Array], eps: float, mlp: int | Experts
) -> Stream:
    own = w.within("mlp")
    sparse = isinstance(mlp, Experts)
    inner = partial(_experts, own, own=mlp) if sparse else partial(gated_mlp, own, width=mlp)
    return pre_norm(w, stream, mixer, inner, eps, plus_one=True)


def _delta_layer(
    w: Weights, stream: Stream, run: Run, *, eps: float, mlp: int | Experts, **own: Any
) -> Stream:
    mixer = partial(delta_mixer, w.within("linear_attn"), run=run, eps=eps, **own)
    return _around(w, stream, mixer, eps, mlp)


def _attention_layer(
    w: Weights, stream: Stream, run: Run, *, eps: float, mlp: int | Experts, **own: Any
) -> Stream:
    mixer = partial(
        *(rotary_attention, w.within("self_attn")),
        **{"run": run, "norm_eps": eps, "plus_one": True, "gated": True, **own},
    )
    return _around(w, stream, mixer, eps, mlp)


def layer_types(config: Config, default: Iterable[str]) -> tuple[str, ...]:
    """Which layers are linear and which full attention; ``default`` if the config does not say."""
    if not config.given("layer_types"):
        return tuple(default)
    return config.words("layer_types", (LINEAR, FULL), config.count("num_hidden_layers"))


@family("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")
def qwen_hybrid(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Definition:
    """Qwen3-Next, and the text model of Qwen3.5, with dense MLPs or experts and maps in order."""
    kind = config.get("model_type")
    count, eps = config.count("num_hidden_layers"), config.positive("rms_norm_eps", 1e-6)
    config.only("hidden_act", "silu")
    config.only("attn_output_gate", True)
    config.ignore("mamba_ssm_dtype", "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings")
    interval = config.size("full_attention_interval", 4)
    types = layer_types(config, (LINEAR if (i + 1) % interval else FULL for i in range(count)))
    mlps = _MLPS[kind](config, count)
    full = attention_settings(config, head_dim=256, share=0.25)
    delta = {
        "key_heads": config.size("linear_num_key_heads", 16),
        "value_heads": config.size("linear_num_value_heads", 32),
        "key_dim": config.size("linear_key_head_dim", 128),
        "value_dim": config.size("linear_value_head_dim", 128),
        "width": config.size("linear_conv_kernel_dim", 4),
        "interleaved": kind == "qwen3_next",
    }
    multimodal = any(name.startswith("model.language_model.") for name in shapes)
    prefix = "model.language_model." if multimodal else "model."
    layers = (
        layer(
            _delta_layer if types[i] == LINEAR else _attention_layer,
            f"{prefix}layers.{i}.",
            eps=eps,
            mlp=mlps[i],
            **(delta if types[i] == LINEAR else full),
        )
        for i in range(count)
    )
    # What predicts several tokens at once, and what looks at images.
    unused = tuple(name for name in shapes if name.startswith(("mtp.", "model.visual.")))
    return decoder(
        config,
        layers,
        eps=eps,
        embeddings=f"{prefix}embed_tokens.weight",
        norm=f"{prefix}norm.weight",
        plus_one=True,
        unused=unused,
    )


def _dense(config: Config, count: int) -> list[int | Experts]:
    """The MLP of every layer of Qwen3.5."""
    return [config.size("intermediate_size")] * count


def _sparse(config: Config, count: int) -> list[int | Experts]:
    """The experts of every layer of Qwen3.5-MoE."""
    number = config.count("num_experts", 256)
    experts = Experts(
        number,
        config.part("num_experts_per_tok", "num_experts", number, 8),
        config.size("moe_intermediate_size", 512),
        config.size("shared_expert_intermediate_size", 512),
        renormalised=True,
    )
    return [experts] * count


def _mixed(config: Config, count: int) -> list[int | Experts]:
    """The MLP of every layer of Qwen3-Next."""
    number, step = config.count("num_experts", 512, least=0), config.size("decoder_sparse_step", 1)
    dense = config.places("mlp_only_layers", count)
    config.ignore("num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob")
    config.ignore("intermediate_size", "shared_expert_intermediate_size")

    def of_layer(i: int) -> int | Experts:
        if number == 0 or i in dense or (i + 1) % step:
            return config.size("intermediate_size", 5632)
        return Experts(
            number,
            config.part("num_experts_per_tok", "num_experts", number, 10),
            config.size("moe_intermediate_size", 512),
            config.size("shared_expert_intermediate_size", 512),
            config.flag("norm_topk_prob", True),
        )

    return [of_layer(i) for i in range(count)]


_MLPS = {"qwen3_next": _mixed, "qwen3_5_text": _dense, "qwen3_5_moe_text": _sparse}


@family("qwen3_5", "qwen3_5_moe")
def qwen3_5(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Definition:
    """The text model within a published Qwen3.5, which reads images as well."""
    config.ignore("vision_config", "image_token_id", "video_token_id")
    config.ignore("vision_start_token_id", "vision_end_token_id")
    text = config.section("text_config")
    tied = config.flag("tie_word_embeddings", text.flag("tie_word_embeddings", False))
    kind = f"{config.get('model_type')}_text"
    text.values |= {"model_type": kind, "tie_word_embeddings": tied}
    definition = qwen_hybrid(text, shapes)
    text.check_all_read()
    return definition
