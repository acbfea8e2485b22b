"""Every op as it is called: random arguments by its annotations, and float64 on the host.

The arguments follow from what `dsfjax.ops` declares of an op, the axes of its arrays, so that an op
is checked as soon as it is registered, one of your own included. What an axis or a number means is
in its name.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dsfjax._util.ahead import quick_options
from dsfjax._util.errors import BOUNDS, normwise
from dsfjax.ops import Op
from dsfjax.selfcheck.found import Check
from dsfjax.selfcheck.programs import Program, as_arrays, float64_on_host, input_dtype, widened

LENGTH, TERMS = 70, 2  # no multiple of a chunk, and longer than the short ones
SIZES = {
    **{"B": 4, "T": LENGTH, "Tn": TERMS * LENGTH},
    **{"H": 2, "HV": 4, "HQ": 4, "G": 1},  # values and queries have more heads than keys
    **{"K": 4, "V": 3, "M": 3, "N": 4, "P": 3, "R": 2, "S": 1, "W": 2},
    **{"C": 6, "D": 6, "E": 22, "F": 14},  # H·P channels; with B, C and Δ of one group
}
"""Sizes of axes by name; one of another name has 3, and a number stands for itself."""

STATIC: dict[str, Any] = {
    "num_householder": TERMS,
    "layer_idx": 1,
    "num_layers": 4,
    "block_len": LENGTH // 7,
    "headdim": SIZES["P"],
    "q_norm_eps": 1e-5,
    "k_norm_eps": 1e-5,
    "output_final_state": True,
    "return_cache": True,
    "return_final_states": True,
    "return_last_state": True,
    "return_last_states": True,
    "return_state": True,
}
"""Arguments that are no arrays and are given, by name."""

# Log decays, rates of decays, and what must be positive; all else is normal.
NEGATIVE = ("g", "gk", "gv", "g_atk", "g_scalar", "log_alpha", "log_mu", "w", "A", "ADT")
POSITIVE = ("beta", "beta_atk", "eta", "lamb", "dt", "delta", "DT", "state", "prev_h_kk")
STATES = ("state", "conv_state", "prev_h_kk", "prev_h_kv")
"""Never rounded below float32."""

AXES = {
    "selective_scan_fn": {"B": "B N T", "C": "B N T"},
    "selective_state_update": {
        **{"state": "B D N", "x": "B D", "dt": "B D", "A": "D N", "B": "B N", "C": "B N"}
    },
    "mamba_split_conv1d_scan_combined": {"D": "H"},
    "chunk_cyfa": {"readout": "H 3 3"},  # an odd number
}
"""Axes of arguments that may have several shapes or not any size, which annotations do not say."""


def arguments(op: Op[..., Any], seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Random arguments of an op: what it cannot do without, and all that it reads over time.

    Args:
        op: The op.
        seed: Of the numbers.

    Returns:
        The arrays, in float64 or int32, and the other arguments, by name.

    Raises:
        ValueError: If it needs an argument whose axes are not annotated.
    """
    rng, found, static = np.random.default_rng(seed), {}, {}
    # A sum of weights that is divided by is to be positive.
    normalized = getattr(op.parameters.get("normalize"), "default", False) is True
    for name, x in op.parameters.items():
        needed, kind, axes = x.default is x.empty, *_axes(op, name)
        if name in STATIC and (needed or STATIC[name] is True or name == "headdim"):
            static[name] = STATIC[name]
        elif kind == "whole" and (needed or name == "segment_ids"):
            # Two documents: their numbers, or the place in each.
            steps = np.arange(LENGTH) % (LENGTH // 2 + 1)
            ids = steps if name.endswith("pos") else np.cumsum(steps == 0)
            found[name] = np.broadcast_to(ids, [_size(axis) for axis in axes]).astype(np.int32)
        elif kind == "real" and (needed or "T" in axes):
            x = _numbers(rng, name, [_size(axis) for axis in axes])
            found[name] = np.abs(x) if normalized and name in ("q", "k") else x
        elif needed:
            raise ValueError(
                f"{op.names[0]}: expected the axes of {name!r} in its annotation, as in "
                f'Float[Array, "B T H K"], got {x.annotation}; annotate it.'
            )
    return found, static


def _axes(op: Op[..., Any], name: str) -> tuple[str | None, tuple[str, ...]]:
    """Whether an argument is an array of real or of whole numbers, and the axes of it."""
    if given := AXES.get(op.names[0], {}).get(name):
        return "real", tuple(given.split())
    hint: Any = op.hints.get(name)
    for option in (hint, *typing.get_args(hint)):
        if isinstance(dims := getattr(option, "dim_str", None), str) and "..." not in dims:
            whole = all("int" in dtype for dtype in option.dtypes)
            return "whole" if whole else "real", tuple(dims.split())
    return None, ()


def _size(axis: str) -> int:
    return int(axis) if axis.isdigit() else SIZES.get(axis, 3)


def _numbers(rng: np.random.Generator, name: str, shape: list[int]) -> np.ndarray:
    """Small enough that no state grows over the steps."""
    x = 0.3 * rng.normal(size=shape)
    if name in NEGATIVE:
        return -np.abs(x)
    return 0.1 + np.abs(x) if name in POSITIVE else x


class Called:
    """One op with all its programs, lowered here, compiled elsewhere, run here."""

    def __init__(self, op: Op[..., Any], precisions: Sequence[str], seed: int) -> None:
        self.op, self.precisions = op, [x for x in precisions if x != "tf32"]
        exact, self._static = arguments(op, seed)
        self._inputs = {x: _rounded(exact, input_dtype(x)) for x in self.precisions}
        self._programs = {}
        for precision, inputs in self._inputs.items():
            with jax.enable_x64(precision == "float64"):
                self._programs[precision] = self._lowered(as_arrays(inputs))
        with float64_on_host():
            self._reference = self._lowered(widened(exact))

    def compile(self) -> Called:
        """The same, compiled."""
        for program in (self._reference, *self._programs.values()):
            program.compile(**quick_options())
        return self

    def checks(self) -> Iterator[Check]:
        """Of every precision."""
        for precision, program in self._programs.items():
            try:
                yield self._check(precision, program)
            except Exception as error:  # an op that raises is off; the others are still checked
                bad, reason = math.inf, f"{type(error).__name__}: {error}".splitlines()[0]
                yield Check(*self._named(precision), bad, bad, "", *BOUNDS[precision], reason)

    def _check(self, precision: str, program: Program) -> Check:
        inputs = self._inputs[precision]
        with float64_on_host():
            # As NumPy's, so that one program has ended before the next one begins.
            expected, slopes = jax.tree.map(np.asarray, self._reference(widened(inputs)))
        with jax.enable_x64(precision == "float64"):
            out, found = program(as_arrays(inputs))
        value = max(normwise(x, y) for x, y in zip(out, expected, strict=True))
        errors = {name: normwise(found[name], slopes[name]) for name in slopes}
        worst = max(errors, key=errors.__getitem__)
        return Check(*self._named(precision), value, errors[worst], worst, *BOUNDS[precision])

    def _named(self, precision: str) -> tuple[str, str, str]:
        return self.op.names[0], "auto", precision

    def _lowered(self, inputs: dict[str, Array]) -> Program:
        """Results and gradients to all arguments that are real, from random cotangents."""
        op, static = self.op, self._static

        @jax.jit
        def run(inputs: dict[str, Array]) -> tuple[list[Array], dict[str, Array]]:
            real = {k: x for k, x in inputs.items() if jnp.issubdtype(x.dtype, jnp.floating)}
            rest = {k: x for k, x in inputs.items() if k not in real}

            def results(real: dict[str, Array]) -> list[Array]:
                return jax.tree.leaves(op(**real, **rest, **static))

            out, pull = jax.vjp(results, real)
            bars = [
                jnp.asarray(np.random.default_rng(i).normal(size=x.shape), x.dtype)
                for i, x in enumerate(out)
            ]
            return out, pull(bars)[0]

        return Program(lambda: run.lower(inputs))


def _rounded(inputs: dict[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """The arguments in a dtype, states in float32 at least, whole numbers as they are."""
    state = dtype if dtype == "float64" else "float32"
    return {
        name: x.astype(jnp.dtype(state if name in STATES else dtype)) if x.dtype.kind == "f" else x
        for name, x in inputs.items()
    }
