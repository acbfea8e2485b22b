"""The options of commands about opened models. Their docstrings are the help texts."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from dsfjax.cli.options import Command, Reading, ReportDir, RunDir, Tracked

Text = Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="(default: none)")]
TextFile = Annotated[
    Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: none)")
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnText:
    """What commands have that let published checkpoints read a text."""

    text: Text = None
    """The text that opened models read: published checkpoints, or what runs have trained."""
    text_file: TextFile = None
    """A file with that text."""
    ids: Annotated[
        tuple[int, ...], tyro.conf.arg(metavar="INT ...", help_behavior_hint="(default: --text)")
    ] = ()
    """Token ids in its place, for a checkpoint without a tokenizer."""
    tokens: int = 512
    """Tokens of the text that are read, the first."""


@dataclasses.dataclass(frozen=True)
class Analyze(OnText, Reading):
    """Look inside the models of a run or sweep, or published checkpoints; write the report."""

    run_dir: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PATH ...")]]
    """Folder of a run, comparison or sweep; or folders of published checkpoints, or of runs that
    are to read a text, too."""
    stream: bool = False
    """Let opened models also read the whole text, in pieces of --tokens whose states pass from one
    to the next: bits per token and what a step keeps, along it."""
    report: ReportDir = None
    """Folder of the report; of published checkpoints, report/ here by default."""


@dataclasses.dataclass(frozen=True)
class Reduce(OnText, Command):
    """Give a published checkpoint smaller states: those that a text uses most."""

    path: tyro.conf.Positional[Path]
    """Its folder."""
    states: Annotated[int, tyro.conf.arg(metavar="INT", help_behavior_hint="(required)")] = 0
    """States to keep per group of heads that share what writes and reads them."""
    layers: Annotated[
        tuple[int, ...],
        tyro.conf.arg(metavar="INT ...", help_behavior_hint="(default: all that have a state)"),
    ] = ()
    """Numbers of the layers, from 0. Others keep their size, and with it the format: the states
    that are left out are zeros in the file then."""
    out: Annotated[
        Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: none)")
    ] = None
    """Folder for the smaller checkpoint, in the same format."""


@dataclasses.dataclass(frozen=True)
class Finetune(Tracked, Reading):
    """Train a published checkpoint further; the run directory gets it in the same format."""

    path: tyro.conf.Positional[Path]
    """Its folder."""
    # Not required by the parser, so that its absence can be answered in one line.
    task: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(metavar="TASK", help_behavior_hint="(required)"),
    ] = ""
    """The task, one whose token ids are those of the checkpoint; its options are then options of
    this command. The tokens of a language task are those of the checkpoint, if it has a
    tokenizer."""
    layers: Annotated[
        tuple[int, ...], tyro.conf.arg(metavar="INT ...", help_behavior_hint="(default: all)")
    ] = ()
    """Numbers of the layers to train, from 0. Everything else is frozen then, embeddings and head
    among it."""
    steps: int = 200
    """Training steps, a multiple of eval-every."""
    lr: float = 1e-4
    """Peak learning rate."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    schedule: str = "cosine"
    """Learning rate over time: cosine or constant."""
    weight_decay: float = 0.1
    """Decoupled weight decay, of matrices only."""
    dynamics_rate: float = 1.0
    """Factor on the learning rate of what sets the decays of a state, such as A_log."""
    clip: Annotated[
        float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="(default: none)")
    ] = None
    """Largest global norm of the gradient."""
    batch_size: int = 8
    """Examples per step."""
    accumulate: int = 1
    """Parts of a batch that are computed one after the other, for less memory."""
    eval_every: int = 50
    """Steps between evaluations, after each of which the run can be continued."""
    eval_examples: int = 64
    """Held-out examples per evaluation."""
    seed: int = 0
    """Seed of the order of the data."""
    run_dir: RunDir = None
    """Folder of the run. The same command on the same folder continues where it stopped."""


@dataclasses.dataclass(frozen=True)
class Inspect(Command):
    """Say what a published checkpoint is, and whether it opens, without reading its weights."""

    path: tyro.conf.Positional[Path]
    """Its folder."""


@dataclasses.dataclass(frozen=True)
class Convert(Command):
    """Make a published checkpoint of one in its authors' format, or of a pickled one."""

    path: tyro.conf.Positional[Path]
    """A folder with config.json and pytorch_model.bin, in one file or in parts, or a .pth file."""
    # Not required by the parser, so that its absence can be answered in one line.
    out: Annotated[
        Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(required)")
    ] = None
    """The folder to write: config.json and model.safetensors."""
