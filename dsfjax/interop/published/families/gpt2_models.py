"""GPT-2: softmax attention with learned positions in every layer."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
from jax import Array

from dsfjax.core.rows import projected
from dsfjax.interop.published.naming import Definition, Stream, Weights, family, layer
from dsfjax.interop.published.parts import ACTIVATIONS, layer_norm_head, normed
from dsfjax.interop.published.running import Run
from dsfjax.interop.published.tensor_files import Config


def _embed(
    w: Weights, stream: Stream, run: Run, *, vocab: int, width: int, positions: int
) -> Stream:
    if run.reach > positions:
        raise ValueError(
            f"expected at most {positions} tokens, for so many positions were learned, got "
            f"{run.reach}."
        )
    learned = w("positions", positions, width)[jnp.maximum(run.positions, 0)]
    return {"x": w("tokens", vocab, width)[stream["ids"]] + learned}


def _affine(w: Weights, x: Array, out: int) -> Array:
    """The map x W + b, with W (in, out)."""
    return projected(x, w("weight", x.shape[-1], out)) + w("bias", out)


def _layer(
    w: Weights,
    stream: Stream,
    run: Run,
    *,
    heads: int,
    inner: int,
    eps: float,
    activation: str,
    scale: float,
) -> Stream:
    x = stream["x"]
    length, d = x.shape
    joint = _affine(w.within("attn.c_attn"), normed(w.within("ln_1"), x, eps), 3 * d)
    q, k, v = (part.reshape(length, heads, -1) for part in jnp.split(joint, 3, axis=1))
    y = run.attend(q, k, v, scale=scale).reshape(length, d).astype(x.dtype)
    x = x + _affine(w.within("attn.c_proj"), y, d)
    hidden = _affine(w.within("mlp.c_fc"), normed(w.within("ln_2"), x, eps), inner)
    return {"x": x + _affine(w.within("mlp.c_proj"), ACTIVATIONS[activation](hidden), d)}


@family("gpt2")
def gpt2(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Definition:
    """GPT-2, with or without the prefix ``transformer.`` in the file."""
    d, vocab = config.size("n_embd"), config.size("vocab_size")
    heads = config.divisor("n_head", "n_embd", d)
    positions, eps = config.size("n_positions", 1024), config.positive("layer_norm_epsilon", 1e-5)
    config.only("add_cross_attention", False)
    config.ignore("n_ctx", "reorder_and_upcast_attn")
    config.ignore(*(f"summary_{n}" for n in ("activation", "first_dropout", "proj_to_labels")))
    config.ignore("summary_type", "summary_use_proj")
    scaled = config.flag("scale_attn_weights", True)
    by_layer = config.flag("scale_attn_by_inverse_layer_idx", False)
    tied = config.flag("tie_word_embeddings", True)
    own = {
        "heads": heads,
        "inner": config.size("n_inner", 4 * d),
        "eps": eps,
        "activation": config.word(
            "activation_function",
            ("gelu_new", "gelu", "gelu_pytorch_tanh", "relu", "silu", "swish"),
            "gelu_new",
        ),
    }
    prefix = "transformer." if any(name.startswith("transformer.") for name in shapes) else ""
    scale = (d // heads) ** -0.5 if scaled else 1.0
    return Definition(
        vocab,
        layer(
            _embed,
            {"tokens": f"{prefix}wte.weight", "positions": f"{prefix}wpe.weight"},
            vocab=vocab,
            width=d,
            positions=positions,
        ),
        tuple(
            layer(_layer, f"{prefix}h.{i}.", scale=scale / (i + 1 if by_layer else 1), **own)
            for i in range(config.count("n_layer"))
        ),
        layer(
            layer_norm_head,
            {
                "norm.": f"{prefix}ln_f.",
                "weight": f"{prefix}wte.weight" if tied else "lm_head.weight",
            },
            vocab=vocab,
            eps=eps,
        ),
        unused=(".attn.bias", ".attn.masked_bias"),  # masks, which old files have
    )
