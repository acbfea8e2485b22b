"""The table of results: whole rows, whoever writes, and made anew where it is damaged."""

import dataclasses
import shutil
import sqlite3
import zipfile
from pathlib import Path
from typing import Any

import jax
import pytest

from dsfjax.nn import ModelConfig
from dsfjax.tasks.mqar import MQARConfig
from dsfjax.training import Listener, MemberResult, RunError, TrainConfig, load, sweep, sweeps
from dsfjax.training.storage import files, store
from dsfjax.training.storage.record import in_result
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
    assert [row.status for row in rows] == ["finished", "finished", "diverged", "diverged"]
    for row, member, entry in zip(rows, run.members, run.result["members"], strict=True):
        assert row.columns() == MemberResult.from_columns(row.columns()).columns()
        assert list(row.columns()) == list(store.COLUMNS)
        # The folder of the run says the same, but for what only the sweep knows.
        assert set(row.timing) - set(member.timing) == {"finished_at"}
        assert dataclasses.replace(row, run=member.run, timing=member.timing) == member
        assert {"member": row.member, **row.point._asdict(), **in_result(row)} == entry
        own = [line for line in run.metrics if line["member"] == row.member]
        assert [line["eval_loss"] for line in row.metrics] == [x["eval_loss"] for x in own]
        assert row.config["model"]["d_model"] == 8
        assert row.timing["train_seconds"] == run.result["train_seconds"]
    assert [row.point for row in rows] == list(CONFIG.members)
    assert (rows[2].eval_loss, rows[2].score, rows[2].reason) == (None, 0.0, None)


def test_what_was_trained_before_is_read(tmp_path: Path) -> None:
    """A sweep as an earlier version left it, one whose metrics had two of the axes."""
    with zipfile.ZipFile(Path(__file__).parent / "sweep_of_before.zip") as archive:
        archive.extractall(tmp_path)
    with jax.enable_x64(False):  # it was trained in single precision
        rows, run = store.read_results(tmp_path), load(tmp_path / "one")
    assert run.config.fingerprint == run.result["config"]
    assert [row.point for row in rows] == list(run.config.members)
    assert [row.status for row in rows] == ["finished", "finished", "diverged", "diverged"]
    assert [
        dataclasses.replace(row, run=m.run, timing=m.timing)
        for row, m in zip(rows, run.members, strict=True)
    ] == list(run.members)
    before = files.read_json(tmp_path / "compare.json")
    assert sweep({"one": run.config}, tmp_path) == before  # it is finished: nothing is trained
    assert files.read_json(tmp_path / "compare.json") == before
    (tmp_path / store.NAME).unlink()
    store.add(tmp_path, "one")
    made = [
        dataclasses.replace(row, timing=m.timing)
        for row, m in zip(store.read_results(tmp_path), rows, strict=True)
    ]
    assert made == rows


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
    assert [row.run for row in rows] == ["one"] * 4 + ["two"] * 4
    assert rows[:4] == before
    assert [row.eval_loss for row in rows[4:]] == [row.eval_loss for row in before]


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


def begun(path: Path) -> None:
    """As earlier versions left it when they were killed before they made the table."""
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA application_id = {0x64736678}")
    connection.execute("PRAGMA user_version = 1")
    connection.close()


def empty(path: Path) -> None:
    """As a kill leaves it in the middle of the first transaction."""
    path.write_bytes(b"")


def test_damage_is_set_aside_and_made_good(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = store.read_results(folder)
    truncated(folder / store.NAME)
    content = (folder / store.NAME).read_bytes()
    with pytest.raises(ValueError, match="no store of results .* running the sweep again"):
        store.read_results(folder)
    assert (folder / store.NAME).read_bytes() == content
    store.check(folder)
    store.add(folder, "two")
    assert (folder / f"broken_{store.NAME}").read_bytes() == content
    assert "set aside as broken_results.sqlite" in caplog.text
    rows = store.read_results(folder)
    assert rows[:4] == expected
    assert [row.run for row in rows[4:]] == ["two"] * 4


@pytest.mark.parametrize("damage", [begun, empty])
def test_a_store_without_a_table_is_made_of_all_runs(damage, folder: Path) -> None:
    expected = store.read_results(folder)
    damage(folder / store.NAME)
    store.check(folder)
    assert store.read_results(folder)[:4] == expected  # what the folders of the runs say
    store.add(folder, "two")
    assert [p.name for p in folder.glob("broken_*")] == []
    rows = store.read_results(folder)
    assert rows[:4] == expected
    assert [row.run for row in rows[4:]] == ["two"] * 4


@pytest.mark.parametrize("damage", [no_database, of_another_program])
def test_a_file_of_another_program_is_left_alone(damage, folder: Path) -> None:
    damage(folder / store.NAME)
    content = (folder / store.NAME).read_bytes()
    for use in (
        store.check,
        store.read_results,
        lambda folder: store.add(folder, "two"),
        lambda folder: sweep({"three": CONFIG}, folder),
    ):
        with pytest.raises(RunError, match="nothing was changed: choose another run directory"):
            use(folder)
    assert (folder / store.NAME).read_bytes() == content
    assert not (folder / "three").exists()


def test_a_store_of_version_1_is_read_and_brought_up_to_date(folder: Path) -> None:
    """It had no reasons and only accuracies; a run whose folder is gone keeps its rows."""
    expected = store.read_results(folder)
    connection = sqlite3.connect(folder / store.NAME)
    for later in ("reason", "measured", "also"):
        connection.execute(f"ALTER TABLE members DROP COLUMN {later}")
    for split in ("train", "eval"):
        rename = f"RENAME COLUMN {split}_score TO {split}_accuracy"
        connection.execute(f"ALTER TABLE members {rename}")
    connection.execute("PRAGMA user_version = 1")
    connection.execute("UPDATE members SET timing = '{}'")  # in version 1 its rates were wrong
    connection.commit()
    connection.close()
    assert store.read_results(folder)[:4] == expected
    shutil.rmtree(folder / "one")
    old = store.read_results(folder)[:4]
    assert old == [dataclasses.replace(row, timing={}) for row in expected]
    assert old[0].eval_score is not None
    store.add(folder, "two")
    rows = store.read_results(folder)
    assert [row.run for row in rows] == ["one"] * 4 + ["two"] * 4
    assert rows[:4] == [dataclasses.replace(row, timing={}) for row in expected]


def test_a_result_of_format_2_gets_the_right_rate(folder: Path) -> None:
    path = folder / "one" / "result.json"
    expected = load(folder / "one").result["tokens_per_second"]
    result = files.read_json(path) | {"format": 2, "tokens_per_second": 1e9}
    files.write_json(path, result)
    assert load(folder / "one").result["tokens_per_second"] == expected


class Heard(Listener):
    """Remembers what failed."""

    def __init__(self) -> None:
        self.failures: list[tuple[str, str]] = []

    def failed(self, name: str, reason: str) -> None:
        self.failures.append((name, reason))


def test_a_program_that_fails_is_rows_and_the_sweep_continues(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = sweeps.train

    def no_memory(config: TrainConfig, path: Path, **keywords: Any) -> Any:
        if keywords["name"] == "bad":
            raise MemoryError("RESOURCE_EXHAUSTED: out of memory\nwith a long account of it")
        return train(config, path, **keywords)

    configs, heard = {"bad": CONFIG, "two": CONFIG}, Heard()
    with monkeypatch.context() as patch:
        patch.setattr(sweeps, "train", no_memory)
        rows = sweep(configs, folder, listener=heard)
    reason = "MemoryError: RESOURCE_EXHAUSTED: out of memory"
    assert [(row["mixer"], row["status"]) for row in rows] == [
        ("bad", "failed"),
        ("two", "finished"),
    ]
    assert rows[0]["reason"] == reason
    failed = [row for row in store.read_results(folder) if row.run == "bad"]
    assert [(row.status, row.reason) for row in failed] == [("failed", reason)] * 4
    assert [row.point.learning_rate for row in failed] == [1e-3, 1e-3, 1e300, 1e300]
    assert {row.eval_loss for row in failed} == {None}
    # The view has what is finished in this folder, whichever sweep it was of.
    view = files.read_json(folder / "compare.json")
    assert [row["mixer"] for row in view] == ["one", "two"]
    assert view[1] == rows[1]
    # Another sweep leaves it alone; asked for, it is run again.
    again = sweep(configs, folder, listener=heard)
    assert again == rows
    assert heard.failures == [("bad", reason)] * 2
    tried = sweep(configs, folder, listener=heard, retry_failed=True)
    assert [row["status"] for row in tried] == ["finished", "finished"]
    assert heard.failures == [("bad", reason)] * 2
    assert "failed" not in {row.status for row in store.read_results(folder)}
    assert not (folder / "bad" / "failure.json").exists()


def test_a_folder_of_another_run_is_refused_before_anything_is_trained(folder: Path) -> None:
    other = dataclasses.replace(CONFIG, seeds=(5,))
    with pytest.raises(RunError, match="another config"):
        sweep({"new": CONFIG, "one": other}, folder)
    assert not (folder / "new").exists()


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
        "from dsfjax.training.storage import store\n"
        "for name in sys.argv[2:]: store.add(pathlib.Path(sys.argv[1]), name)\n"
    )
    writers = [start("-c", code, folder, *names[i::3]) for i in range(3)]
    for writer in writers:
        out, err = writer.communicate(timeout=300)
        assert writer.returncode == 0, out + err
    rows = store.read_results(folder)
    assert [(row.run, row.member) for row in rows] == [
        (name, member) for name in sorted(["one", *names]) for member in range(4)
    ]
    for row in rows:
        assert row.metrics == rows[row.member].metrics
