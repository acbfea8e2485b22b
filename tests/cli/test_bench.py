"""`dsfjax bench` and `dsfjax selfcheck` from the words to what they leave."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsfjax.cli import main
from dsfjax.engines import ENGINES
from dsfjax.selfcheck import STRUCTURES, check
from tests.engine_runs import Altered

OF_DENSE = ["sequential", "associative", "checkpointed", "materialized"]


def test_bench_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = "bench --quick --cases dense --no-baselines --repeats 1 --precision bfloat16 --out"
    assert main([*words.split(), str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "\x1b" not in out
    for text in (
        "contestants, bfloat16",
        "dense",
        "associative",
        "materialized",
        "value error, the worst",
        "cores",
    ):
        assert text in out
    data = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert [row["contestant"] for row in data["rows"]] == OF_DENSE
    assert (data["quick"], data["repeats"], data["growth"]) == (True, 1, [])
    assert data["precision"] == "bfloat16"
    assert all(1e-4 < row["value_error"] < 2**-6 for row in data["rows"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("bench --cases sdd", "unknown case 'sdd'; did you mean 'ssd'?"),
        ("bench --precision float31", "unknown precision 'float31'; did you mean 'float32'?"),
        ("bench --precision tf32 --quick", "got tf32: no TF32 on this device (cpu)"),
        ("bench --repeats 0", "expected --repeats >= 1, got 0"),
        ("selfcheck --precision tf32", "nothing to check in tf32: no TF32 on this device (cpu)"),
        ("selfcheck --precision float31", "unknown precision 'float31'; did you mean 'float32'?"),
    ],
)
def test_refused(words: str, message: str, capsys: pytest.CaptureFixture) -> None:
    assert main(words.split()) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("as_json", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_selfcheck_exit_code(
    as_json: bool,
    monkeypatch: pytest.MonkeyPatch,
    replace_engine: Callable[[str, Any], None],
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(check, "STRUCTURES", {"dense": STRUCTURES["dense"]})
    monkeypatch.setattr("dsfjax.ops.names", tuple)
    words = ["selfcheck", "--precision", "float64", "tf32", *(["--json"] if as_json else [])]
    assert main(words) == 0
    good = capsys.readouterr().out

    def off(run, recurrence, h0):
        out, h = run(recurrence, h0)
        return out * 1.01, h

    replace_engine("associative", Altered(ENGINES["associative"], off))
    assert main(words) == 1
    bad = capsys.readouterr().out
    if as_json:
        good, bad = json.loads(good), json.loads(bad)
        assert (good["ok"], bad["ok"]) == (True, False)
        assert [c["method"] for c in bad["checks"] if not c["ok"]] == ["associative"]
        assert bad["precisions"] == {"float64": [1e-12, 1e-11]}
    else:
        count = len(OF_DENSE)
        assert f"all {count} within" in good
        assert f"1 of {count} off" in bad
        assert "tf32: no TF32 on this device (cpu)" in good
        line, reason = (x for x in bad.splitlines() if "associative" in x)
        assert line.rstrip().endswith("no")
        # One per cent of the recurrence's outputs, to which the skip is added as it is.
        assert reason == "dense, associative, float64: value error 9.8e-03, allowed 1.0e-12"
