"""Progress on a terminal and in a pipe."""

import io
from typing import Any

from rich.console import Console

from dsfjax.cli.progress import LiveBars, PlainLines, best, outcome, progress
from dsfjax.training import presets

CONFIG = presets.get("smoke").base
RESULT: dict[str, Any] = {
    "members": [{"status": "solved"}, {"status": "diverged"}, {"status": "solved"}],
    "steps": 8,
    "train_seconds": 1.25,
    "compile_seconds": 0.5,
    "tokens_per_second": 12345.6,
}


def line(accuracy: float | None, rate: float = 0.1, loss: float | None = 0.25) -> dict[str, Any]:
    return {
        "step": 4,
        "learning_rate": rate,
        "seed": 1,
        "eval_accuracy": accuracy,
        "eval_loss": loss,
        "seconds": 0.5,
        "tokens_per_second": 1000.0,
    }


def drive(console: Console) -> type:
    with progress(console) as listener:
        listener.started("ssd", CONFIG)
        listener.evaluated("ssd", [line(0.5), line(0.75, rate=0.2), line(None, loss=None)])
        listener.finished("ssd", RESULT)
        return type(listener)


def test_pipe_gets_plain_lines() -> None:
    file = io.StringIO()
    assert drive(Console(file=file, width=40)) is PlainLines
    assert file.getvalue().splitlines() == [
        "ssd: compiling 4 members as one program",
        "ssd: step 4/24, loss 0.2500, accuracy 75.0 % (lr 0.2, seed 1), 0.5 s, 1,000 tokens/s",
        "ssd: 2 solved, 1 diverged after 8 steps; compiled in 0.5 s, trained in 1.2 s, "
        "12,346 tokens/s",
    ]


def test_terminal_gets_a_bar() -> None:
    file = io.StringIO()
    console = Console(file=file, width=160, force_terminal=True)
    assert drive(console) is LiveBars
    text = file.getvalue()
    assert "\x1b[" in text
    assert "8/24" in text
    assert "2 solved, 1 diverged after 8 steps" in text


def test_best_is_the_most_accurate_then_the_smaller_rate() -> None:
    assert "lr 0.1," in best([line(0.5, 0.2), line(0.5, 0.1)])
    assert best([line(None, loss=None)]) == "diverged"


def test_outcome_counts_in_order_of_appearance() -> None:
    assert outcome(RESULT).startswith("2 solved, 1 diverged after 8 steps")
