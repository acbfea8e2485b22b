"""RG-LRU and its recurrent block as in RecurrentGemma's PyTorch code (arXiv:2402.19427)."""

from __future__ import annotations

from typing import Any

from jax import Array

from dsfjax import nn, systems
from dsfjax.core import System
from dsfjax.engines import scan
from dsfjax.interop import weights as w
from dsfjax.interop.source import Function, Source
from dsfjax.interop.weights import Shapes, Weights
from dsfjax.systems.primitives import divide
from dsfjax.systems.rg_lru import Params

LAYER = "recurrentgemma.torch.layers.RGLRU"
BLOCK = "recurrentgemma.torch.modules.RecurrentBlock"


def _rglru(*, width: int, num_heads: int) -> Function:
    arch = systems.get("rg_lru", d_model=width, num_heads=num_heads)

    def system(weights: Weights, x: Array, segment_pos: Array) -> tuple[System, Array]:
        core = Params(**_core(weights, num_heads))
        # Where the positions say so, and only there, a document starts.
        built = arch.system(core, x, reset=segment_pos == 0, continued=True)
        assert isinstance(built, System)
        return built, x

    def run(weights: Weights, x: Array, segment_pos: Array) -> Array:
        return scan(*system(weights, x, segment_pos))[0]

    return Function(_shapes(width, num_heads), run, system, ("segment_pos",))


def _recurrent_block(
    *,
    width: int,
    num_heads: int,
    lru_width: int | None = None,
    conv1d_temporal_width: int = 4,
) -> Function:
    inner = width if lru_width is None else lru_width
    expand = divide(BLOCK, inner, width, "lru_width")
    shapes = w.linear_shapes("linear_y", width, inner) | w.linear_shapes("linear_x", width, inner)
    shapes |= w.linear_shapes("linear_out", inner, width)
    shapes |= {"conv_1d.w": (conv1d_temporal_width, inner), "conv_1d.b": (inner,)}
    shapes |= w.prefixed("rg_lru", _shapes(inner, num_heads))

    arch = systems.get("rg_lru", d_model=inner, num_heads=num_heads)
    around = nn.Surrounding(
        expand=expand,
        project_in=True,
        conv_width=conv1d_temporal_width,
        conv_activation="identity",
        gate="gelu_tanh",
        bias=True,
    )
    bound = nn.bind(lambda rngs: nn.Mixer(arch, width, around, rngs=rngs))

    def params(weights: Weights) -> dict[str, Any]:
        return {
            "core": _core(w.under("rg_lru", weights), num_heads),
            "gate": w.linear(weights, "linear_y"),
            "project_in": w.linear(weights, "linear_x"),
            "conv": {"kernel": weights["conv_1d.w"], "bias": weights["conv_1d.b"]},
            "project_out": w.linear(weights, "linear_out"),
        }

    def run(weights: Weights, x: Array, segment_pos: Array) -> Array:
        return bound(params(weights))(x, reset=segment_pos == 0)[0]

    def system(weights: Weights, x: Array, segment_pos: Array) -> tuple[Any, Array]:
        return bound(params(weights)).system(x, reset=segment_pos == 0)

    return Function(shapes, run, system, ("segment_pos",))


def _shapes(width: int, heads: int) -> Shapes:
    p = divide(LAYER, width, heads, "width")
    shapes: Shapes = {"a_param": (width,)}
    for gate in ("input_gate", "a_gate"):
        shapes |= {f"{gate}.w": (heads, p, p), f"{gate}.b": (heads, p)}
    return shapes


def _core(weights: Weights, heads: int) -> dict[str, Array]:
    return {
        "a_param": weights["a_param"].reshape(heads, -1),
        "W_r": weights["a_gate.w"].swapaxes(1, 2),  # the original has (H, p in, p out)
        "bias_r": weights["a_gate.b"],
        "W_i": weights["input_gate.w"].swapaxes(1, 2),
        "bias_i": weights["input_gate.b"],
    }


SOURCES = {
    LAYER: Source(_rglru, ("w_init_variance_scale", "device", "dtype")),
    BLOCK: Source(_recurrent_block, ("final_w_init_variance_scale", "device", "dtype")),
}
