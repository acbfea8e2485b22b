"""Reference values of the functions of `dsfjax.ops`: which file is of which op, and how it is run.

``tests/golden`` holds one file per structure, named ``ops_<file>.npz``; with the environment
variables ``DSFJAX_GOLDEN_OPS`` and ``DSFJAX_GOLDEN`` the slow tests read whole folders.
"""

import functools
import inspect
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dsfjax
from dsfjax import ops
from dsfjax._util.errors import normwise
from dsfjax.ops import batch, mesa, preconditioned, rwkv, slots
from tests import goldens
from tests.engine_runs import COMPILE_FAST

COMMITTED = Path(__file__).parent / "golden"
FOLDERS = [Path(os.environ[x]) for x in ("DSFJAX_GOLDEN_OPS", "DSFJAX_GOLDEN") if x in os.environ]


@dataclass(frozen=True)
class Case:
    """The ops of a file; flags that they do not have; other names of arguments, axes, options."""

    ops: tuple[str, ...]
    drop: tuple[str, ...] = ()
    rename: tuple[tuple[str, str], ...] = ()
    heads_first: bool = False
    more: tuple[tuple[str, Any], ...] = ()


def _both(name: str, *drop: str) -> Case:
    return Case((f"chunk_{name}", f"fused_recurrent_{name}"), drop)


_L2 = "use_qk_l2norm_in_kernel"
_GLA = Case(("chunk_gla",), (_L2,), (("gk", "g"),))
CASES: dict[str, Case] = {
    "linear_attn_state": _both("linear_attn"),
    "linear_attn_normalize_state": _both("linear_attn"),
    "linear_attn_varlen": _both("linear_attn"),
    "linear_attn_normalize_varlen": _both("linear_attn"),
    "simple_gla_g_gamma": Case(("chunk_simple_gla",)),
    "simple_gla_varlen": Case(("chunk_simple_gla",), (_L2,)),
    "retention_state": Case(("chunk_retention",)),
    "lightning_attn": Case(("chunk_lightning_attn",)),
    "gla_varlen": _GLA,
    "gla_state": _GLA,
    "gla_gv": Case(("fused_recurrent_gla",)),
    "hgrn_state": _both("hgrn"),
    "hgrn_varlen": Case(("fused_recurrent_hgrn",)),
    "based": Case(("parallel_based",)),
    "based_nonorm": Case(("parallel_based",)),
    "rebased": Case(("parallel_rebased",)),
    "rebased_noscale": Case(("parallel_rebased",)),
    "delta_rule_varlen": Case(("chunk_delta_rule",)),
    **{
        f"gdn_{x}": _both("gated_delta_rule")
        for x in ("l2norm", "beta_sigmoid", "neg_eigval", "gate", "gva", "all", "varlen")
    },
    "gdn_varlen_all": _both("gated_delta_rule"),
    "gdn_gk_gv": Case(("fused_recurrent_gated_delta_rule",)),
    **{
        f"kda_{x}": _both("kda")
        for x in ("l2norm", "neg_eigval", "gate", "lower_bound", "lower_bound_noA", "gva", "all")
    },
    "kda_varlen": _both("kda"),
    "kda_varlen_all": _both("kda"),
    "gdn2": _both("gdn2"),
    "gdn2_gate_l2norm": _both("gdn2"),
    "comba": _both("comba"),
    "comba_l2norm_gva": _both("comba"),
    "dplr_delta_rule": Case(("chunk_dplr_delta_rule",)),
    "iplr_delta_rule": Case(("chunk_iplr_delta_rule",)),
    "gated_oja_rule": Case(("chunk_gated_oja_rule",)),
    "gated_oja_rule_l2norm_gva": Case(("chunk_gated_oja_rule",)),
    "momentum_delta_rule": Case(("chunk_momentum_delta_rule",), ("p_given",)),
    "momentum_delta_rule_plain": Case(("chunk_momentum_delta_rule",), ("p_given",)),
    "precond_gated_delta_rule": _both("precond_gated_delta_rule"),
    "precond_gated_delta_rule_gva": _both("precond_gated_delta_rule"),
    "precond_kda": _both("precond_kda", _L2),
    "mesa_net": Case(("chunk_mesa_net",)),
    "mesa_net_l2norm": Case(("chunk_mesa_net",)),
    "gsa": Case(("chunk_gsa",)),
    "gsa_nogate_gqa": Case(("chunk_gsa",)),
    "abc": Case(("chunk_abc",), ("scale",)),
    "rwkv4": Case(("fused_recurrent_rwkv4",)),
    "rwkv4_empty": Case(("fused_recurrent_rwkv4",)),
    "rwkv6_state": Case(("chunk_rwkv6",)),
    "rwkv6_varlen": Case(("chunk_rwkv6",)),
    "rwkv7": _both("rwkv7"),
    "rwkv7_varlen": _both("rwkv7"),
    "forgetting_attn": Case(("parallel_forgetting_attn",)),
    "forgetting_attn_gqa_window": Case(("parallel_forgetting_attn",)),
    "forgetting_attn_varlen": Case(("parallel_forgetting_attn",)),
    "attn": Case(("parallel_attn",)),
    "attn_gqa_window": Case(("parallel_attn",)),
    "attn_sink": Case(("parallel_attn",)),
    "attn_gqa_window_sink": Case(("parallel_attn",)),
    "attn_varlen_window_sink": Case(("parallel_attn",)),
    "path_attn": Case(("parallel_path_attn",)),
    "path_attn_gqa_g": Case(("parallel_path_attn",)),
    "path_attn_varlen": Case(("parallel_path_attn",)),
    "wall_attn": Case(("parallel_wall_attn",)),
    "fla_linear_attn": Case(("fused_recurrent_linear_attn",)),
    "fla_linear_attn_normalize": Case(("chunk_linear_attn",)),
    "fla_simple_gla": Case(("chunk_simple_gla",)),
    "fla_retention": Case(("chunk_retention", "parallel_retention"), heads_first=True),
    "fla_gla": Case(("chunk_gla",), rename=(("gk", "g"),)),
    "fla_hgrn": _both("hgrn"),
    "fla_delta_rule": Case(("chunk_delta_rule",), heads_first=True),
    "fla_gated_delta_rule": _both("gated_delta_rule"),
    "fla_gated_delta_product": Case(("chunk_gated_delta_product",), ("cu_seqlens",)),
    "fla_kda": _both("kda"),
    "fla_rwkv6": Case(("chunk_rwkv6",), rename=(("q", "r"),), heads_first=True),
    "fla_rwkv7_dplr": Case(
        ("chunk_dplr_delta_rule",),
        rename=(("alpha", "a"), ("beta", "b")),
        heads_first=True,
    ),
}
LONG = tuple(x for x in CASES if x.startswith("fla_") and x != "fla_gated_delta_product")
CASES.update({f"{x}_long": CASES[x] for x in LONG})


def path(name: str) -> Path | None:
    """Where the file of a case is, or None."""
    committed = [COMMITTED / f"{start}{name}.npz" for start in ("ops_", "")]
    paths = [*committed, *(folder / f"{name}.npz" for folder in FOLDERS)]
    return next((x for x in paths if x.exists()), None)


@functools.cache
def load(name: str) -> goldens.Golden:
    """The file of a case, its arrays named and laid out as the op has them."""
    found, case = path(name), CASES[name]
    assert found is not None, name
    with np.load(found, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    meta = json.loads(arrays.pop("meta").item())
    names, laid = dict(case.rename), {}
    for key, x in arrays.items():
        start, _, argument = key.partition(".")
        key = f"{start}.{names.get(argument, argument)}" if argument else key
        of_state = "state" in key or key.endswith(".u")
        laid[key] = x.swapaxes(1, 2) if case.heads_first and not of_state and x.ndim > 2 else x
    return goldens.Golden(name, meta, laid)


def arguments(file: goldens.Golden) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays of a file by argument, tuples for states of several, and its flags."""
    case, arrays = CASES[file.name], {}
    for key, x in file.group("in").items():
        name, _, part = key.partition(".")
        arrays[name] = (*arrays.get(name, ()), jnp.asarray(x)) if part else jnp.asarray(x)
    flags = {k: v for k, v in file.meta["kwargs"].items() if k not in case.drop}
    return arrays, {**flags, **dict(case.more)}


def errors(name: str, op_name: str, **options: Any) -> dict[str, float]:
    """Largest errors of outputs, states and gradients of an op next to its file.

    Gradients are those of the outputs, and where the file has them of outputs and states.
    """
    file = load(name)
    arrays, flags = arguments(file)
    static = {"cu_seqlens": np.asarray(arrays.pop("cu_seqlens"))} if "cu_seqlens" in arrays else {}
    op = getattr(ops, op_name)
    flags = _known(op, flags)
    cotangents = [x for key, x in file.items() if key.startswith("gs.")]

    def losses(arrays: Any) -> tuple[Any, Any]:
        found = op(**arrays, **static, **flags)
        o, *states = found if isinstance(found, tuple) else (found,)
        first, leaves = (o * file["g"]).sum(), jax.tree.leaves(states)
        second = sum((x * g).sum() for x, g in zip(leaves, cotangents, strict=False))
        return jnp.stack([first, first + second]) if cotangents else first[None], (o, leaves)

    def every(arrays: Any) -> Any:
        _, pull, found = jax.vjp(losses, arrays, has_aux=True)
        unit = jnp.eye(2 if cotangents else 1)
        return found, [pull(row)[0] for row in unit]

    (o, states), gradients = compiled(every, **options)(arrays)
    result = {"y": normwise(o, file["y"])}
    finals = [x for key, x in file.items() if key.startswith("final") and _is_state(key)]
    if states and finals:
        assert len(states) == len(finals), (len(states), len(finals))
        result["states"] = max(map(normwise, states, finals))
    for start, gradient in zip(("d", "ds"), gradients, strict=False):
        for key, expected in file.group(start).items():
            argument, _, part = key.partition(".")
            found = gradient[argument]
            if part:
                parts = [x for x in file.group("in") if x.startswith(f"{argument}.")]
                found = found[parts.index(key)]
            result[f"{start}.{key}"] = normwise(found, expected)
    return result


def _is_state(key: str) -> bool:
    # Of RWKV-4 the file also has what the state stands for.
    return not key.endswith((".num", ".den"))


def _known(op: Any, flags: dict[str, Any]) -> dict[str, Any]:
    """The flags of an op; one that it does not have must be off, or a matter of its peer alone."""
    known = inspect.signature(op).parameters
    for name, value in flags.items():
        assert name in known or value in (None, False), (op, name, value)
    return {name: value for name, value in flags.items() if name in known}


def compiled(function: Callable[..., Any], *, quick: bool = False) -> Callable[..., Any]:
    """The function, compiled without expensive passes if ``quick``."""
    return jax.jit(function, compiler_options=COMPILE_FAST if quick else None)


def step_by_step(monkeypatch: Any) -> None:
    """Let ops run by the sequential engine, which compiles in a tenth of the time."""
    scan = functools.partial(dsfjax.scan, method="sequential")
    for module in (batch, mesa, preconditioned, rwkv, slots):
        monkeypatch.setattr(module, "scan", scan)


STATES = ("initial_state", "initial_A_state", "h_kk_init", "h_kv_init", "state")


def per_op(argument: str | None = None) -> dict[str, str]:
    """A case for every op, if it has the argument: one of whole sequences, and a short one."""
    found: dict[str, str] = {}
    for name, case in CASES.items():
        for op in case.ops:
            has = argument is None or argument in inspect.signature(getattr(ops, op)).parameters
            if has and "varlen" not in name and not name.endswith("_long"):
                found.setdefault(op, name)
    return found


def inputs(name: str, op_name: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The arrays over time of a case, its states, and the rest."""
    arrays, flags = arguments(load(name))
    flags = _known(getattr(ops, op_name), flags)
    lead = jax.tree.leaves(arrays["k" if "k" in arrays else "x"])[0].shape[0]
    states = {key: arrays[key] for key in STATES if key in arrays}
    timed = {
        key: x
        for key, x in arrays.items()
        if key not in states and x.ndim > 2 and x.shape[0] == lead
    }
    rest = {key: x for key, x in arrays.items() if key not in states and key not in timed}
    return timed, states, {**rest, **flags}
