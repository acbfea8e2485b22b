r"""Attention of two projects of the paper's authors.

``zoology.mixers.attention`` is the code of the paper (arXiv:2405.15731), ``models`` that of its
follow-up, which packs the projections, may convolve them, and changes the normaliser.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.interop import weights as w
from dsfjax.interop.source import Recipe, Source, only
from dsfjax.interop.weights import Shapes, Weights
from dsfjax.nn import Surrounding
from dsfjax.systems import Architecture
from dsfjax.systems.primitives import divide

ZOOLOGY = "zoology.mixers.attention"
FOLLOW_UP_MHA = "models.attention.MHA"
FOLLOW_UP_MHNA = "models.norm_attention.MHNA"

# log η of the follow-up: η = exp(f(n)), also where f is called "exp" or "softplus".
_LOG_ETA = {
    "exp": jnp.exp,
    "elu": jax.nn.elu,
    "softplus": jax.nn.softplus,
    "sigmoid": jax.nn.sigmoid,
}


def _mha(
    *,
    d_model: int,
    d_qk: int | None = None,
    num_heads: int = 1,
    bias: bool = True,
    lin_att: bool = True,
) -> Recipe:
    name = "linear_attention" if lin_att else "softmax_attention"
    return _zoology(f"{ZOOLOGY}.MHA", name, {}, d_model, d_qk, num_heads, bias)


def _mhna(
    *,
    d_model: int,
    d_qk: int | None = None,
    num_heads: int = 1,
    bias: bool = True,
    normalizer: str = "exp",
) -> Recipe:
    module, options = f"{ZOOLOGY}.MHNA", {"normalizer": normalizer}
    only(module, "normalizer", normalizer, "exp", "softplus", "sigmoid", "exp_relu")
    return _zoology(module, "normalized_attention", options, d_model, d_qk, num_heads, bias)


def _zoology(
    module: str,
    name: str,
    options: dict[str, Any],
    d_model: int,
    d_qk: int | None,
    heads: int,
    bias: bool,
) -> Recipe:
    features = d_model if d_qk is None else d_qk
    shapes = w.linear_shapes("Wqk", d_model, 2 * features, bias=bias)
    shapes |= w.linear_shapes("Wv", d_model, d_model, bias=bias)
    if name == "normalized_attention":
        shapes |= w.linear_shapes("Wn", d_model, heads, bias=bias)
    shapes |= w.linear_shapes("out_proj", d_model, d_model)

    def params(weights: Weights) -> dict[str, Any]:
        parts = w.rows(weights, "Wqk", {"q": features, "k": features})
        parts |= w.rows(weights, "Wv", {"v": d_model})
        if name == "normalized_attention":
            parts |= w.rows(weights, "Wn", {"eta": heads})
        return {"core": _core(parts, heads), "project_out": w.linear(weights, "out_proj")}

    own = {"d_state": divide(module, features, heads, "d_qk"), "num_heads": heads, "bias": bias}
    return Recipe(name, own | options, Surrounding(bias=True), d_model, shapes, params)


def _packed_mha(
    *,
    d_model: int,
    d_qk: int | None = None,
    num_heads: int = 1,
    dim_conv: int = 0,
    lin_att: bool = True,
    bias: bool = True,
    conv_type: str = "full",
) -> Recipe:
    name = "linear_attention" if lin_att else "softmax_attention"
    features = d_model if d_qk is None else d_qk
    sizes = {"q": features, "k": features, "v": d_model}
    options = {
        "d_state": divide(FOLLOW_UP_MHA, features, num_heads, "d_qk"),
        "num_heads": num_heads,
        "bias": bias,
    }
    around, shapes = _packed(FOLLOW_UP_MHA, "Wqkv", d_model, sizes, bias, dim_conv, conv_type)

    def params(weights: Weights) -> dict[str, Any]:
        core = _core(w.rows(weights, "Wqkv", sizes), num_heads)
        return {"core": core} | _surroundings(weights)

    return Recipe(name, options, around, d_model, shapes, params)


def _packed_mhna(
    *,
    d_model: int,
    d_qk: int | None = None,
    num_heads: int = 1,
    mode: str = "attention",
    norm_fn: str = "exp",
    approx_fn: str = "none",
    scale_B: bool = False,
    offset: bool = False,
    dim_conv: int = 0,
    bias: bool = True,
    conv_type: str = "full",
) -> Recipe:
    only(FOLLOW_UP_MHNA, "mode", mode, "attention")
    only(FOLLOW_UP_MHNA, "norm_fn", norm_fn, *_LOG_ETA)
    only(FOLLOW_UP_MHNA, "approx_fn", approx_fn, "none", "elu")
    features = d_model if d_qk is None else d_qk
    d_state = divide(FOLLOW_UP_MHNA, features, num_heads, "d_qk")
    sizes = {"v": d_model, "q": features, "k": features, "eta": num_heads}
    around, shapes = _packed(FOLLOW_UP_MHNA, "Wvqkn", d_model, sizes, bias, dim_conv, conv_type)
    if offset:
        shapes |= {"inner_attn.offset": (num_heads,)}

    def params(weights: Weights) -> dict[str, Any]:
        core = _core(w.rows(weights, "Wvqkn", sizes), num_heads)
        if offset:
            core["offset"] = weights["inner_attn.offset"]
        return {"core": core} | _surroundings(weights)

    def adapt(arch: Architecture) -> Architecture:
        def signals(params: Any, u: Array) -> Any:
            found = arch.signals(params, u)
            return found._replace(log_eta=_LOG_ETA[norm_fn](found.log_eta))

        return arch._replace(signals=signals)

    options = {
        "d_state": d_state,
        "num_heads": num_heads,
        "normalizer": "exp",  # so that the signal log η is n + offset
        "feature_map": "elu1" if approx_fn == "elu" else "none",
        "offset": offset,
        "scale": scale_B,
        "bias": bias,
    }
    return Recipe("normalized_attention", options, around, d_model, shapes, params, adapt)


def _packed(
    module: str,
    name: str,
    d_model: int,
    sizes: dict[str, int],
    bias: bool,
    dim_conv: int,
    conv_type: str,
) -> tuple[Surrounding, Shapes]:
    only(module, "conv_type", conv_type, "full", "partial")
    convolved = ("q", "k") if conv_type == "partial" else tuple(k for k in sizes if k != "eta")
    shapes = w.linear_shapes(name, d_model, sum(sizes.values()), bias=bias)
    shapes |= w.linear_shapes("out_proj", d_model, d_model)
    if dim_conv == 0:
        return Surrounding(bias=True), shapes
    shapes |= w.conv_shapes("conv1d", sum(sizes[k] for k in convolved), dim_conv)
    return Surrounding(conv_width=dim_conv, conv_on=convolved, bias=True), shapes


def _surroundings(weights: Weights) -> dict[str, Any]:
    params: dict[str, Any] = {"project_out": w.linear(weights, "out_proj")}
    return params | {"conv": w.conv(weights, "conv1d")} if "conv1d.weight" in weights else params


def _core(parts: Mapping[str, Mapping[str, Array]], heads: int) -> dict[str, Array]:
    """W_q, bias_q, … of the architectures, rows (h d) unpacked; η has one row per head."""
    core = {}
    for part, arrays in parts.items():
        rows = (heads,) if part == "eta" else (heads, -1)
        core[f"W_{part}"] = arrays["weight"].reshape(*rows, arrays["weight"].shape[-1])
        if "bias" in arrays:
            core[f"bias_{part}"] = arrays["bias"].reshape(rows)
        elif part == "eta":
            core["bias_eta"] = jnp.zeros_like(arrays["weight"][:, 0])
    return core


SOURCES = {
    f"{ZOOLOGY}.MHA": Source(_mha, ("dropout", "layer_idx")),
    # The original takes lin_att and never reads it.
    f"{ZOOLOGY}.MHNA": Source(_mhna, ("lin_att", "dropout", "layer_idx")),
    FOLLOW_UP_MHA: Source(_packed_mha, ("dropout", "use_flash", "layer_idx")),
    FOLLOW_UP_MHNA: Source(
        _packed_mhna, ("offset_init", "learn_A", "dropout", "use_flash", "layer_idx")
    ),
}
