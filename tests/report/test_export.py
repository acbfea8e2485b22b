"""The CSV files hold the inputs, digit for digit."""

import csv
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dsfjax.aspects import Aspect, Layers
from dsfjax.aspects.eigenvalues import MODULUS_BINS
from dsfjax.aspects.memory_curves import half_life
from dsfjax.aspects.state_use import share_used
from dsfjax.report.export import write_data, write_findings
from tests.report.synthetic import LENGTH, MIXERS, PAIRS, STATES, comparison, diverged

WHOLE = comparison()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "data"
    names = write_data(WHOLE, path)
    assert sorted(names) == sorted(file.name for file in path.iterdir())
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def layers(mixer: str, aspect: str) -> Layers:
    found = next(e.findings for e in WHOLE.entries if e.mixer == mixer)
    assert found is not None
    return found[aspect]


def column(path: Path, mixer: str, layer: int, name: str) -> list[str]:
    own = [r for r in rows(path) if (r["mixer"], r["layer"]) == (mixer, str(layer))]
    return [row[name] for row in own]


def test_summary(folder: Path) -> None:
    found = rows(folder / "summary.csv")
    assert [row["mixer"] for row in found] == list(MIXERS)
    for row, entry in zip(found, WHOLE.entries, strict=True):
        assert float(row["accuracy_mean"]) == entry.score_mean
        assert float(row["accuracy_std"]) == entry.score_std
        assert float(row["learning_rate"]) == entry.learning_rate
        assert row["steps_to_90"] == ("" if entry.steps_to_90 is None else str(entry.steps_to_90))
        assert (int(row["num_params"]), row["grows"]) == (entry.num_params, str(entry.grows))
        assert entry.findings is not None
        assert float(row["half_life"]) == half_life(entry.findings["memory"])
        share = share_used(entry.findings["state_use"])
        assert row["share_used"] == ("" if share is None else str(share))


def test_rows_of_other_keys_are_refused_and_leave_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def own(layer: object) -> Iterator[dict[str, int]]:
        yield {"a": 1}
        yield {"a": 1, "b": 2}

    different = Aspect("eigenvalues", "", "", lambda *_: None, lambda x: x, files={"own": own})
    monkeypatch.setattr("dsfjax.report.export.registered", lambda: (different,))
    with pytest.raises(ValueError, match=r"own\.csv: .* layer, a, got one with .*layer, a, b"):
        write_findings(WHOLE.entries, {}, tmp_path)
    assert not (tmp_path / "own.csv").exists()


def test_curves_and_members(folder: Path) -> None:
    found = {
        (row["mixer"], int(row["seed"]), int(row["step"])): float(row["accuracy"])
        for row in rows(folder / "curves.csv")
    }
    expected = {
        (entry.mixer, curve.seed, int(step)): float(value)
        for entry in WHOLE.entries
        for curve in entry.curves
        for step, value in zip(curve.steps, curve.score, strict=True)
    }
    assert found == expected
    members = rows(folder / "members.csv")
    assert len(members) == 9 * len(MIXERS)
    final = {
        (r["mixer"], int(r["seed"])): float(r["accuracy"])
        for r in members
        if float(r["learning_rate"]) == 3e-3
    }
    assert final == {(m, s): value for (m, s, step), value in expected.items() if step == 1000}


def test_histograms(folder: Path) -> None:
    for i, layer in enumerate(layers("s6", "eigenvalues")):
        shares = column(folder / "moduli.csv", "s6", i + 1, "share")
        assert list(map(float, shares)) == layer.moduli.tolist()
        lows = column(folder / "moduli.csv", "s6", i + 1, "low")
        assert list(map(float, lows)) == MODULUS_BINS[:-1].tolist()
        shares = column(folder / "phases.csv", "s6", i + 1, "share")
        assert list(map(float, shares)) == layer.phases.tolist()


def test_memory_state_and_gradients(folder: Path) -> None:
    first = layers("ssd", "memory")[0]
    memory = folder / "memory.csv"
    expected = {
        "survival": first.survival,
        "state": first.state,
        "output": first.output,
        "predicted": first.predicted,
        "mean_age": first.mean_age,
    }
    for name, values in expected.items():
        assert values is not None
        assert list(map(float, column(memory, "ssd", 1, name))) == values.tolist()
    use = column(folder / "state_use.csv", "ssd", 1, "hankel_singular_value")
    assert list(map(float, use)) == layers("ssd", "state_use")[0].use.tolist()
    gradient = column(folder / "gradients.csv", "ssd", 1, "gradient_norm")
    assert list(map(float, gradient)) == layers("ssd", "stability")[0].gradient.tolist()


def test_without_a_finite_state_its_columns_are_empty(folder: Path) -> None:
    assert column(folder / "memory.csv", "softmax_attention", 1, "state") == [""] * LENGTH
    assert column(folder / "state_use.csv", "softmax_attention", 1, "index") == []
    assert len(column(folder / "state_use.csv", "qlstm", 2, "index")) == STATES
    (row,) = [
        r
        for r in rows(folder / "layers.csv")
        if (r["mixer"], r["layer"]) == ("softmax_attention", "2")
    ]
    assert (row["dimension"], row["correlation"]) == ("", "0.9")


def test_kernel(folder: Path) -> None:
    found = np.zeros((2, LENGTH, LENGTH))
    marked = set()
    for row in rows(folder / "phi_ssd.csv"):
        layer, t, s = int(row["layer"]) - 1, int(row["t"]), int(row["s"])
        found[layer, t, s] = float(row["phi"])
        if row["query_meets_value"] == "1":
            marked.add((t, s))
    np.testing.assert_array_equal(found, [layer.kernel for layer in layers("ssd", "phi")])
    assert marked == set(PAIRS)


def test_cost(folder: Path) -> None:
    found = [r for r in rows(folder / "cost.csv") if r["mixer"] == "s6"]
    assert [r["phase"] for r in found] == ["training", "prefill", "decode"]
    entry = next(e for e in WHOLE.entries if e.mixer == "s6")
    assert entry.cost.decode is not None
    assert float(found[2]["flops"]) == entry.cost.decode.flops


def test_a_mixer_without_findings_keeps_its_rows(tmp_path: Path) -> None:
    bad = dataclasses.replace(WHOLE, entries=(WHOLE.entries[0], diverged(WHOLE.entries[2])))
    names = write_data(bad, tmp_path)
    assert "phi_ssd.csv" not in names and "phi_softmax_attention.csv" in names
    summary = rows(tmp_path / "summary.csv")[1]
    assert (summary["mixer"], summary["num_diverged"], summary["half_life"]) == ("ssd", "9", "")
    assert {r["status"] for r in rows(tmp_path / "members.csv") if r["mixer"] == "ssd"} == {
        "diverged"
    }
    alone = dataclasses.replace(WHOLE, entries=(diverged(WHOLE.entries[2]),))
    assert write_data(alone, tmp_path / "alone") == [
        "summary.csv",
        "members.csv",
        "curves.csv",
        "cost.csv",
    ]
