r"""SSD mixers: Mamba2Simple (arXiv:2405.21060), SSD and SSD_LTI of the paper's follow-up.

SSD is Mamba-2 without gate and norm. SSD_LTI has a transition that is constant in time,
:math:`e^{-\mathrm{softplus}(A)}` with a step of one, and a step that only scales b_t.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core import System
from dsfjax.interop import weights as w
from dsfjax.interop.source import Recipe, Source, only
from dsfjax.interop.weights import Shapes, Weights
from dsfjax.nn import Surrounding
from dsfjax.systems import Architecture
from dsfjax.systems.primitives import divide

SIMPLE = "mamba_ssm.modules.mamba2_simple.Mamba2Simple"
FOLLOW_UP = "models.mamba"
_UNLIMITED = (0.0, math.inf)


def _mamba2_simple(
    *,
    d_model: int,
    d_state: int = 64,
    d_conv: int = 4,
    expand: int = 2,
    headdim: int = 128,
    ngroups: int = 1,
    activation: str = "swish",
    bias: bool = False,
    conv_bias: bool = True,
    dt_limit: tuple[float, float] = _UNLIMITED,
    learnable_init_states: bool = False,
) -> Recipe:
    only(SIMPLE, "activation", activation, "swish", "silu")
    _check(SIMPLE, bias, dt_limit, learnable_init_states)
    width = expand * d_model
    heads = divide(SIMPLE, width, headdim, "expand · d_model")
    packed = {"z": width, "v": width, "b": ngroups * d_state, "c": ngroups * d_state, "dt": heads}
    shapes = _shapes(d_model, packed, d_conv, conv_bias) | {"norm.weight": (width,)}

    def params(weights: Weights) -> dict[str, Any]:
        parts = w.rows(weights, "in_proj", packed)
        return _params(weights, parts, heads, ngroups) | {
            "gate": {"kernel": parts["z"]["weight"].T},
            "output_norm": {"scale": weights["norm.weight"]},
        }

    around = Surrounding(conv_width=d_conv, conv_on=("v", "b", "c"), gate="silu", output_norm=True)
    options = _options(d_state, heads, ngroups, width)
    return Recipe("ssd", options, around, d_model, shapes, params)


def _ssd(
    *,
    d_model: int,
    d_state: int = 64,
    d_conv: int = 4,
    expand: int = 1,
    headdim: int = 32,
    ngroups: int = 1,
    bias: bool = False,
    dt_limit: tuple[float, float] = _UNLIMITED,
    learnable_init_states: bool = False,
) -> Recipe:
    _check(f"{FOLLOW_UP}.SSD", bias, dt_limit, learnable_init_states)
    width = expand * d_model
    heads = divide(f"{FOLLOW_UP}.SSD", width, headdim, "expand · d_model")
    packed = {"v": width, "b": ngroups * d_state, "c": ngroups * d_state, "dt": heads}
    shapes = _shapes(d_model, packed, d_conv, True)

    def params(weights: Weights) -> dict[str, Any]:
        return _params(weights, w.rows(weights, "in_proj", packed), heads, ngroups)

    options = _options(d_state, heads, ngroups, width)
    return Recipe("ssd", options, _around(d_conv), d_model, shapes, params)


def _ssd_lti(
    *,
    d_model: int,
    d_state: int = 64,
    d_conv: int = 4,
    expand: int = 1,
    headdim: int = 32,
    ngroups: int = 1,
    bias: bool = False,
    dt_limit: tuple[float, float] = _UNLIMITED,
    learnable_init_states: bool = False,
) -> Recipe:
    module = f"{FOLLOW_UP}.SSD_LTI"
    only(module, "ngroups", ngroups, 1)
    _check(module, bias, dt_limit, learnable_init_states)
    width = expand * d_model
    heads = divide(module, width, headdim, "expand · d_model")
    repeats = divide(module, d_state, heads, "d_state")
    packed = {"v": width, "b": d_state, "c": d_state, "dt": 1}
    shapes = _shapes(d_model, packed, d_conv, True)
    shapes |= {"A": (heads,), "dt_bias": (heads,), "D": (heads,)}
    del shapes["A_log"]

    def params(weights: Weights) -> dict[str, Any]:
        # Minus the log of the decay is softplus(A), and the architecture takes the log of that.
        mapped = {**weights, "A_log": jnp.log(jax.nn.softplus(weights["A"]))}
        parts = w.rows(mapped, "in_proj", packed)
        row = parts["dt"]["weight"]
        parts["dt"]["weight"] = jnp.broadcast_to(row, (heads, row.shape[1]))
        return _params(mapped, parts, heads, 1)

    def adapt(arch: Architecture) -> Architecture:
        def assemble(params: Any, signals: Any, **keywords: Any) -> System:
            steps = jnp.repeat(signals.delta, repeats, axis=1)[:, None, :]
            unit = jnp.ones((1, heads), signals.delta.dtype)
            return arch.assemble(
                params, signals._replace(b=steps * signals.b, delta=unit), **keywords
            )

        return arch._replace(assemble=assemble)

    options = _options(d_state, heads, 1, width)
    return Recipe("ssd", options, _around(d_conv), d_model, shapes, params, adapt)


def _check(module: str, bias: bool, dt_limit: Any, learnable_init_states: bool) -> None:
    only(module, "bias", bias, False)
    only(module, "dt_limit", tuple(dt_limit), _UNLIMITED)
    only(module, "learnable_init_states", learnable_init_states, False)


def _around(d_conv: int) -> Surrounding:
    return Surrounding(conv_width=d_conv, conv_on=("v", "b", "c") if d_conv else ())


def _options(d_state: int, heads: int, groups: int, width: int) -> dict[str, Any]:
    return {"d_state": d_state, "num_heads": heads, "num_groups": groups, "d_inner": width}


def _shapes(d_model: int, packed: dict[str, int], d_conv: int, conv_bias: bool) -> Shapes:
    heads, width = packed["dt"], packed["v"]
    shapes: Shapes = {"dt_bias": (heads,), "A_log": (heads,), "D": (heads,)}
    shapes |= w.linear_shapes("in_proj", d_model, sum(packed.values()), bias=False)
    if d_conv:
        convolved = width + packed["b"] + packed["c"]
        shapes |= w.conv_shapes("conv1d", convolved, d_conv, bias=conv_bias)
    return shapes | w.linear_shapes("out_proj", width, d_model, bias=False)


def _params(
    weights: Weights, parts: dict[str, dict[str, Array]], heads: int, groups: int
) -> dict[str, Any]:
    def unpacked(part: str, lead: int) -> Array:
        rows = parts[part]["weight"]
        return rows.reshape(lead, -1, rows.shape[-1])

    core = {
        "W_v": unpacked("v", heads),
        "W_b": unpacked("b", groups),
        "W_c": unpacked("c", groups),
        "W_dt": parts["dt"]["weight"],
        "bias_dt": weights["dt_bias"],
        "A_log": weights["A_log"],
        "D": weights["D"],
    }
    params: dict[str, Any] = {"core": core, "project_out": w.linear(weights, "out_proj")}
    return params | {"conv": w.conv(weights, "conv1d")} if "conv1d.weight" in weights else params


_INERT = ("A_init_range", "dt_min", "dt_max", "dt_init_floor", "chunk_size")
_INERT += ("layer_idx", "device", "dtype")

SOURCES = {
    SIMPLE: Source(_mamba2_simple, (*_INERT, "conv_init", "use_mem_eff_path")),
    f"{FOLLOW_UP}.SSD": Source(_ssd, _INERT),
    f"{FOLLOW_UP}.SSD_LTI": Source(_ssd_lti, _INERT),
}
