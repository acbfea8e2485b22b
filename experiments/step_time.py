"""Time of one training step of the paper's recall model, beside the authors' PyTorch code.

The model of the smallest task: 64 tokens, 4 pairs, vocabulary 8192, d = n = 64, two layers. A step
of ours draws its batch; theirs is given one. They take turns in one process on all cores.

    python -m experiments.step_time --authors PATH_OF_A_CLONE_OF_DSF_MQAR

``--authors`` needs PyTorch, einops and pydantic; without it only our times are shown.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from rich.table import Table

from dsfjax._util.allocation import keep_freed_memory
from dsfjax._util.limits import cores
from dsfjax.bench.timing import take_turns
from dsfjax.cli.output import console
from dsfjax.tasks import HELD_OUT, examples, mqar
from dsfjax.training import TrainConfig
from dsfjax.training.compilation import compiling
from dsfjax.training.devices import SPLIT, WHOLE, layout, reserve
from dsfjax.training.program import data_of, members
from dsfjax.training.runs import program_of
from dsfjax.training.storage import environment, files
from experiments import authors
from experiments.settings import config

BLOCK = 10
WANTED = {name: 40 if name in ("s6", "ssd") else 10 for name in authors.MIXERS}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to time.

    Attributes:
        mixers: Names of mixers.
        authors: A clone of IntelligentControlSystems/dsf-mqar.
        batch_size: Examples per step.
        repeats: Rounds, of which the median is taken.
        out: A JSON file for the times.
    """

    mixers: tuple[str, ...] = tuple(authors.MIXERS)
    authors: Path | None = None
    batch_size: int = 64
    repeats: int = 7
    out: Path | None = None


def main(options: Options) -> None:
    """Time all mixers and print the table.

    Args:
        options: The options.
    """
    reserve(cores())
    rows = []
    for mixer in options.mixers:
        made = config("paper", mixer, (64, 4), 64, 64, faithful=True)
        made = dataclasses.replace(
            made, batch_size=options.batch_size, eval_every=BLOCK, steps=10_000 * BLOCK,
            eval_examples=1, seeds=(0,), learning_rates=(1e-3,), stop_at=None,
        )  # fmt: skip
        runs: dict[str, Callable[[], Any]] = {"ours": our_block(made)}
        if options.authors is not None:
            example = examples(made.task, HELD_OUT, made.batch_size, jax.random.key(0))
            tokens, answers = np.asarray(example.inputs), np.asarray(mqar.labels(example))
            theirs = authors.training_step(
                options.authors, mixer, made, tokens.astype(np.int64), answers.astype(np.int64)
            )
            runs["theirs"] = theirs
        for run in runs.values():
            run()
        times = take_turns(runs, repeats=options.repeats, budget_s=20)
        times["ours"] /= BLOCK
        ratio = {"ratio": times["theirs"] / times["ours"]} if "theirs" in times else {}
        rows.append({"mixer": mixer, **times, **ratio})
    table = Table("mixer", "ours, ms", "theirs, ms", "ratio", "target")
    for row in rows:
        theirs = (f"{row['theirs']:.0f}", f"{row['ratio']:.1f}") if "theirs" in row else ("–", "–")
        found = (f"{row['ours']:.1f}", *theirs, f"{WANTED[row['mixer']]}")
        table.add_row(row["mixer"], *found)
    console().print(table)
    if options.out is not None:
        what = {"batch_size": options.batch_size, "cores": cores(), "rows": rows}
        files.write_json(options.out, what | {"environment": environment.describe()})


def our_block(made: TrainConfig, *, apart: bool = False) -> Callable[[], None]:
    """A function that trains all members for a block of steps, and evaluates them.

    Args:
        made: The config.
        apart: One member after another, each on all devices, instead of all as one program.

    Returns:
        The function; every call continues from the last.
    """
    plan = program_of(made)
    groups = [(each,) for each in made.members] if apart else [made.members]
    where = layout(len(groups[0]), jax.devices(), batch_size=plan.part_size)
    compiled = compiling(plan, where).result()
    data, total = where.put((data_of(plan), np.int32(made.steps)), WHOLE)
    inputs = [where.put(members(group), SPLIT) for group in groups]
    carries = [compiled.start(which) for which in inputs]

    def run() -> None:
        for i, which in enumerate(inputs):
            carries[i], metrics, _ = compiled.block(data, carries[i], which, total)
            jax.block_until_ready(metrics)

    return run


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Options, prog="python -m experiments.step_time", description=__doc__))
