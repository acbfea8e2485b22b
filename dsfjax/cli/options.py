"""The options of every command. Their docstrings are the help texts."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro


def _from_preset(metavar: str) -> object:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="(default: the preset's)")


def _own(metavar: str) -> object:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="(default: the architecture's own)")


Int = Annotated[int | None, _from_preset("INT")]
Float = Annotated[float | None, _from_preset("FLOAT")]
Method = Annotated[str | None, _from_preset("{auto,sequential,associative,chunked,materialized}")]
Schedule = Annotated[str | None, _from_preset("{cosine,constant}")]
OwnInt = Annotated[int | None, _own("INT")]
# Not required by the parser, so that its absence can be answered with the names there are.
Mixer = Annotated[str, tyro.conf.arg(metavar="NAME", help_behavior_hint="(required)")]
RunDir = Annotated[
    Path | None,
    tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: under runs/, named by the config)"),
]


@dataclasses.dataclass(frozen=True)
class Training:
    """What ``train`` and ``compare`` have in common; None means as in the preset."""

    task: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TASK")]
    """The task: mqar (multi-query associative recall)."""
    preset: str = "demo"
    """Where the other options start from: demo or smoke."""
    vocab_size: Int = None
    """Token ids of the task."""
    seq_len: Int = None
    """Length of a sequence."""
    num_kv_pairs: Int = None
    """Key-value pairs in a sequence, at most a quarter of its length."""
    power_a: Float = None
    """Exponent of the power law of the gaps between a pair and its query."""
    d_model: Int = None
    """Width of the model."""
    num_layers: Int = None
    """Depth of the model."""
    d_state: Int = None
    """State expansion per head, for mixers that have one."""
    num_heads: Int = None
    """Heads, for mixers that have them."""
    surroundings: Annotated[str | None, _from_preset("{paper,practice}")] = None
    """What stands around the recurrence: as in the paper's experiments, or as in models in use."""
    block: Annotated[str | None, _from_preset("{prenorm,transformer,mamba}")] = None
    """Mixer and MLP, the authors' Transformer block without MLP, or the mixer alone."""
    max_length: Int = None
    """Learned positions, 0 for none."""
    init: Annotated[str | None, _from_preset("{published,authors}")] = None
    """Initial distributions: the published ones, or those of the authors' code."""
    embed_dropout: Float = None
    """Dropout rate after the embedding."""
    attention_dropout: Float = None
    """Dropout rate on the attention matrix, for attention mixers."""
    method: Method = None
    """Engine of the recurrence."""
    steps: Int = None
    """Training steps, a multiple of eval-every."""
    batch_size: Int = None
    """Examples per step, for each learning rate and seed."""
    eval_every: Int = None
    """Steps between evaluations."""
    eval_examples: Int = None
    """Held-out examples per evaluation."""
    stop_at: Float = None
    """Held-out accuracy at which a member has solved the task and stops."""
    schedule: Schedule = None
    """Learning rate over time."""
    warmup_steps: Int = None
    """Steps of linear warm-up."""
    weight_decay: Float = None
    """Decoupled weight decay."""
    run_dir: RunDir = None
    """Folder of the run. The same command on the same folder goes on where it stopped."""


@dataclasses.dataclass(frozen=True)
class Train(Training):
    """Train one mixer."""

    mixer: Mixer = ""
    """The architecture, one that "dsfjax systems" lists."""
    lr: Float = None
    """Peak learning rate."""
    seed: int = 0
    """Seed of initialisation and data."""


@dataclasses.dataclass(frozen=True)
class Compare(Training):
    """Train several mixers, each for every learning rate and seed, and compare them."""

    mixers: Annotated[tuple[str, ...], _from_preset("MIXER ...")] = ()
    """The architectures."""
    lrs: Annotated[tuple[float, ...], _from_preset("FLOAT ...")] = ()
    """Peak learning rates, trained together."""
    seeds: Annotated[tuple[int, ...], _from_preset("INT ...")] = ()
    """Seeds, trained together."""
    report: Annotated[
        Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: none)")
    ] = None
    """Also write a report with figures into this folder."""


@dataclasses.dataclass(frozen=True)
class Systems:
    """List the architectures: structure of A, state size, shared parameters, bounds on |λ|."""

    d_model: int = 64
    """Width."""
    d_state: OwnInt = None
    """State expansion per head, for architectures that have one."""
    num_heads: OwnInt = None
    """Heads, for architectures that have them."""


@dataclasses.dataclass(frozen=True)
class Explain:
    """Say how an architecture is computed, and why, with flops, bytes and memory."""

    mixer: Mixer = ""
    """The architecture, one that "dsfjax systems" lists."""
    length: int = 1024
    """Length of the sequence."""
    method: str = "auto"
    """Engine: auto, sequential, associative, chunked or materialized."""
    d_model: int = 64
    """Width."""
    d_state: OwnInt = None
    """State expansion per head, for architectures that have one."""
    num_heads: OwnInt = None
    """Heads, for architectures that have them."""


@dataclasses.dataclass(frozen=True)
class Report:
    """Write the report of a finished run or comparison."""

    run_dir: tyro.conf.Positional[Path]
    """Folder of the run or comparison."""
    out: Path = Path("report")
    """Folder of the report."""


@dataclasses.dataclass(frozen=True)
class Bench:
    """Time the engines on this machine."""

    repeats: int = 5
    """Runs per method; the table shows medians."""
    json: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: none)")
    ] = None
    """Also write the numbers into this file."""


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Systems, tyro.conf.subcommand("systems")]
    | Annotated[Explain, tyro.conf.subcommand("explain")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
)
