"""Progress on a terminal and in a pipe."""

import io
from typing import Any

import jax
from rich.console import Console

from dsfjax.cli.progress import LiveTable, PlainLines, best, outcome, progress
from dsfjax.tasks import MSE
from dsfjax.training import presets
from dsfjax.training.devices import layout

CONFIG = presets.configs("smoke", "mqar")["ssd"]
RESULT: dict[str, Any] = {
    "members": [{"status": "solved"}, {"status": "diverged"}, {"status": "solved"}],
    "steps": 8,
    "train_seconds": 1.25,
    "compile_seconds": 0.5,
    "tokens_per_second": 12345.6,
}


def line(
    accuracy: float | None, rate: float = 0.1, loss: float | None = 0.25, member: int = 0
) -> dict[str, Any]:
    return {
        "step": 4,
        "member": member,
        "learning_rate": rate,
        "seed": 1,
        "train_loss": loss,
        "eval_accuracy": accuracy,
        "eval_loss": loss,
        "seconds": 0.5,
        "tokens_per_second": 1000.0,
    }


LINES = [line(0.5), line(0.75, rate=0.2, member=1), line(None, loss=None, member=2)]


def drive(console: Console) -> type:
    with progress(console) as listener:
        listener.started("ssd", CONFIG)
        listener.compiling("ssd")
        listener.compiled("ssd", layout(4, jax.devices()[:1], at_most=2))
        listener.evaluated("ssd", LINES)
        listener.finished("ssd", RESULT)
        return type(listener)


def test_pipe_gets_plain_lines() -> None:
    file = io.StringIO()
    assert drive(Console(file=file, width=40)) is PlainLines
    assert file.getvalue().splitlines() == [
        "ssd: compiling 4 members as one program",
        "ssd: 4 members do not fit at once: 2 slices of 2 take turns",
        "ssd: step 4/24, loss 0.2500, accuracy 75.0 % (lr 0.2, seed 1), 0.5 s, 1,000 tokens/s",
        "ssd: 2 solved, 1 diverged after 8 steps; compiled in 0.5 s, trained in 1.2 s, "
        "12,346 tokens/s",
    ]


def test_memory_and_mfu_are_said_where_they_are_known() -> None:
    file = io.StringIO()
    with progress(Console(file=file)) as listener:
        listener.started("ssd", CONFIG)
        listener.compiling("ssd")
        known = {"memory_bytes": 3 * 2**29, "mfu": 0.4567}
        listener.evaluated("ssd", [line(0.5) | known])
        listener.finished("ssd", RESULT | known)
    said = file.getvalue().splitlines()
    assert said[1].endswith("0.5 s, 1,000 tokens/s, MFU 45.7 %, 1.5 GiB")
    assert said[2].endswith("12,346 tokens/s, MFU 45.7 %, 1.5 GiB")


def test_terminal_gets_bars() -> None:
    file = io.StringIO()
    console = Console(file=file, width=160, force_terminal=True)
    assert drive(console) is LiveTable
    text = file.getvalue()
    assert "\x1b[" in text
    assert "8/24" in text
    assert "2 solved, 1 diverged after 8 steps" in text


def shown(table: LiveTable) -> list[list[str]]:
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return [text.split() for text in console.file.getvalue().splitlines() if text.strip()]


def test_table_has_a_row_per_member() -> None:
    table = LiveTable()
    table.started("ssd", CONFIG)
    table.evaluated("ssd", LINES)
    table.evaluated("ssd", [line(0.875) | {"step": 8}])
    head, *rows = (words for words in shown(table)[1:] if set(words[0]) != {"─"})
    assert head == ["learning", "rate", "seed", "step", "loss", "accuracy"]
    assert rows == [
        ["0.001", "0", "8", "0.2500", "87.5", "%"],
        ["0.001", "1", "4", "0.2500", "75.0", "%", "stopped"],
        ["0.01", "0", "4", "–", "–", "diverged"],
    ]
    table.finished("ssd", RESULT)
    assert len(shown(table)) == 1


def test_table_shows_the_best_of_many() -> None:
    table = LiveTable(most=1)
    table.started("ssd", CONFIG)
    table.evaluated("ssd", LINES)
    rows = shown(table)[3:]
    assert rows[0][:3] == ["0.001", "1", "4"]
    assert " ".join(rows[1]) == "the best 1 of 3 members"


def test_best_is_the_most_accurate_then_the_smaller_rate() -> None:
    assert "lr 0.1," in best([line(0.5, 0.2), line(0.5, 0.1)])
    assert best([line(None, loss=None)]) == "diverged"


def test_the_lowest_error_is_the_best() -> None:
    lines = [line(None) | {"eval_mse": x, "learning_rate": r} for x, r in ((0.5, 0.1), (0.25, 0.2))]
    assert best(lines, MSE) == "loss 0.2500, MSE 0.250 (lr 0.2, seed 1)"


def test_outcome_counts_in_order_of_appearance() -> None:
    assert outcome(RESULT).startswith("2 solved, 1 diverged after 8 steps")
