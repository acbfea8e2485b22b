"""RWKV-4 by the names of transformers, RWKV-7 by those of flash-linear-attention.

arXiv:2305.13048 and 2503.14456.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax import ops
from dsfjax.core import l2norm
from dsfjax.core.dtypes import state_dtype
from dsfjax.interop.published.families.fla_models import read_training
from dsfjax.interop.published.naming import Definition, Stream, Weights, family, layer
from dsfjax.interop.published.parts import (
    ACTIVATIONS,
    embed,
    layer_norm,
    layer_norm_head,
    linear,
    normed,
)
from dsfjax.interop.published.running import Run
from dsfjax.interop.published.tensor_files import Config
from dsfjax.ops.rwkv import wkv

_LOWEST = -1e38
_LARGEST_RATE = 0.6065306597126334  # e^(−1/2), as the layer rounds it
_MIXED = ("r", "w", "k", "v", "a", "g")


def _mixture(w: Weights, name: str, x: Array, before: Array) -> Array:
    """μ x_t + (1 − μ) x_{t−1}."""
    share = w(f"time_mix_{name}", 1, 1, x.shape[1])[0, 0]
    return x * share + before * (1 - share)


def _rwkv4_attention(w: Weights, x: Array, run: Run, width: int) -> Array:
    before, d = run.before(x), x.shape[1]
    k, v, r = (
        linear(w.within(name), _mixture(w, name, x, before), width)
        for name in ("key", "value", "receptance")
    )
    decay, bonus = w("time_decay", width), w("time_first", width)
    # The state is kept in coordinates of the running maximum of what is in the exponents.
    lowest = jnp.full((width,), _LOWEST, state_dtype(x.dtype))
    system, log_scale = wkv(decay, bonus, k, run.recall("log_scale", lowest), reset=run.reset)
    run.leave("log_scale", log_scale)
    y = run.scan(system, v).astype(x.dtype)
    return linear(w.within("output"), jax.nn.sigmoid(r) * y, d)


def _rwkv4_mlp(w: Weights, x: Array, run: Run, inner: int) -> Array:
    before, d = run.before(x), x.shape[1]
    hidden = ACTIVATIONS["relu2"](linear(w.within("key"), _mixture(w, "key", x, before), inner))
    r = linear(w.within("receptance"), _mixture(w, "receptance", x, before), d)
    return jax.nn.sigmoid(r) * linear(w.within("value"), hidden, d)


def _rwkv4_layer(
    w: Weights,
    stream: Stream,
    run: Run,
    *,
    width: int,
    inner: int,
    eps: float,
    first: bool,
    halved: bool,
    divisor: float,
) -> Stream:
    """A layer of the stream as transformers runs it, halved after every so many layers.

    Args:
        w: Tensors.
        stream: The stream.
        run: The run.
        width: Channels of the recurrence.
        inner: Channels of the MLP.
        eps: ε of the norms.
        first: Whether a norm precedes the layer.
        halved: Whether the stream is to be halved before the layer.
        divisor: What the outputs of the layer are divided by.
    """
    x = stream["x"] * 0.5 if halved else stream["x"]
    x = normed(w.within("pre_ln"), x, eps) if first else x
    y = _rwkv4_attention(w.within("attention"), normed(w.within("ln1"), x, eps), run, width)
    x = x + y * (1 / divisor)
    y = _rwkv4_mlp(w.within("feed_forward"), normed(w.within("ln2"), x, eps), run, inner)
    return {"x": x + y * (1 / divisor)}


def _rwkv4_head(w: Weights, stream: Stream, run: Run, *, vocab: int, halved: bool) -> Stream:
    x = stream["x"] * 0.5 if halved else stream["x"]
    return layer_norm_head(w, {"x": x}, run, vocab=vocab, eps=1e-5)


@family("rwkv")
def rwkv4(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Definition:
    """RWKV-4 (arXiv:2305.13048); the final norm has an ε of 1e-5 whatever the config says."""
    del shapes
    d, vocab = config.size("hidden_size"), config.size("vocab_size")
    count = config.count("num_hidden_layers")
    config.ignore("context_length")
    every = config.size("rescale_every", 6, least=0) or count + 1
    own = {
        "width": config.size("attention_hidden_size", d),
        "inner": config.size("intermediate_size", 4 * d),
        "eps": config.positive("layer_norm_epsilon", 1e-5),
    }
    tied = config.flag("tie_word_embeddings", False)
    embeddings = "rwkv.embeddings.weight"
    return Definition(
        vocab,
        layer(embed, {"weight": embeddings}, vocab=vocab, width=d),
        tuple(
            layer(
                _rwkv4_layer,
                f"rwkv.blocks.{i}.",
                first=i == 0,
                halved=i > 0 and i % every == 0,
                divisor=2.0 ** (i // every),
                **own,
            )
            for i in range(count)
        ),
        layer(
            _rwkv4_head,
            {"norm.": "rwkv.ln_out.", "weight": embeddings if tied else "head.weight"},
            vocab=vocab,
            halved=count % every == 0,
        ),
    )


def _low_rank(
    w: Weights, name: str, x: Array, rank: int, out: int, inner: str | None, bias: bool = True
) -> Array:
    own = w.within(f"{name}_lora.lora")
    hidden = linear(own.within("0"), x, rank)
    if inner is not None:
        hidden = jnp.tanh(hidden) if inner == "tanh" else ACTIVATIONS[inner](hidden)
    return linear(own.within("2"), hidden, out, bias=bias)


def _rwkv7_attention(
    w: Weights,
    x: Array,
    run: Run,
    v_first: Array | None,
    *,
    heads: int,
    value: int,
    ranks: tuple[int, int, int, int],
    eps: float,
    fused: bool,
) -> tuple[Array, Array]:
    """RWKV-7, and what the next layers read as ``v_first``."""
    length, d = x.shape
    delta = run.before(x) - x
    shares = w("x_x", 6, d) if "x_x" in w else [w(f"x_{n}", 1, 1, d)[0, 0] for n in _MIXED]
    xr, xw, xk, xv, xa, xg = (x + delta * share for share in shares)
    r, k, v = (
        linear(w.within(f"{name}_proj"), mixed, out)
        for name, mixed, out in (("r", xr, d), ("k", xk, d), ("v", xv, value))
    )
    wide = state_dtype(x.dtype)
    raw = _low_rank(w, "w", xw, ranks[0], d, "tanh").astype(wide)
    log_a = -_LARGEST_RATE * jax.nn.sigmoid(raw)
    rate = jax.nn.sigmoid(_low_rank(w, "a", xa, ranks[1], d, None))
    gate = _low_rank(w, "g", xg, ranks[2], value, "sigmoid", bias=False)
    if v_first is None:
        v_first = v
    else:
        v = v + (v_first - v) * jax.nn.sigmoid(_low_rank(w, "v", xv, ranks[3], value, None))
    erased = (k * w("k_k", d)).reshape(length, heads, -1)
    erased = l2norm(erased) if fused else _unit(erased)
    k = k + k * (rate - 1) * w("k_a", d)
    r, k, v, log_a, rate = (part.reshape(length, heads, -1) for part in (r, k, v, log_a, rate))
    y = run.op(ops.chunk_rwkv7, r, log_a, k, v, -erased, erased * rate)
    names = ("g_norm.weight", "g_norm.bias")
    scale, shift = (w(name, value).reshape(heads, -1) for name in names)
    y = layer_norm(y.astype(wide), scale, shift, d // heads * eps)
    bonus = (r * k * w("r_k", heads, d // heads)).astype(wide).sum(axis=-1, keepdims=True)
    y = (y + bonus * v).reshape(length, value).astype(x.dtype) * gate
    return linear(w.within("o_proj"), y, d), v_first


def _unit(x: Array) -> Array:
    """Unit length, as ``torch.nn.functional.normalize`` has it."""
    wide = x.astype(state_dtype(x.dtype))
    squares = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
    norm = jnp.sqrt(jnp.maximum(squares, 1e-24))
    return (wide / norm).astype(x.dtype)


def _rwkv7_layer(
    w: Weights,
    stream: Stream,
    run: Run,
    *,
    first: bool,
    norm_first: bool,
    bias: bool,
    inner: int,
    activation: str,
    eps: float,
    heads: int,
    value: int,
    ranks: tuple[int, int, int, int],
    fused: bool,
) -> Stream:
    x = stream["x"]
    d = x.shape[1]
    x = normed(w.within("pre_norm"), x, eps, bias=bias) if first and norm_first else x
    y, v_first = _rwkv7_attention(
        w.within("attn"),
        normed(w.within("attn_norm"), x, eps, bias=bias),
        run,
        None if first else stream["v_first"],
        heads=heads,
        value=value,
        ranks=ranks,
        eps=eps,
        fused=fused,
    )
    x = x + y
    own, mixed = w.within("ffn"), normed(w.within("ffn_norm"), x, eps, bias=bias)
    mixed = mixed + (run.before(mixed) - mixed) * own("x_k", d)
    hidden = ACTIVATIONS[activation](linear(own.within("key"), mixed, inner))
    return {"x": x + linear(own.within("value"), hidden, d), "v_first": v_first}


def _rank(config: Config, shapes: Mapping[str, tuple[int, ...]], name: str, letter: str) -> int:
    """The rank of a map, from the config or, where it leaves that to the layer, from the file."""
    ending = f".attn.{letter}_lora.lora.0.weight"
    found = next((shape[0] for tensor, shape in shapes.items() if tensor.endswith(ending)), 1)
    return config.size(name, found)


@family("rwkv7")
def rwkv7(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Definition:
    """RWKV-7 (arXiv:2503.14456), whose layers read the values of the first one."""
    d, vocab = config.size("hidden_size"), config.size("vocab_size")
    count = config.count("num_hidden_layers")
    config.only("attn", None)
    read_training(config)
    by_size = config.given("head_dim")
    name = "head_dim" if by_size else "num_heads"
    found = config.divisor(name, "hidden_size", d)
    heads = d // found if by_size else found
    config.ignore("num_heads")
    inner = -(-int(config.scaled("hidden_ratio", "hidden_size", d, 4)) // 32) * 32
    own = {
        "heads": heads,
        "ranks": tuple(
            _rank(config, shapes, f"{name}_low_rank_dim", letter)
            for name, letter in (("decay", "w"), ("a", "a"), ("gate", "g"), ("v", "v"))
        ),
        "norm_first": config.flag("norm_first", True),
        "bias": config.flag("norm_bias", True),
        "inner": config.size("intermediate_size", inner),
        "activation": config.word("hidden_act", ("sqrelu", "relu", "silu", "swish"), "sqrelu"),
        "eps": config.positive("norm_eps", 1e-5),
        "fused": config.flag("fuse_norm", True),
    }
    given = config.get("value_dim")
    values = given if isinstance(given, list) else [given] * count
    if len(values) != count:
        expected = f"a number, or one for each layer ({count}, num_hidden_layers)"
        raise config.wrong("value_dim", expected, given)
    widths = [Config({"value_dim": x}, config.where).size("value_dim", d) for x in values]
    tied = config.flag("tie_word_embeddings", False)
    embeddings = "model.embeddings.weight"
    return Definition(
        vocab,
        layer(embed, {"weight": embeddings}, vocab=vocab, width=d),
        tuple(
            layer(_rwkv7_layer, f"model.layers.{i}.", first=i == 0, value=widths[i], **own)
            for i in range(count)
        ),
        layer(
            layer_norm_head,
            {"norm.": "model.norm.", "weight": embeddings if tied else "lm_head.weight"},
            vocab=vocab,
            eps=own["eps"],
            bias=own["bias"],
        ),
    )
