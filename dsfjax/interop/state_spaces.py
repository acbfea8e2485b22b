r"""LRU, S4, S5 and their layer in the code of the paper's follow-up, which is written in Flax.

Parameters have the names and layouts of Flax: a linear map is ``kernel (in, out)``, complex ones
are pairs (…, 2) of real and imaginary part, or complex (P and B of S4).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax import systems
from dsfjax.core.norms import layer_norm
from dsfjax.engines import scan
from dsfjax.interop.source import Function, Source, only
from dsfjax.interop.weights import Shapes, Weights
from dsfjax.nn.pieces import ACTIVATIONS
from dsfjax.systems.lru import Params as LRUParams
from dsfjax.systems.primitives import affine, divide
from dsfjax.systems.s4 import Params as S4Params
from dsfjax.systems.s4 import bilinear
from dsfjax.systems.s5 import Params as S5Params

LRU, S4, S5 = "models.lru.LRU", "models.s4.S4", "models.s5.S5SSM"
LAYER = "models.jax_layers.SequenceLayer(LRU)"
_ACTIVATIONS = ("full_glu", "half_glu1", "half_glu2", "gelu")
_FLAX_EPS = 1e-6


def _function(arch: systems.Architecture, shapes: Shapes, params: Any, **own: Any) -> Function:
    """A `Function` of one architecture with nothing around it, its parameters from the weights."""

    def system(weights: Weights, x: Array) -> tuple[Any, Array]:
        found = params(weights)
        signals = arch.signals(found, x)
        return arch.assemble(found, signals), arch.values(signals)

    def run(weights: Weights, x: Array) -> Array:
        return scan(*system(weights, x))[0]

    return Function(shapes, run, system, **own)


def _lru(*, d_model: int, d_state: int) -> Function:
    shapes: Shapes = {name: (d_state,) for name in ("nu_log", "theta_log", "gamma_log")}
    shapes |= {name: (d_state, d_model) for name in ("B_re", "B_im")}
    shapes |= {name: (d_model, d_state) for name in ("C_re", "C_im")} | {"D": (d_model,)}
    arch = systems.get("lru", d_model=d_model, d_state=d_state)
    return _function(arch, shapes, lambda weights: LRUParams(**weights))


def _s4(*, d_model: int, d_state: int, l_max: int) -> Function:
    """Its C is that of a kernel of l_max steps: C (I − Ā^l) of what reads the state."""
    several = ("Lambda_re", "Lambda_im", "P", "B")
    shapes: Shapes = {name: (d_state, d_model) for name in several}
    shapes |= {"C": (d_state, d_model, 2), "D": (1, d_model), "log_step": (1, d_model)}

    def params(weights: Weights) -> S4Params:
        own = {k: v[..., 0] if k == "C" else v for k, v in weights.items()}
        own = {k: v.T for k, v in own.items()}
        step, C = jnp.exp(own["log_step"]), jax.lax.complex(own["C"], weights["C"][..., 1].T)
        Lambda = jax.lax.complex(own["Lambda_re"], own["Lambda_im"])
        A = bilinear(Lambda, own["P"], own["B"], step)[0].matrix()[0]
        gap = jnp.eye(d_state, dtype=A.dtype)[None] - jnp.linalg.matrix_power(A, l_max)
        # A row vector times an inverse: the transposed matrix and a column.
        C = jnp.linalg.solve(gap.swapaxes(1, 2), C.conj()[..., None])[..., 0]
        pairs = {"P": own["P"], "B": own["B"], "C": C}
        parts = {f"{k}_re": v.real for k, v in pairs.items()}
        parts |= {f"{k}_im": v.imag for k, v in pairs.items()}
        own = {k: own[k] for k in ("Lambda_re", "Lambda_im")} | parts
        return S4Params(**own, log_step=weights["log_step"][0], D=weights["D"][0])

    arch = systems.get("s4", d_model=d_model, d_state=d_state)
    return _function(arch, shapes, params, complex_weights=("P", "B"))


def _s5(
    *,
    d_model: int,
    d_state: int,
    discretization: str = "zoh",
    conj_sym: bool = True,
    clip_eigs: bool = False,
    bidirectional: bool = False,
) -> Function:
    only(S5, "discretization", discretization, "zoh", "bilinear")
    n = divide(S5, d_state, 2, "d_state") if conj_sym else d_state
    outputs = ("C1", "C2") if bidirectional else ("C",)
    shapes: Shapes = {name: (n,) for name in ("Lambda_re", "Lambda_im")}
    shapes |= {"B": (n, d_model, 2), "log_step": (n, 1), "D": (d_model,)}
    shapes |= {name: (d_model, n, 2) for name in outputs}
    own = {"d_state": n, "conjugate_pairs": conj_sym, "clip": clip_eigs}
    arch = systems.get("s5", d_model=d_model, discretization=discretization, **own)

    def params(weights: Weights, C: str = "C") -> S5Params:
        parts = {}
        for name, pair in (("B", weights["B"]), ("C", weights[C])):
            parts |= {f"{name}_re": pair[..., 0], f"{name}_im": pair[..., 1]}
        own = {name: weights[name] for name in ("Lambda_re", "Lambda_im", "D")}
        return S5Params(**own, **parts, log_step=weights["log_step"][:, 0])

    def both_ways(weights: Weights, x: Array) -> Array:
        forward, backward = (params(weights, C) for C in outputs)
        # The token itself is added once.
        backward = backward._replace(D=jnp.zeros_like(backward.D))
        found = [arch.system(p, x) for p in (forward, backward)]
        return scan(found[0], x)[0] + scan(found[1], x, reverse=True)[0]

    return Function(shapes, both_ways) if bidirectional else _function(arch, shapes, params)


def _layer(
    *, d_model: int, d_state: int, activation: str = "gelu", prenorm: bool = False, norm: str
) -> Function:
    only(LAYER, "activation", activation, *_ACTIVATIONS)
    only(LAYER, "norm", norm, "layer")
    mixer = _lru(d_model=d_model, d_state=d_state)
    maps = {"full_glu": ("out1", "out2"), "gelu": ()}.get(activation, ("out2",))
    shapes: Shapes = {f"seq/{name}": shape for name, shape in mixer.shapes.items()}
    shapes |= {f"normalize/{name}": (d_model,) for name in ("scale", "bias")}
    for name in maps:
        shapes |= {f"{name}/kernel": (d_model, d_model), f"{name}/bias": (d_model,)}

    def run(weights: Weights, x: Array) -> Array:
        def linear(name: str, z: Array) -> Array:
            return affine(weights[f"{name}/kernel"].T, z, weights[f"{name}/bias"])

        def normalized(z: Array) -> Array:
            return layer_norm(z, weights["normalize/scale"], weights["normalize/bias"], _FLAX_EPS)

        own = {k.removeprefix("seq/"): v for k, v in weights.items() if k.startswith("seq/")}
        y = mixer.run(own, normalized(x) if prenorm else x)
        z = ACTIVATIONS["gelu_tanh"](y)
        if activation != "gelu":
            first = {"full_glu": lambda: linear("out1", z), "half_glu1": lambda: z}
            z = first.get(activation, lambda: y)() * jax.nn.sigmoid(linear("out2", z))
        return x + z if prenorm else normalized(x + z)

    return Function(shapes, run)


_LRU_INERT = ("r_min", "r_max", "max_phase")
_STEP_INERT = ("dt_min", "dt_max", "C_init")
_S4 = Source(_s4, _STEP_INERT)
_LAYER = Source(_layer, (*_LRU_INERT, "dropout", "training"))

SOURCES = {
    LRU: Source(_lru, _LRU_INERT),
    S4: _S4,
    "models.s4.S4 (DPLR, l_max = L)": _S4,  # as the reference values name it
    S5: Source(_s5, (*_STEP_INERT, "num_blocks")),
    LAYER: _LAYER,
}
