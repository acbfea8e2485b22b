"""Many programs in one folder, by one process or by several at once."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from dsfjax.training import Listener, read_results, sweep, to_json
from dsfjax.training.storage import files
from tests.training.processes import start
from tests.training.small_config import CONFIG


class Order(Listener):
    """Remembers which runs began, and lets go of a lock when the first ends."""

    def __init__(self, held: contextlib.ExitStack) -> None:
        self.names: list[str] = []
        self._held = held

    def started(self, name: str, config: Any) -> None:
        self.names.append(name)

    def finished(self, name: str, result: dict[str, Any]) -> None:
        self._held.close()


def test_a_program_of_another_process_is_put_off(tmp_path: Path) -> None:
    with contextlib.ExitStack() as held:
        held.enter_context(files.lock(tmp_path / "first"))  # as if somebody were training there
        listener = Order(held)
        rows = sweep({"first": CONFIG, "second": CONFIG}, tmp_path, listener=listener)
    assert listener.names == ["second", "first"]
    assert [row["mixer"] for row in rows] == ["first", "second"]
    assert rows == json.loads((tmp_path / "compare.json").read_text())
    first, second = (
        [row.metrics[-1]["eval_loss"] for row in read_results(tmp_path) if row.run == name]
        for name in ("first", "second")
    )
    assert first == second


@pytest.mark.slow
def test_two_processes_share_the_programs(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from dsfjax.training import Listener, from_json, sweep\n"
        "class Say(Listener):\n"
        "    def compiled(self, name, where): print('ran', name)\n"
        "config = from_json(sys.argv[1])\n"
        "rows = sweep({name: config for name in 'abcdef'}, sys.argv[2], listener=Say())\n"
        "print('rows', [row['mixer'] for row in rows])\n"
    )
    pair = [start("-c", code, to_json(CONFIG), tmp_path) for _ in range(2)]
    said = []
    for process in pair:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
        said.append(out.splitlines())
    ran = [line.split()[1] for lines in said for line in lines if line.startswith("ran")]
    assert sorted(ran) == list("abcdef")  # each once, by whichever came first
    assert {lines[-1] for lines in said} == {f"rows {list('abcdef')}"}
    assert [row.run for row in read_results(tmp_path)] == [x for x in "abcdef" for _ in range(6)]
