"""``dsfjax inspect`` and ``dsfjax analyze`` of published checkpoints."""

import csv
import json
import re
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import dsfjax
from dsfjax import aspects
from dsfjax.aspects import EIGENVALUES
from dsfjax.cli import main
from dsfjax.interop import published
from dsfjax.interop.published import inspect
from dsfjax.report import of_text
from tests.opened import HERE, WORDS, with_tokenizer


def test_inspect_says_what_it_is(capsys: pytest.CaptureFixture) -> None:
    assert main(["inspect", str(HERE / "mamba")]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "mamba, 2 layers, 11,880 parameters, vocabulary of 64" in out
    assert "22 tensors (22 F32) in 1 files" in out
    assert "384 = 1 · 8 · 48" in out and "0–1" in out
    assert main(["inspect", str(HERE / "llama")]) == 0
    assert "attention" in capsys.readouterr().out


def test_inspect_reads_no_weights(tmp_path: Path) -> None:
    """A file whose numbers are all wrong is inspected, and not opened."""
    folder = Path(shutil.copytree(HERE / "mamba", tmp_path / "mamba"))
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    file.write_bytes(whole[:start] + b"\xff" * (len(whole) - start))
    assert len(inspect(folder).systems) == 2
    with pytest.raises(ValueError, match="expected finite numbers"):
        dsfjax.open(folder)


@pytest.mark.slow
def test_analyze_names_the_tokens(
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_words = with_tokenizer(tmp_path / "worded")
    look = of_text.look
    some = (EIGENVALUES, aspects.PHI_MAPS)
    monkeypatch.setattr(of_text, "look", lambda *x, **own: look(*x, **own, looks=some))
    out = tmp_path / "page"
    text = tmp_path / "text.txt"
    text.write_text(" ".join(WORDS))
    words = ["analyze", str(with_words), "--text-file", str(text), "--report", str(out)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "worded: 2 layers looked into in" in said
    page = (out / "index.html").read_text()
    assert "$log$" in page and "dog" in page and "Layer by layer" in page
    with (out / "data" / "phi_worded.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["layer"] == "2"]
    model = dsfjax.open(with_words)
    ((system, _),) = model.systems(jnp.asarray(model.tokenizer.encode(" ".join(WORDS)).ids))[1]
    kernel = dsfjax.materialize(system)
    expected = np.sqrt(np.mean(np.square(np.asarray(kernel)), axis=(0, 1)))
    for row in rows:
        t, s = int(row["t"]), int(row["s"])
        np.testing.assert_allclose(float(row["phi"]), expected[t, s], rtol=1e-4, atol=1e-7)
    with (out / "data" / "mixers.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["layer"], second["layer"], first["state_size"]) == ("1", "2", "384")


@pytest.mark.slow
def test_analyze_reads_a_run_of_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Next to a published checkpoint, on the same ids."""
    run, page = tmp_path / "own", tmp_path / "page"
    words = ["--preset", "smoke", "--steps", "10", "--eval-every", "10", "--quick-compile"]
    assert main(["train", "mqar", *words, "--mixer", "ssd", "--run-dir", str(run)]) == 0
    look = of_text.look
    some = (EIGENVALUES,)
    monkeypatch.setattr(of_text, "look", lambda *x, **own: look(*x, **own, looks=some))
    words = ["analyze", str(run), str(HERE / "mamba"), "--ids", "3", "5", "3", "7", "--report"]
    assert main([*words, str(page), "--tokens", "3", "--stream"]) == 0
    out = capsys.readouterr().out
    assert out.count("looked into") == out.count("tokens 0 to 3: ") == 2
    assert out.count("tokens 3 to 4: ") == 2
    assert "Along the text" in (page / "index.html").read_text(encoding="utf-8")
    with (page / "data" / "along.csv").open() as file:
        assert {row["begin"] for row in csv.DictReader(file)} == {"0", "3"}
    with (page / "data" / "mixers.csv").open() as file:
        names = {row["model"] for row in csv.DictReader(file)}
    assert names == {"own", "mamba"}


@pytest.mark.slow
def test_reduce_says_what_it_costs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Losses of the model as it is, of layers alone and of all, as that of the file."""
    ids = "5 17 42 3 8 5 17".split()
    words = ["reduce", str(HERE / "mamba"), "--states", "3", "--ids", *ids]
    assert main([*words, "--out", str(tmp_path / "small")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "3 states per group of heads, on 7 tokens" in lines[0]
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines]
    found = {name: cells[-2:] for name, *cells in rows}
    for name, folder in (("nothing", HERE / "mamba"), ("2 layers together", tmp_path / "small")):
        model = dsfjax.open(folder)
        nats = float(published.mean_loss(model.logits(np.array(ids, int)), jnp.array(ids, int)))
        assert found[name] == [f"{nats:.4f}", f"{nats / np.log(2):.4f}"]
    assert {"layer 0", "layer 1"} <= set(found) and found["layer 0"] != found["nothing"]
    assert main([*words, "--layers", "1", "--out", str(tmp_path / "small")]) == 2
    assert "expected no such file" in capsys.readouterr().err


def test_reduce_refuses(capsys: pytest.CaptureFixture) -> None:
    words = ["reduce", str(HERE / "mamba"), "--ids", "3", "3", "4"]
    assert main([*words, "--states", "9"]) == 2
    assert "expected from 1 to 8 states, got 9" in capsys.readouterr().err
    assert main(["reduce", str(HERE / "mamba"), "--states", "2"]) == 2
    assert "one of --text, --text-file and --ids, got 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "one of --text, --text-file and --ids, got 0 of them"),
        ("--text a --ids 3 4", "got 2 of them"),
        ("--ids 3", "at least 2 tokens, got 1"),
        ("--ids 3 64", "token ids from 0 to 63, got 3 to 64"),
        ("--text word", "tokenizer.json: expected a tokenizer, found none"),
        ("--text-file /no/such/file", "expected a text in UTF-8"),
        ("--ids 3 4 --tokens 1", "--tokens of at least 2"),
        ("--stream", "one of --text, --text-file and --ids, got 0 of them"),
    ],
)
def test_analyze_refuses(
    words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    own = ["--report", str(tmp_path / "page")]
    assert main(["analyze", str(HERE / "mamba"), *words.split(), *own]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1
    assert not (tmp_path / "page").exists()


def test_inspect_refuses(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nothing"}))
    for folder, message in ((tmp_path, "unknown model_type"), (tmp_path / "no", "expected a file")):
        assert main(["inspect", str(folder)]) == 2
        assert message in capsys.readouterr().err


def test_two_runs_are_not_analyzed_at_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["analyze", str(tmp_path), str(tmp_path)]) == 2
    assert "expected one run, comparison or sweep, got 2 folders" in capsys.readouterr().err
