"""The qLSTM of the paper's code (arXiv:2405.15731), with its convolution and its gate branch."""

from __future__ import annotations

from typing import Any

from dsfjax.interop import weights as w
from dsfjax.interop.source import Recipe, Source
from dsfjax.interop.weights import Shapes, Weights
from dsfjax.nn import Surrounding

MODULE = "zoology.mixers.lstm.qLSTM"


def _qlstm(
    *, d_model: int = 256, expansion_factor: int = 2, kernel_size: int = 4, reversed: bool = True
) -> Recipe:
    hidden = expansion_factor * d_model
    shapes: Shapes = {"alpha": ()}  # the plain one has it too, and never reads it
    shapes |= w.linear_shapes("input", d_model, 2 * hidden, bias=False)
    shapes |= w.conv_shapes("conv", hidden, kernel_size)
    shapes |= w.linear_shapes("gates", hidden, 3 * hidden)
    shapes |= w.linear_shapes("output", hidden, d_model, bias=False)

    def params(weights: Weights) -> dict[str, Any]:
        branches = w.rows(weights, "input", {"gate": hidden, "u": hidden})
        gates = w.rows(weights, "gates", {"f": hidden, "i": hidden, "o": hidden})
        core = {f"W_{name}": part["weight"] for name, part in gates.items()}
        core |= {f"bias_{name}": part["bias"] for name, part in gates.items()}
        if reversed:
            core["alpha"] = weights["alpha"]
        return {
            "core": core,
            "gate": {"kernel": branches["gate"]["weight"].T},
            "project_in": {"kernel": branches["u"]["weight"].T},
            "conv": w.conv(weights, "conv"),
            "project_out": w.linear(weights, "output"),
        }

    around = Surrounding(
        expand=expansion_factor,
        project_in=True,
        conv_width=kernel_size,
        conv_activation="identity",
        gate="gelu",
    )
    name = "qlstm_reversed" if reversed else "qlstm"
    return Recipe(name, {"value_map": False}, around, d_model, shapes, params)


SOURCES = {MODULE: Source(_qlstm, ("d_qk", "layer_idx"))}
