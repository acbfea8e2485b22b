"""What published models are made of around their mixers: linear maps, norms, MLPs.

Weights have the layouts of the files: a linear map is ``weight (out, in)``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from dsfjax.core.dtypes import state_dtype
from dsfjax.core.norms import layer_norm, rms_norm
from dsfjax.core.rows import projected
from dsfjax.interop.published.naming import Definition, Kind, Layer, Stream, Weights, layer
from dsfjax.interop.published.tensor_files import Config

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "sqrelu": lambda x: jnp.square(jax.nn.relu(x)),
    "sigmoid": jax.nn.sigmoid,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


def linear(w: Weights, x: Array, out: int, *, bias: bool = False) -> Array:
    """The map x Wᵀ + b, with W (out, in) under ``weight`` and b under ``bias``."""
    y = projected(x, w("weight", out, x.shape[-1]), axis=1)
    return y + w("bias", out) if bias else y


def norm_then_gate(
    x: Array, gate: Array, weight: Array, eps: float, *, activation: str = "silu"
) -> Array:
    """RMS norm with a weight, times φ(gate); in float32 at least, of the dtype of the gate."""
    wide = state_dtype(x.dtype, gate.dtype)
    y = rms_norm(x.astype(wide), weight, eps) * ACTIVATIONS[activation](gate.astype(wide))
    return y.astype(gate.dtype)


def soft_cap(x: Array, cap: float | None) -> Array:
    """The cap c tanh(x / c), or x itself."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def gated_mlp(
    w: Weights,
    x: Array,
    width: int,
    *,
    activation: str = "silu",
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    bias: bool = False,
    scale: float = 1.0,
) -> Array:
    """down(φ(scale · gate x) ⊙ up x)."""
    gate, up, down = names
    inner = linear(w.within(gate), x, width, bias=bias)
    inner = ACTIVATIONS[activation](inner if scale == 1 else inner * scale)
    inner = inner * linear(w.within(up), x, width, bias=bias)
    return linear(w.within(down), inner, x.shape[-1], bias=bias)


def expert_mlps(
    w: Weights,
    count: int,
    width: int,
    *,
    activation: str = "silu",
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> list[Callable[[Array], Array]]:
    """The `gated_mlp` of every expert, under ``experts.0``, ``experts.1`` and so on."""
    every = (w.within(f"experts.{i}") for i in range(count))
    return [
        functools.partial(gated_mlp, own, width=width, activation=activation, names=names)
        for own in every
    ]


def joined_mlp(x: Array, up: Array, down: Array, *, activation: str = "silu") -> Array:
    """W₂ (φ(a) ⊙ b) with the rows [a | b] of W₁ x."""
    width = up.shape[0] // 2
    inner = projected(x, up, axis=1)
    return projected(ACTIVATIONS[activation](inner[:, :width]) * inner[:, width:], down, axis=1)


def joined_expert_mlps(
    up: Float[Array, "E rows d"], down: Float[Array, "E d width"], *, activation: str = "silu"
) -> list[Callable[[Array], Array]]:
    """The `joined_mlp` of every expert, of the tensors of all together."""
    return [
        functools.partial(joined_mlp, up=up[e], down=down[e], activation=activation)
        for e in range(len(up))
    ]


def chosen_experts(
    scores: Float[Array, "L E"], experts: Sequence[Callable[[Array], Array]], x: Array
) -> Array:
    """Σ_e scores_e expert_e(x), with the experts one after the other; scores of others are 0."""
    return functools.reduce(
        lambda y, e: y + scores[:, e, None].astype(x.dtype) * experts[e](x),
        range(len(experts)),
        jnp.zeros_like(x),
    )


def top_scores(scores: Float[Array, "L E"], count: int, by: Array | None = None) -> Array:
    """The ``count`` largest scores of each token, the others 0; chosen by ``by`` if it is given."""
    _, places = jax.lax.top_k(scores if by is None else by, count)
    kept = jax.nn.one_hot(places, scores.shape[-1], dtype=scores.dtype).sum(axis=-2)
    return scores * kept


def routed(
    w: Weights, x: Array, count: int, chosen: int, *, renormalised: bool = True
) -> Float[Array, "L E"]:
    """Softmax scores of experts, 0 but for the chosen; renormalised, those sum to 1."""
    scores = jax.nn.softmax(linear(w, x, count).astype(state_dtype(x.dtype)), axis=-1)
    scores = top_scores(scores, chosen)
    return scores / scores.sum(axis=-1, keepdims=True) if renormalised else scores


def pre_norm(
    w: Weights,
    stream: Stream,
    mixer: Callable[[Array], Array],
    mlp: Callable[[Array], Array],
    eps: float,
    *,
    norms: tuple[str, str] = ("input_layernorm", "post_attention_layernorm"),
    plus_one: bool = False,
) -> Stream:
    """The usual layer: x + mixer(norm x), and to that its mlp(norm x).

    Args:
        w: Tensors of the layer.
        stream: The stream.
        mixer: Of the normed input (L, d).
        mlp: Of the normed sum.
        eps: Of both norms.
        norms: Their names.
        plus_one: Whether they multiply by 1 + weight.
    """
    x = stream["x"]
    for name, branch in zip(norms, (mixer, mlp), strict=True):
        weight = w(f"{name}.weight", x.shape[1])
        x = x + branch(rms_norm(x, weight, eps, plus_one=plus_one))
    return {"x": x}


ROUTER = (".gate.weight", ".gate.e_score_correction_bias")
"""Tensors of a router that are never narrow: rounded, they would choose other experts."""


def embed(
    w: Weights, stream: Stream, run: Any, *, vocab: int, width: int, scale: float = 1.0
) -> Stream:
    """x_t = scale · E[token_t]."""
    del run
    x = w("weight", vocab, width)[stream["ids"]]
    return {"x": x if scale == 1 else x * scale}


def normed(w: Weights, x: Array, eps: float, *, bias: bool = True) -> Array:
    """`layer_norm` with the tensors ``weight`` and ``bias``."""
    d = x.shape[-1]
    return layer_norm(x, w("weight", d), w("bias", d) if bias else None, eps)


def layer_norm_head(
    w: Weights, stream: Stream, run: Any, *, vocab: int, eps: float, bias: bool = True
) -> Stream:
    """Layer norm and the map to logits, under ``norm.`` and ``weight``."""
    del run
    x = normed(w.within("norm"), stream["x"], eps, bias=bias)
    return {"x": x, "logits": projected(x, w("weight", vocab, x.shape[-1]), axis=1)}


def rms_head(
    w: Weights,
    stream: Stream,
    run: Any,
    *,
    vocab: int,
    eps: float,
    plus_one: bool = False,
    scale: float = 1.0,
    cap: float | None = None,
) -> Stream:
    """RMS norm and the map to logits, scaled and capped, under ``norm`` and ``weight``."""
    del run
    x = rms_norm(stream["x"], w("norm", stream["x"].shape[-1]), eps, plus_one=plus_one)
    logits = projected(x, w("weight", vocab, x.shape[-1]), axis=1)
    return {"x": x, "logits": soft_cap(logits if scale == 1 else logits * scale, cap)}


def decoder(
    config: Config,
    layers: Iterable[Layer],
    *,
    eps: float,
    tied: bool = False,
    embeddings: str = "model.embed_tokens.weight",
    norm: str = "model.norm.weight",
    width: int | None = None,
    embedding: Kind = embed,
    scales: tuple[float, float] = (1.0, 1.0),
    plus_one: bool = False,
    cap: float | None = None,
    unused: tuple[str, ...] = (),
    wide: tuple[str, ...] = (),
) -> Definition:
    """Embeddings, layers, a last RMS norm and the map to logits.

    Args:
        config: The config.
        layers: The layers.
        eps: Of the norm.
        tied: Whether the embeddings are the map to logits, where the config does not say.
        embeddings: Name of the embeddings.
        norm: Name of the weight of the norm.
        width: d; hidden_size by default.
        embedding: What makes the first stream, if not `embed`.
        scales: Of the embeddings and of the logits.
        plus_one: Whether the norm multiplies by 1 + weight.
        cap: Soft cap of the logits.
        unused: See `Definition`.
        wide: See `Definition`.
    """
    vocab, first = config.size("vocab_size"), {"scale": scales[0]} if scales[0] != 1 else {}
    head = embeddings if config.flag("tie_word_embeddings", tied) else "lm_head.weight"
    d = config.size("hidden_size") if width is None else width
    return Definition(
        vocab,
        layer(embedding, {"weight": embeddings}, vocab=vocab, width=d, **first),
        tuple(layers),
        layer(
            rms_head,
            {"norm": norm, "weight": head},
            vocab=vocab,
            eps=eps,
            plus_one=plus_one,
            scale=scales[1],
            cap=cap,
        ),
        unused=("rotary_emb.inv_freq", *unused),
        wide=wide,
    )
