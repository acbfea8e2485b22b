"""mamba_ssm, causal-conv1d and mlstm_kernels: every op next to the reference values."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import ops
from dsfjax._util.errors import normwise
from tests import ops_runs
from tests.engine_runs import COMPILE_FAST

RENAMED = {"c": "c_initial", "n": "n_initial", "m": "m_initial"}
FINALS: dict[str, tuple[str, ...]] = {
    "mlstm": ("final_state.c", "final_state.n", "final_state.m"),
    "mamba3": ("final_state.angle", "final_state.ssm", "final_state.k", "final_state.v"),
}
QUICK = (
    "selective_scan_complex",
    "mamba_chunk_scan_combined_seq_idx",
    "selective_state_update_heads",
    "causal_conv1d_seq_idx",
    "causal_conv1d_update_circular",
    "mlstm_state",
    "mamba3_siso_states",
)
MORE = (
    "mamba3_mimo",
    "selective_scan_grouped",
    "selective_scan_ungrouped",
    "selective_scan_constant_BC",
    "selective_scan_complex_constant",
    "mamba_chunk_scan_combined",
    "mamba_chunk_scan_combined_states",
    "mamba_chunk_scan_combined_varlen_states",
    "selective_state_update",
    "causal_conv1d",
    "causal_conv1d_short",
    "causal_conv1d_states",
    "causal_conv1d_update",
    "mlstm",
    "mlstm_siging",
    "mamba3_siso",
    "mamba3_mimo_step_pairwise",
    "op_ssd_minimal_discrete",
)


def load(name: str) -> dict[str, Any]:
    path = ops_runs.path(name)
    if path is None:
        pytest.skip("set DSFJAX_GOLDEN_OPS and DSFJAX_GOLDEN to the folders of the files")
    with np.load(path, allow_pickle=False) as file:
        found: dict[str, Any] = {key: file[key] for key in file.files}
    found["meta"] = json.loads(found["meta"].item())
    return found


def name_of(name: str) -> str:
    """The op of a file: the longest whose name it begins with."""
    name = name.removeprefix("op_")
    special = {"mamba3_siso": "mamba3_siso_combined", "mamba3_mimo": "mamba3_mimo"}
    known = sorted([*ops.names(), *special], key=len, reverse=True)
    aliases = {"selective_scan": "selective_scan_fn", "causal_conv1d": "causal_conv1d_fn"}
    known = sorted([*known, *aliases], key=len, reverse=True)
    found = next(x for x in known if name.startswith(x))
    return {**special, **aliases}.get(found, found)


def errors(name: str) -> dict[str, float]:
    """Largest errors of outputs, states and gradients next to the file."""
    file = load(name)
    op = getattr(ops, name_of(name))
    kwargs = {
        k: tuple(map(float, v)) if k == "dt_limit" else v for k, v in file["meta"]["kwargs"].items()
    }
    if "rotary_dim_divisor" in kwargs:
        kwargs["rotate_pairwise"] = name.endswith("pairwise")
    arrays = {k.removeprefix("in."): jnp.asarray(x) for k, x in file.items() if k.startswith("in.")}
    whole = [k for k, x in arrays.items() if not jnp.issubdtype(x.dtype, jnp.inexact)]
    fixed: dict[str, Any] = {}
    for key in whole:
        x = arrays.pop(key)  # where sequences begin is known while tracing
        fixed[key] = np.asarray(x) if key == "cu_seqlens" else x

    def call(arrays: dict[str, Any]) -> tuple[Any, list[Any]]:
        given: dict[str, Any] = {}
        for key, x in arrays.items():
            start, _, part = key.partition(".")
            if not part:
                given[key] = x
            elif start == "initial_state":
                given[RENAMED[part]] = x
            else:
                given.setdefault(start, {})[part] = x
        if "Input_States" in given:
            angle, ssm, k, v = (given["Input_States"][part] for part in ("angle", "ssm", "k", "v"))
            k = k.swapaxes(1, 2) if "MIMO_V" in given else k
            given["Input_States"] = (angle, ssm, k, v)
        y, *states = jax.tree.leaves(op(**given, **fixed, **kwargs))
        if "MIMO_V" in given:  # the peer's layout of k, and v before its projection
            states[2] = states[2].swapaxes(1, 2)
            states[3] = states[3][:, :, None] * given["MIMO_V"][None]
        return y, states

    finals = FINALS.get(name.split("_")[0], ("final_state", "last_state", "varlen_states"))
    expected = [file[k] for k in finals if k in file]
    seeds = [(1.0, 0.0), (1.0, 1.0)] if "gs.final_state" in file else [(1.0, 0.0)]

    def every(arrays: dict[str, Any]) -> Any:
        def loss(arrays: dict[str, Any]) -> Any:
            y, states = call(arrays)
            second = (states[0] * file["gs.final_state"]).sum() if len(seeds) > 1 else 0.0
            return ((y * file["g"]).sum(), second), (y, states)

        _, pull, found = jax.vjp(loss, arrays, has_aux=True)
        return found, [pull(tuple(map(jnp.float64, seed)))[0] for seed in seeds]

    (y, states), gradients = jax.jit(every, compiler_options=COMPILE_FAST)(arrays)
    result = {"y": normwise(y, file["y"])}
    assert len(states) == len(expected)
    for i, (state, wanted) in enumerate(zip(states, expected, strict=True)):
        result[f"state {i}"] = normwise(state, wanted)
    for start, found in zip(("d", "ds"), gradients, strict=False):
        for key, x in found.items():
            result[f"{start}.{key}"] = normwise(x, file[f"{start}.{key}"])
    return result


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(x, marks=pytest.mark.slow) for x in MORE)])
def test_values_states_and_gradients(name: str) -> None:
    found = errors(name)
    print({key: f"{error:.1e}" for key, error in found.items()})
    bounds = {key: 1e-8 if key.startswith("d") else 1e-10 for key in found}
    assert not {key: error for key, error in found.items() if not error < bounds[key]}
    assert len(found) > 3
