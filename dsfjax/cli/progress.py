"""How a run looks while it runs: a live table on a terminal, plain lines elsewhere."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from dsfjax._util.words import binary
from dsfjax.tasks import ACCURACY, Metric
from dsfjax.training import Listener, TrainConfig
from dsfjax.training.config import AXES
from dsfjax.training.devices import Layout


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
    table = LiveTable()
    with Live(table, console=console, refresh_per_second=4):
        yield table


def best(lines: list[dict[str, Any]], metric: Metric = ACCURACY) -> str:
    """What to say of an evaluation: the member with the best score.

    Args:
        lines: Lines of ``metrics.jsonl``, at least one.
        metric: The score's.

    Returns:
        Its loss, score, learning rate and seed.

    Examples:
        >>> best([{"eval_loss": 0.5, "eval_accuracy": 0.875, "learning_rate": 0.001, "seed": 0}])
        'loss 0.5000, accuracy 87.5 % (lr 0.001, seed 0)'
    """
    name = f"eval_{metric.name}"
    line = min(lines, key=lambda line: (metric.order(line[name]), line["learning_rate"]))
    if line["eval_loss"] is None or line[name] is None:
        return "diverged"
    return (
        f"loss {line['eval_loss']:.4f}, {metric.called} {metric.plain(line[name])}{metric.unit} "
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
        f"trained in {result['train_seconds']:.1f} s, {speed(result)}"
    )


def speed(read: Mapping[str, Any]) -> str:
    """What to say of the use of the devices.

    Args:
        read: A line of ``metrics.jsonl``, or ``result.json``.

    Returns:
        Tokens per second, and where they are known the part of the devices' peak that the model
        uses, and the memory of one.

    Examples:
        >>> speed({"tokens_per_second": 5e4, "memory_bytes": 3 * 2**29, "mfu": 0.123})
        '50,000 tokens/s, MFU 12.3 %, 1.5 GiB'
    """
    said = [f"{read['tokens_per_second']:,.0f} tokens/s"]
    if "mfu" in read:
        said.append(f"MFU {100 * read['mfu']:.1f} %")
    if "memory_bytes" in read:
        said.append(binary(read["memory_bytes"]))
    return ", ".join(said)


def slices(where: Layout) -> str:
    """What to say of members that are not computed all at once.

    Args:
        where: The layout.

    Returns:
        How many slices of how many members, and on how many devices; "" for one slice on one.

    Examples:
        >>> import jax
        >>> from dsfjax.training.devices import layout
        >>> slices(layout(5, jax.devices()[:1], at_most=2))
        '5 members do not fit at once: 3 slices of 2 take turns'
    """
    devices = len(where.devices)
    on = f" on {devices} devices" if devices > 1 else ""
    if where.num_slices > 1:
        return (
            f"{where.num_members} members do not fit at once: {where.num_slices} slices of "
            f"{where.slice_size} take turns{on}"
        )
    members = "1 member" if where.num_members == 1 else f"{where.num_members} members"
    return f"{members}{on}" if on else ""


class PlainLines(Listener):
    """One line per event, written at once."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._configs: dict[str, TrainConfig] = {}

    def _say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)
        self._console.file.flush()

    def started(self, name: str, config: TrainConfig) -> None:
        """Remember how many members it has."""
        self._configs[name] = config

    def compiling(self, name: str) -> None:
        """Say that the program is being compiled."""
        members = len(self._configs[name].members)
        self._say(f"{name}: compiling {members} member{'s' if members > 1 else ''} as one program")

    def compiled(self, name: str, where: Layout) -> None:
        """Say how members are laid out, if not all at once on one device."""
        if said := slices(where):
            self._say(f"{name}: {said}")

    def evaluated(self, name: str, lines: list[dict[str, Any]]) -> None:
        """Say how the best member does."""
        line, config = lines[0], self._configs[name]
        self._say(
            f"{name}: step {line['step']}/{config.steps}, {best(lines, config.task.metric)}, "
            f"{line['seconds']:.1f} s, {speed(line)}"
        )

    def finished(self, name: str, result: dict[str, Any]) -> None:
        """Say how it ended."""
        self._say(f"{name}: {outcome(result)}")

    def failed(self, name: str, reason: str) -> None:
        """Say why it has no result."""
        self._say(f"{name}: failed: {reason}")


class LiveTable(Listener):
    """A bar per program, and a table of the members of the programs that are running.

    Args:
        most: Rows to show; the members with the best score if there are more.
    """

    def __init__(self, most: int = 32) -> None:
        self._most = most
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[news]}"),
        )
        self._tasks: dict[str, Any] = {}
        self._configs: dict[str, TrainConfig] = {}
        self._lines: dict[str, dict[int, dict[str, Any]]] = {}

    def __rich__(self) -> Group:
        return Group(self._bars, *(self._table(name) for name in self._lines))

    def started(self, name: str, config: TrainConfig) -> None:
        """Add a bar and a table."""
        self._tasks[name] = self._bars.add_task(name, total=config.steps, news="")
        self._configs[name], self._lines[name] = config, {}

    def compiling(self, name: str) -> None:
        """Say that the program is being compiled."""
        self._bars.update(self._tasks[name], news="compiling")

    def compiled(self, name: str, where: Layout) -> None:
        """Say how members are laid out."""
        self._bars.update(self._tasks[name], news=slices(where))

    def evaluated(self, name: str, lines: list[dict[str, Any]]) -> None:
        """Move the bar and renew the rows."""
        news = f"{best(lines, self._configs[name].task.metric)}, {speed(lines[0])}"
        self._bars.update(self._tasks[name], completed=lines[0]["step"], news=news)
        self._lines[name].update({line["member"]: line for line in lines})

    def finished(self, name: str, result: dict[str, Any]) -> None:
        """Stop the bar and take the table away."""
        self._bars.update(self._tasks[name], completed=result["steps"], news=outcome(result))
        self._bars.stop_task(self._tasks[name])
        del self._lines[name]

    def failed(self, name: str, reason: str) -> None:
        """Say why it has no result."""
        if name not in self._tasks:  # it failed in an earlier sweep
            self._tasks[name] = self._bars.add_task(name, total=1, news="")
        self._bars.update(self._tasks[name], news=f"failed: {reason}")
        self._bars.stop_task(self._tasks[name])
        self._lines.pop(name, None)

    def _table(self, name: str) -> Table:
        members, lines = self._configs[name].members, self._lines[name]
        metric = self._configs[name].task.metric
        score = f"eval_{metric.name}"
        varying = [a.name for a in AXES if len({getattr(m, a.name) for m in members}) > 1]
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        axes = (axis.replace("_", " ") for axis in varying)
        for head in (*axes, "step", "loss", metric.heading, ""):
            table.add_column(head, justify="right", no_wrap=True)
        last = max((line["step"] for line in lines.values()), default=0)
        shown = sorted(lines, key=lambda index: metric.order(lines[index][score]))
        for index in sorted(shown[: self._most]):
            line = lines[index]
            diverged = line["eval_loss"] is None or line["train_loss"] is None
            table.add_row(
                *(f"{getattr(members[index], axis):g}" for axis in varying),
                str(line["step"]),
                "–" if line["eval_loss"] is None else f"{line['eval_loss']:.4f}",
                "–" if line[score] is None else metric.plain(line[score]) + metric.unit,
                "diverged" if diverged else "stopped" if line["step"] < last else "",
            )
        if len(lines) > self._most:
            table.caption = f"the best {self._most} of {len(lines)} members"
        return table
