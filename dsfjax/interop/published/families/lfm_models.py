"""LFM2 (arXiv:2511.23404): gated short convolutions between a few layers of attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array

from dsfjax.interop.published.families.attention_models import rotary_attention
from dsfjax.interop.published.families.qwen_hybrid_models import FULL
from dsfjax.interop.published.naming import Definition, Stream, Weights, family, layer
from dsfjax.interop.published.parts import decoder, gated_mlp, linear, pre_norm
from dsfjax.interop.published.rotary import rotation_of
from dsfjax.interop.published.running import Run
from dsfjax.interop.published.tensor_files import Config

_CONV = "conv"


def short_convolution(w: Weights, x: Array, run: Run, *, width: int, bias: bool) -> Array:
    """out(C ⊙ conv(B ⊙ u)), with B, C and u maps of x.

    Args:
        w: Tensors.
        x: Input (L, d).
        run: The run.
        width: Of the convolution.
        bias: Whether the convolution and both maps have one.
    """
    d = x.shape[1]
    b, c, u = jnp.split(linear(w.within("in_proj"), x, 3 * d, bias=bias), 3, axis=1)
    own = w.within("conv")
    y = run.conv(b * u, own("weight", d, 1, width), own("bias", d) if bias else None)
    return linear(w.within("out_proj"), c * y, d, bias=bias)


def _around(
    w: Weights, stream: Stream, mixer: Callable[[Array], Array], eps: float, mlp: int
) -> Stream:
    inner = partial(gated_mlp, w.within("feed_forward"), width=mlp, names=("w1", "w3", "w2"))
    return pre_norm(w, stream, mixer, inner, eps, norms=("operator_norm", "ffn_norm"))


def _conv_layer(
    w: Weights, stream: Stream, run: Run, *, eps: float, mlp: int, **own: Any
) -> Stream:
    return _around(
        w, stream, partial(short_convolution, w.within("conv"), run=run, **own), eps, mlp
    )


def _attention_layer(
    w: Weights, stream: Stream, run: Run, *, eps: float, mlp: int, **own: Any
) -> Stream:
    mixer = partial(rotary_attention, w.within("self_attn"), run=run, norm_eps=eps, **own)
    return _around(w, stream, mixer, eps, mlp)


@family("lfm2")
def lfm2(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Definition:
    """LFM2. A short convolution has no System: it is not shown among those of its layer."""
    del shapes
    count, eps = config.count("num_hidden_layers"), config.positive("norm_eps", 1e-5)
    d, heads = config.size("hidden_size"), config.size("num_attention_heads", 32)
    config.only("block_use_swiglu", True)
    config.only("use_pos_enc", True)
    # Names of the published files for what has another name too, or for how training began.
    config.ignore("block_dim", "block_norm_eps", "conv_dim", "conv_dim_out", "num_heads")
    config.ignore("block_mlp_init_scale", "block_out_init_scale")
    config.ignore("block_use_xavier_init", "conv_use_xavier_init")
    head_dim, theta = d // heads, config.positive("theta", 1_000_000.0)
    full = {
        "heads": heads,
        "kv_heads": config.divisor("num_key_value_heads", "num_attention_heads", heads, 8),
        "head_dim": head_dim,
        "rotation": rotation_of(config, head_dim, theta=theta),
    }
    conv = {"width": config.size("conv_L_cache", 3), "bias": config.flag("conv_bias", False)}
    mlp = _width(config)

    def of_layer(i: int, kind: str) -> Any:
        prefix = f"model.layers.{i}."
        if kind == _CONV:
            return layer(_conv_layer, prefix, eps=eps, mlp=mlp, **conv)
        attention = f"{prefix}self_attn."
        names = {"": prefix, "self_attn.o_proj.": f"{attention}out_proj."}
        names |= {f"self_attn.{n}_norm.": f"{attention}{n}_layernorm." for n in "qk"}
        return layer(_attention_layer, names, eps=eps, mlp=mlp, **full)

    layers = (of_layer(i, kind) for i, kind in enumerate(_types(config, count)))
    tied = config.flag("tie_embedding", config.flag("tie_word_embeddings", True))
    config.follows("tie_word_embeddings", tied, "tie_embedding")
    return decoder(config, layers, eps=eps, tied=tied, norm="model.embedding_norm.weight")


def _types(config: Config, count: int) -> tuple[str, ...]:
    if config.given("layer_types"):
        return config.words("layer_types", (_CONV, FULL), count)
    if not config.given("full_attn_idxs"):
        return (FULL,) * count
    places = config.places("full_attn_idxs", count)
    return tuple(FULL if i in places else _CONV for i in range(count))


def _width(config: Config) -> int:
    """Channels within an MLP: two thirds of the setting, rounded up, if it is to be adjusted."""
    config.ignore("intermediate_size")
    name = "block_ff_dim" if config.given("block_ff_dim") else "intermediate_size"
    width, multiple = config.size(name, 12288), config.size("block_multiple_of", 256)
    two_thirds = max(int(2 * width / 3), 1)
    adjusted = int(config.scaled("block_ffn_dim_multiplier", name, two_thirds, 1.0))
    if not config.flag("block_auto_adjust_ff_dim", True):
        return width
    return -(-adjusted // multiple) * multiple
