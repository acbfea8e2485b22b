"""One program on the devices of two processes, which agree on everything and write once."""

import json
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest

from dsfjax.training import load, read_results, train
from dsfjax.training.devices import agree, is_primary, share
from tests.training.processes import start
from tests.training.small_config import CONFIG


def test_alone_it_is_a_plain_call() -> None:
    assert is_primary()
    assert agree(lambda: {"a": 1}) == {"a": 1}
    tree = {"a": np.ones(2)}
    assert share(tree, tree) is tree


def both(folder: Path, what: str = "sweep") -> list[dict]:
    """What two processes print at the end of their common work."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    words = ("-m", "tests.training.two_hosts")
    own = {"JAX_ENABLE_X64": "1"}
    pair = [start(*words, index, port, folder, what, devices=2, **own) for index in (0, 1)]
    said = []
    for process in pair:
        out, err = process.communicate(timeout=500)
        assert process.returncode == 0, out + err
        said.append(json.loads(out.splitlines()[-1]))
    return said


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    first, second = both(tmp_path / "sweep")
    assert first == second
    assert "no config.json: choose another" in first["refused"]
    alone = train(CONFIG, tmp_path / "alone")
    together = load(tmp_path / "sweep" / "one")
    assert (together.result["devices"], together.result["members_at_once"]) == (4, 4)
    for one, other in zip(alone["members"], together.result["members"], strict=True):
        np.testing.assert_allclose(one["eval_loss"], other["eval_loss"], rtol=1e-9)
    assert len(read_results(tmp_path / "sweep")) == 6
    # A sequence in four parts, two in each process.
    first, second = both(tmp_path / "cut", "cut")
    assert first["members"] == second["members"] and first["devices"] == 4
    for one, other in zip(alone["members"], first["members"], strict=True):
        np.testing.assert_allclose(one["eval_loss"], other["eval_loss"], rtol=1e-9)
    # Killed after the first checkpoint, both go on from there and end with the same bits.
    run = tmp_path / "again" / "one"
    shutil.copytree(tmp_path / "sweep", tmp_path / "again")
    (run / "result.json").unlink()
    shutil.rmtree(run / "checkpoints" / "step_00000004")
    both(tmp_path / "again")
    assert load(run).result["members"] == together.result["members"]
