"""How a run looks while it runs: a live bar on a terminal, plain lines elsewhere."""

import contextlib
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dsfjax.training import Listener, TrainConfig


@contextlib.contextmanager
def progress(console: Console) -> Iterator[Listener]:
    """A listener that shows progress on a console.

    Args:
        console: Where to; if it is no terminal, one plain line per evaluation is printed.

    Yields:
        The listener.

    Examples:
        >>> import io
        >>> with progress(Console(file=io.StringIO())) as listener:
        ...     type(listener).__name__
        'PlainLines'
    """
    if not console.is_terminal:
        yield PlainLines(console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[news]}"),
    )
    with Progress(*columns, console=console) as bars:
        yield LiveBars(bars)


def best(lines: list[dict[str, Any]]) -> str:
    """What to say of an evaluation: the member that recalls best.

    Args:
        lines: Lines of ``metrics.jsonl``, at least one.

    Returns:
        Its loss, accuracy, learning rate and seed.

    Examples:
        >>> best([{"eval_loss": 0.5, "eval_accuracy": 0.875, "learning_rate": 0.001, "seed": 0}])
        'loss 0.5000, accuracy 87.5 % (lr 0.001, seed 0)'
    """
    line = max(lines, key=lambda line: (line["eval_accuracy"] or 0.0, -line["learning_rate"]))
    if line["eval_loss"] is None or line["eval_accuracy"] is None:
        return "diverged"
    return (
        f"loss {line['eval_loss']:.4f}, accuracy {100 * line['eval_accuracy']:.1f} % "
        f"(lr {line['learning_rate']:g}, seed {line['seed']})"
    )


def outcome(result: dict[str, Any]) -> str:
    """What to say of a finished run.

    Args:
        result: Its ``result.json``.

    Returns:
        How many members had which status, and where the time went.

    Examples:
        >>> outcome({"members": [{"status": "solved"}, {"status": "solved"}], "steps": 300,
        ...          "train_seconds": 2.0, "compile_seconds": 3.0, "tokens_per_second": 5e4})
        '2 solved after 300 steps; compiled in 3.0 s, trained in 2.0 s, 50,000 tokens/s'
    """
    statuses = [member["status"] for member in result["members"]]
    counts = ", ".join(f"{statuses.count(name)} {name}" for name in dict.fromkeys(statuses))
    return (
        f"{counts} after {result['steps']} steps; compiled in {result['compile_seconds']:.1f} s, "
        f"trained in {result['train_seconds']:.1f} s, {result['tokens_per_second']:,.0f} tokens/s"
    )


class PlainLines(Listener):
    """One line per event, written at once."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._steps = 0

    def _say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)
        self._console.file.flush()

    def started(self, name: str, config: TrainConfig) -> None:
        """Say that the program is being compiled."""
        self._steps = config.steps
        members = len(config.learning_rates) * len(config.seeds)
        self._say(f"{name}: compiling {members} member{'s' if members > 1 else ''} as one program")

    def evaluated(self, name: str, lines: list[dict[str, Any]]) -> None:
        """Say how the best member does."""
        line = lines[0]
        self._say(
            f"{name}: step {line['step']}/{self._steps}, {best(lines)}, "
            f"{line['seconds']:.1f} s, {line['tokens_per_second']:,.0f} tokens/s"
        )

    def finished(self, name: str, result: dict[str, Any]) -> None:
        """Say how it ended."""
        self._say(f"{name}: {outcome(result)}")


class LiveBars(Listener):
    """A bar per program."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, Any] = {}

    def started(self, name: str, config: TrainConfig) -> None:
        """Add a bar."""
        self._tasks[name] = self._bars.add_task(name, total=config.steps, news="compiling")

    def evaluated(self, name: str, lines: list[dict[str, Any]]) -> None:
        """Move the bar."""
        self._bars.update(self._tasks[name], completed=lines[0]["step"], news=best(lines))

    def finished(self, name: str, result: dict[str, Any]) -> None:
        """Stop the bar."""
        self._bars.update(self._tasks[name], completed=result["steps"], news=outcome(result))
        self._bars.stop_task(self._tasks[name])
