r"""Mamba, S6 and S6_2 of the paper's code (arXiv:2405.15731), after Mamba (arXiv:2312.00752).

"S6" there is the selective scan alone, and "S6_2", behind the rows called SSD, the same with one
scalar A and one scalar step that only its bias makes different between channels.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.interop import weights as w
from dsfjax.interop.source import Recipe, Source, only
from dsfjax.interop.weights import Shapes, Weights
from dsfjax.nn import Surrounding

MODULE = "zoology.mixers.mamba"


def _mamba(
    *,
    d_model: int,
    d_state: int = 16,
    d_conv: int = 4,
    expand: int = 1,
    dt_rank: int | str = "auto",
    conv_bias: bool = True,
    bias: bool = False,
) -> Recipe:
    width, rank = expand * d_model, _rank(d_model, dt_rank)
    shapes = _scan_shapes(width, d_state, rank) | {"A_log": (width, d_state)}
    shapes |= w.linear_shapes("in_proj", d_model, 2 * width, bias=bias)
    shapes |= w.conv_shapes("conv1d", width, d_conv, bias=conv_bias)
    shapes |= w.linear_shapes("out_proj", width, d_model, bias=bias)

    def params(weights: Weights) -> dict[str, Any]:
        parts = w.rows(weights, "in_proj", {"u": width, "z": width})
        packed = {f"{part}.{kind}": x for part, by in parts.items() for kind, x in by.items()}
        return {
            "core": _core(weights, d_state, rank),
            "project_in": w.linear(packed, "u"),
            "gate": w.linear(packed, "z"),
            "conv": w.conv(weights, "conv1d"),
            "project_out": w.linear(weights, "out_proj"),
        }

    around = Surrounding(expand=expand, project_in=True, conv_width=d_conv, gate="silu", bias=bias)
    return Recipe("s6", {"d_state": d_state, "dt_rank": rank}, around, d_model, shapes, params)


def _s6(
    *,
    d_model: int,
    d_state: int = 16,
    expand: int = 1,
    dt_rank: int | str = "auto",
    bias: bool = False,
) -> Recipe:
    only(f"{MODULE}.S6", "expand", expand, 1)  # the original has no map into a wider scan
    rank = _rank(d_model, dt_rank)
    shapes = _scan_shapes(d_model, d_state, rank) | {"A_log": (d_model, d_state)}
    shapes |= w.linear_shapes("out_proj", d_model, d_model, bias=bias)

    def params(weights: Weights) -> dict[str, Any]:
        core = _core(weights, d_state, rank)
        return {"core": core, "project_out": w.linear(weights, "out_proj")}

    options = {"d_state": d_state, "dt_rank": rank}
    return Recipe("s6", options, Surrounding(bias=bias), d_model, shapes, params)


def _s6_2(*, d_model: int, d_state: int = 16, expand: int = 1, bias: bool = False) -> Recipe:
    only(f"{MODULE}.S6_2", "expand", expand, 1)
    shapes = _scan_shapes(d_model, d_state, 1) | {"Id": (d_model, d_state), "A_log": (1,)}
    shapes |= w.linear_shapes("out_proj", d_model, d_model, bias=bias)

    def params(weights: Weights) -> dict[str, Any]:
        core = _core(weights, d_state, 1)
        core["A_log"] = weights["A_log"] * jax.lax.stop_gradient(weights["Id"])
        core["W_dt_up"] = jnp.ones_like(weights["dt_proj.weight"])  # the original never reads it
        return {"core": core, "project_out": w.linear(weights, "out_proj")}

    options = {"d_state": d_state, "dt_rank": 1}
    return Recipe("s6", options, Surrounding(bias=bias), d_model, shapes, params)


def _rank(d_model: int, dt_rank: int | str) -> int:
    return math.ceil(d_model / 16) if dt_rank == "auto" else int(dt_rank)


def _scan_shapes(width: int, d_state: int, rank: int) -> Shapes:
    shapes: Shapes = {"D": (width,)}
    shapes |= w.linear_shapes("x_proj", width, rank + 2 * d_state, bias=False)
    return shapes | w.linear_shapes("dt_proj", rank, width)


def _core(weights: Weights, d_state: int, rank: int) -> dict[str, Array]:
    parts = w.rows(weights, "x_proj", {"W_dt_down": rank, "W_b": d_state, "W_c": d_state})
    return {name: part["weight"] for name, part in parts.items()} | {
        "W_dt_up": weights["dt_proj.weight"],
        "bias_dt": weights["dt_proj.bias"],
        "A_log": weights["A_log"],
        "D": weights["D"],
    }


_INERT = ("dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "use_fast_path")
_INERT += ("layer_idx", "device", "dtype")

SOURCES = {
    f"{MODULE}.Mamba": Source(_mamba, _INERT),
    f"{MODULE}.S6": Source(_s6, _INERT),
    # Its rank is 1 whatever dt_rank says.
    f"{MODULE}.S6_2": Source(_s6_2, (*_INERT, "dt_rank")),
}
