"""``dsfjax recommend`` from the words to the answer."""

import json

import pytest

from dsfjax.cli import recommend
from dsfjax.guidance import advice
from tests.cli.test_commands import run
from tests.guidance.results import evidence

KNOWN = [
    evidence("softmax_attention", 0.99),
    evidence("linear_attention", 0.8),
    evidence("of_another_package", 0.7),
]


def test_tables_and_json(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recommend, "shipped", lambda: KNOWN)
    words = ["recommend", "parity", "--length", 65536, "--demands", "recall,language"]
    words += ["--decode-memory", "1MB", "--budget", "2ktokens", "--d-model", 16]
    words += ["--num-layers", 1]
    found = json.loads(run(capsys, *words, "--json"))
    assert found["profile"]["demands"] == ["recall", "language"]
    assert (found["profile"]["length"], found["profile"]["vocab_size"]) == (65536, 3)
    assert found["order"] == ["linear_attention", "of_another_package", "softmax_attention"]
    cache, state = (found["prices"][m] for m in ("softmax_attention", "linear_attention"))
    assert cache["grows"] and cache["memory"] > 2 * 65536 * 16 * 4  # keys and values
    assert not state["grows"] and state["memory"] < 100_000 < 1_000_000 < cache["memory"]
    places = found["rankings"][0]["places"]
    assert [place["over"] for place in places] == [["memory", "tokens"], ["tokens"], ["tokens"]]
    assert found["rankings"][1]["places"] == []
    # The same in words, without counting again.
    prices = {mixer: advice.Price(**each) for mixer, each in found["prices"].items()}
    monkeypatch.setattr(advice, "price", lambda mixer, *_: prices[mixer])
    out = run(capsys, *words)
    assert out.splitlines()[0] == "Asked: recall and language, 65\u202f536 steps, vocabulary 3."
    line = next(line for line in out.splitlines() if "softmax_attention  " in line and "%" in line)
    assert "99.0 ± 1.0 % (top)" in line and "grows" in line and line.rstrip().endswith("tokens")
    assert "- None of these tasks has more than 64 steps; this extrapolates 1\u202f024×." in out
    assert "- Nothing was run that demands language" in out
    assert "Try linear_attention first." in out.splitlines()[-1]
    assert out.rstrip().endswith("For language there is no evidence.")
