"""The table of results: whole rows, whoever writes, and made anew where it is damaged."""

import shutil
import sqlite3
from pathlib import Path

import pytest

from dsfjax.nn import ModelConfig
from dsfjax.tasks.mqar import MQARConfig
from dsfjax.training import TrainConfig, load, store, sweep
from tests.training.processes import start

CONFIG = TrainConfig(
    MQARConfig(vocab_size=32, seq_len=16, num_kv_pairs=2),
    ModelConfig("linear_attention", vocab_size=32, d_model=8, num_layers=1, block="mamba"),
    batch_size=2,
    steps=4,
    eval_every=2,
    eval_examples=4,
    seeds=(0, 1),
    learning_rates=(1e-3, 1e300),
    weight_decays=(0.0,),
)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    sweep({"one": CONFIG}, folder)
    return folder


@pytest.fixture
def folder(swept: Path, tmp_path: Path) -> Path:
    """A copy to be damaged, with a second run."""
    shutil.copytree(swept, tmp_path / "sweep")
    shutil.copytree(tmp_path / "sweep" / "one", tmp_path / "sweep" / "two")
    return tmp_path / "sweep"


def test_a_row_per_member(swept: Path) -> None:
    rows, run = store.read_results(swept), load(swept / "one")
    assert [list(row) for row in rows] == [list(store.COLUMNS)] * 4
    for row, member in zip(rows, run.result["members"], strict=True):
        assert {name: row[name] for name in member} == member
        own = [line for line in run.metrics if line["member"] == member["member"]]
        assert [line["eval_loss"] for line in row["metrics"]] == [x["eval_loss"] for x in own]
        assert row["config"]["model"]["d_model"] == 8
        assert row["environment"] == run.environment
        assert row["num_params"] == run.result["num_params"]
        assert row["timing"]["train_seconds"] == run.result["train_seconds"]
    assert [row["status"] for row in rows] == ["finished", "finished", "diverged", "diverged"]
    assert [row["weight_decay"] for row in rows] == [0.0] * 4
    assert rows[2]["eval_loss"] is None


def test_any_client_reads_it(swept: Path) -> None:
    connection = sqlite3.connect(swept / store.NAME)
    query = "SELECT learning_rate, count(*) FROM members GROUP BY learning_rate ORDER BY 1"
    assert connection.execute(query).fetchall() == [(1e-3, 2), (1e300, 2)]
    connection.close()


def test_adding_again_replaces(folder: Path) -> None:
    before = store.read_results(folder)
    store.add(folder, "two")
    store.add(folder, "one")
    store.add(folder, "two")
    rows = store.read_results(folder)
    assert [row["run"] for row in rows] == ["one"] * 4 + ["two"] * 4
    assert rows[:4] == before
    assert [row["eval_loss"] for row in rows[4:]] == [row["eval_loss"] for row in before]


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


def no_database(path: Path) -> None:
    path.write_text("thesis, chapter one " * 50)


def of_another_program(path: Path) -> None:
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE members (name TEXT)")
    connection.commit()
    connection.close()


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncated, no_database, of_another_program, empty])
def test_damage_is_set_aside_and_made_good(
    damage, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = store.read_results(folder)
    damage(folder / store.NAME)
    content = (folder / store.NAME).read_bytes()
    with pytest.raises(ValueError, match="no store of results .* running the sweep again"):
        store.read_results(folder)
    assert (folder / store.NAME).read_bytes() == content
    store.add(folder, "two")
    assert (folder / f"broken_{store.NAME}").read_bytes() == content
    assert "set aside as broken_results.sqlite" in caplog.text
    rows = store.read_results(folder)
    assert rows[:4] == expected
    assert [row["run"] for row in rows[4:]] == ["two"] * 4


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found no results.sqlite"):
        store.read_results(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_many_writers(folder: Path) -> None:
    names = [f"run_{i}" for i in range(12)]
    for name in names:
        shutil.copytree(folder / "one", folder / name)
    code = (
        "import sys, pathlib\n"
        "from dsfjax.training import store\n"
        "for name in sys.argv[2:]: store.add(pathlib.Path(sys.argv[1]), name)\n"
    )
    writers = [start("-c", code, folder, *names[i::3]) for i in range(3)]
    for writer in writers:
        out, err = writer.communicate(timeout=300)
        assert writer.returncode == 0, out + err
    rows = store.read_results(folder)
    assert [(row["run"], row["member"]) for row in rows] == [
        (name, member) for name in sorted(["one", *names]) for member in range(4)
    ]
    for row in rows:
        assert row["metrics"] == rows[row["member"]]["metrics"]
