"""What published models are made of around their mixers: linear maps, norms, rotations, MLPs.

Weights have the layouts of the files: a linear map is ``weight (out, in)``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from dsfjax.core.dtypes import state_dtype
from dsfjax.interop.published.naming import Definition, Kind, Layer, Stream, Weights, layer
from dsfjax.interop.published.tensor_files import Config
from dsfjax.systems.primitives import rms_norm as rms_norm
from dsfjax.systems.primitives import rotary_frequencies
from dsfjax.systems.primitives import rotated as rotated

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
    y = x @ w("weight", out, x.shape[-1]).T
    return y + w("bias", out) if bias else y


def norm_then_gate(
    x: Array, gate: Array, weight: Array, eps: float, *, activation: str = "silu"
) -> Array:
    """RMS norm with a weight, times φ(gate); in float32 at least, of the dtype of the gate."""
    wide = state_dtype(x.dtype, gate.dtype)
    y = rms_norm(x.astype(wide), weight, eps) * ACTIVATIONS[activation](gate.astype(wide))
    return y.astype(gate.dtype)


def layer_norm(x: Array, weight: Array | None, bias: Array | None, eps: float) -> Array:
    """(x − mean) / √(var + ε), times the weight, plus the bias; moments in float32 at least."""
    wide = x.astype(state_dtype(x.dtype))
    centred = wide - wide.mean(axis=-1, keepdims=True)
    y = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)
    y = y if weight is None else y * weight.astype(y.dtype)
    return (y if bias is None else y + bias.astype(y.dtype)).astype(x.dtype)


def soft_cap(x: Array, cap: float | None) -> Array:
    """The cap c tanh(x / c), or x itself."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def frequencies(
    config: Config,
    head_dim: int,
    *,
    share: float = 1.0,
    kind: str | None = None,
    theta: float = 10000.0,
) -> tuple[float, ...]:
    """θ^(−2i/m) of rotary positions, from ``rope_parameters`` or the older names of a config.

    Args:
        config: The config.
        head_dim: Channels of a head.
        share: Of them that are rotated, where the config does not say (partial_rotary_factor).
        kind: The layer type whose parameters are meant, where the config has several.
        theta: θ where the config says nothing about it.

    Returns:
        The frequencies, in radians per step; none if the config switches positions off, by a θ of
        null.

    Raises:
        ValueError: For a ``rope_type`` that has no exact equivalent here.
    """
    given = config.get("rope_parameters")
    scaling = config.get("rope_scaling")
    base, older_share = config.get("rope_theta"), config.get("partial_rotary_factor")
    given = given if isinstance(given, dict) else {}
    if kind is not None and isinstance(given.get(kind), dict):
        given = given[kind]
    own = {"rope_theta": base, "partial_rotary_factor": older_share, **(scaling or {})}
    own |= {name: value for name, value in given.items() if value is not None}
    if "rope_theta" not in given and "rope_theta" not in config.values:
        own["rope_theta"] = theta
    rope = Config(own, f"{config.where}: rope_parameters")
    name = rope.get("rope_type") or rope.get("type") or "default"
    if own.get("rope_theta") is None:
        return ()
    base = rope.number("rope_theta")
    size = int(head_dim * rope.number("partial_rotary_factor", share))
    found = list(rotary_frequencies(size, base))
    if name == "linear":
        found = [f / rope.number("factor") for f in found]
    elif name == "llama3":
        found = [_in_bands(f, rope) for f in found]
    elif name != "default":
        raise ValueError(
            f"{rope.where}: rope_type: {name!r} has no exact equivalent here; expected 'default', "
            "'linear' or 'llama3'."
        )
    return tuple(found)


def _in_bands(frequency: float, rope: Config) -> float:
    """Llama 3's rescaling: long waves are stretched, short ones kept, those between mixed."""
    factor, original = rope.number("factor"), rope.number("original_max_position_embeddings")
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    turns = original * frequency / (2 * math.pi)
    if turns < low:
        return frequency / factor
    if turns > high:
        return frequency
    smooth = (turns - low) / (high - low)
    return (1 - smooth) * frequency / factor + smooth * frequency


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
    return {"x": x, "logits": x @ w("weight", vocab, x.shape[-1]).T}


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
    logits = x @ w("weight", vocab, x.shape[-1]).T
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
    )
