r"""Blocks of the follow-up: one LayerNorm, a mixer, and a map over channels.

TransformerBlock, with the *same* norm twice:
:math:`r = x + \mathrm{att}(\mathrm{norm}\, x)`, :math:`y = f(\mathrm{norm}\, r)`, output
:math:`r + y`, or y alone where f is the identity; with a gate, times silu(W_z x).
MambaBlock: :math:`x + \mathrm{GLU}(\mathrm{gelu}(\mathrm{SSD}(\mathrm{norm}\, x)))`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jax import Array

from dsfjax import nn
from dsfjax.interop import attention_modules, mamba2
from dsfjax.interop import weights as w
from dsfjax.interop.source import Function, Recipe, Source, construct, only
from dsfjax.interop.weights import Shapes, Weights
from dsfjax.nn.pieces import ACTIVATIONS
from dsfjax.nn.pieces import norm as norm_module
from dsfjax.systems.primitives import affine

TRANSFORMER = "models.transformer.TransformerBlock"
MAMBA = "models.mamba.MambaBlock"

_ATTENTION = {
    "sm-attention": (attention_modules.FOLLOW_UP_MHA, {"lin_att": False}),
    "lin-attention": (attention_modules.FOLLOW_UP_MHA, {"lin_att": True}),
    "norm-attention": (attention_modules.FOLLOW_UP_MHNA, {}),
}
# Keys that an attention reads from the block's configuration; the rest is not for it.
_READS = {
    attention_modules.FOLLOW_UP_MHA: ("dim_conv", "conv_type"),
    attention_modules.FOLLOW_UP_MHNA: tuple(
        "mode norm_fn approx_fn scale_B offset dim_conv conv_type".split()
    ),
}
_REQUIRED = ("state_dim", "num_heads", "mixer", "norm", "attention_fn")
_INERT = ("att_dropout", "dropout", "use_flash", "offset_init", "learn_A")
_KEYS = {*_REQUIRED, *_INERT, "mixer_dim", "use_gate"}.union(*_READS.values())


def _transformer_block(*, hidden_dim: int, cfg: Mapping[str, Any]) -> Function:
    for key in cfg:
        only(TRANSFORMER, "key of cfg", key, *sorted(_KEYS))
    for key in _REQUIRED:
        if key not in cfg:
            raise TypeError(f"{TRANSFORMER}: missing key {key!r} of cfg.")
    only(TRANSFORMER, "attention_fn", cfg["attention_fn"], *_ATTENTION)
    only(TRANSFORMER, "mixer", cfg["mixer"], "mlp", "glu", "none")
    only(TRANSFORMER, "norm", cfg["norm"], "layer")
    module, own = _ATTENTION[cfg["attention_fn"]]
    own = own | {key: cfg[key] for key in _READS[module] if key in cfg}
    sizes = {"d_model": hidden_dim, "d_qk": cfg["state_dim"], "num_heads": cfg["num_heads"]}
    recipe: Recipe = construct(module, attention_modules.SOURCES[module], sizes | own)
    mixer, gated, channels = recipe.mixer(), cfg.get("use_gate", False), cfg["mixer"]

    shapes = w.prefixed("attention", recipe.shapes)
    if gated:
        shapes |= w.linear_shapes("Wz", hidden_dim, hidden_dim)
    if channels == "mlp":
        shapes |= w.linear_shapes("mixer.encoder", hidden_dim, cfg["mixer_dim"])
        shapes |= w.linear_shapes("mixer.decoder", cfg["mixer_dim"], hidden_dim)
    elif channels == "glu":
        shapes |= w.linear_shapes("mixer.linear", hidden_dim, 2 * hidden_dim)
    shapes |= w.norm_shapes("norm", hidden_dim)
    normalize, glu = _norm(hidden_dim), _glu(hidden_dim)

    def run(weights: Weights, x: Array) -> Array:
        r = x + mixer(w.under("attention", weights))(normalize(weights, x))[0]
        y = normalize(weights, r)
        if channels == "mlp":
            hidden = ACTIVATIONS["gelu"](_affine(weights, "mixer.encoder", y))
            y = r + _affine(weights, "mixer.decoder", hidden)
        elif channels == "glu":
            y = r + glu(weights, "mixer", y)
        return y * jax.nn.silu(_affine(weights, "Wz", x)) if gated else y

    return Function(shapes, run)


def _mamba_block(
    *,
    version: str,
    hidden_dim: int,
    state_dim: int,
    headdim: int,
    conv_dim: int,
    expansion: int,
    glu: bool,
    norm: str,
    prenorm: bool,
    pseudoLTI: bool,
) -> Function:
    only(MAMBA, "version", version, "mamba2")
    only(MAMBA, "norm", norm, "layer")
    module = f"{mamba2.FOLLOW_UP}.{'SSD_LTI' if pseudoLTI else 'SSD'}"
    sizes = {"d_model": hidden_dim, "d_state": state_dim, "headdim": headdim}
    own = sizes | {"d_conv": conv_dim, "expand": expansion}
    recipe: Recipe = construct(module, mamba2.SOURCES[module], own)
    mixer, normalize, gate = recipe.mixer(), _norm(hidden_dim), _glu(hidden_dim)

    shapes: Shapes = w.prefixed("mamba", recipe.shapes)
    if glu:
        shapes |= w.linear_shapes("glu.linear", hidden_dim, 2 * hidden_dim)
    shapes |= w.norm_shapes("norm", hidden_dim)

    def run(weights: Weights, x: Array) -> Array:
        y = normalize(weights, x) if prenorm else x
        y = ACTIVATIONS["gelu"](mixer(w.under("mamba", weights))(y)[0])
        y = x + (gate(weights, "glu", y) if glu else y)
        return y if prenorm else normalize(weights, y)

    return Function(shapes, run)


def _norm(width: int) -> Any:
    bound = nn.bind(lambda rngs: norm_module("layer", width, rngs=rngs))
    return lambda weights, x: bound(w.norm(weights, "norm"))(x)


def _glu(width: int) -> Any:
    bound = nn.bind(lambda rngs: nn.GLU(width, width, rngs=rngs))
    return lambda weights, name, x: bound({"linear": w.linear(weights, f"{name}.linear")})(x)


def _affine(weights: Weights, name: str, x: Array) -> Array:
    return affine(weights[f"{name}.weight"], x, weights[f"{name}.bias"])


SOURCES = {
    TRANSFORMER: Source(_transformer_block, ("layer_idx",)),
    MAMBA: Source(_mamba_block, ("dropout",)),
}
