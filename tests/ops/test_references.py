"""Every op next to the reference values of the original functions."""

import pytest

from tests import ops_runs
from tests.ops_runs import CASES

# One file per structure, committed, run by the engine that compiles fastest.
QUICK = (
    "linear_attn_normalize_varlen",
    "gla_gv",
    "gdn_varlen_all",
    "kda_gate",
    "gdn_gk_gv",
    "gated_oja_rule",
    "momentum_delta_rule",
    "precond_gated_delta_rule",
    "mesa_net",
    "gsa_nogate_gqa",
    "rwkv4",
    "rwkv6_varlen",
    "rwkv7",
    "attn_varlen_window_sink",
    "path_attn_gqa_g",
)
EVERY = [(name, op) for name, case in CASES.items() for op in case.ops]


def agree(found: dict[str, float]) -> None:
    print({key: f"{error:.1e}" for key, error in found.items()})
    bounds = {key: 1e-8 if key.startswith("d") else 1e-10 for key in found}
    assert not {key: error for key, error in found.items() if error > bounds[key]}
    assert "y" in found and len(found) > 2


@pytest.mark.parametrize("name", QUICK)
def test_values_states_and_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ops_runs.step_by_step(monkeypatch)
    agree(ops_runs.errors(name, CASES[name].ops[0], quick=True))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "op"), EVERY)
def test_every_file(name: str, op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if ops_runs.path(name) is None:
        pytest.skip("set DSFJAX_GOLDEN_OPS and DSFJAX_GOLDEN to the folders of the files")
    if op != CASES[name].ops[0]:  # the same System, by another order of arguments
        ops_runs.step_by_step(monkeypatch)
    agree(ops_runs.errors(name, op, quick=True))
