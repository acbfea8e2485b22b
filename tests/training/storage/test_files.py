"""Files whole or not at all, damage set aside, and folders with one owner at a time."""

import logging
import os
import signal
from pathlib import Path

import pytest

from dsfjax.training.storage import files
from tests.training.processes import start


def test_write_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    files.write_json(path, {"a": 1})
    files.write_json(path, {"a": 2})
    assert files.read_json(path) == {"a": 2}
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_failed_write_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="[Oo]ut of range float"):
        files.write_json(path, {"a": float("nan")})
    assert files.read_json(path) == {"a": 1}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors get their names here")
def test_what_is_written_is_synced_before_it_is_renamed_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    sync, rename = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    def replace(self: Path, target: Path) -> Path:
        events.append(f"rename to {target.name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    files.write_json(tmp_path / "a.json", {"a": 1})
    assert events == [f"a.json.{os.getpid()}.tmp", "rename to a.json", tmp_path.name]
    events.clear()
    files.append_lines(tmp_path / "b.jsonl", [{"a": 1}, {"a": 2}])
    files.append_lines(tmp_path / "b.jsonl", [{"a": 3}])
    assert events == ["b.jsonl", tmp_path.name, "b.jsonl"]
    assert (tmp_path / "b.jsonl").read_text() == '{"a": 1}\n{"a": 2}\n{"a": 3}\n'
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "d").write_text("x")
    events.clear()
    files.sync(tmp_path / "c")
    assert events == ["d", "c", tmp_path.name]


def test_only_temporary_files_of_ours_are_removed(tmp_path: Path) -> None:
    for name in ("thesis.tmp", "a.json.123.tmp"):
        (tmp_path / name).touch()
    with files.lock(tmp_path):
        assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "thesis.tmp"]


@pytest.mark.parametrize("folder", [False, True])
def test_set_aside_takes_the_place_of_the_last_one(
    folder: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for content in ("one", "two"):
        path = tmp_path / "x"
        if folder:
            path.mkdir()
            (path / "inner").write_text(content)
        else:
            path.write_text(content)
        with caplog.at_level(logging.WARNING, logger="dsfjax"):
            aside = files.set_aside(path, "it is bad")
    assert aside == tmp_path / "broken_x"
    assert (aside / "inner" if folder else aside).read_text() == "two"
    assert list(tmp_path.iterdir()) == [aside]
    assert caplog.text.count("x set aside as broken_x: it is bad") == 2
    assert files.is_ours(aside) and files.is_aside(aside)


def test_lock_is_for_one(tmp_path: Path) -> None:
    with files.lock(tmp_path / "run") as mine:
        assert mine
        with files.lock(tmp_path / "run", wait=False) as other:
            assert not other
        with files.lock(tmp_path / "another", wait=False) as free:
            assert free
    with files.lock(tmp_path / "run", wait=False) as again:
        assert again


def test_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib\n"
        "from dsfjax.training.storage import files\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "with files.lock(folder):\n"
        "    (folder / 'a.json.1.tmp').write_text('half')\n"
        "    print('locked', flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = start("-c", code, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    with files.lock(tmp_path, wait=False) as mine:
        assert not mine
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    with files.lock(tmp_path, wait=False) as mine:
        assert mine
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
