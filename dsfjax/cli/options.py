"""The options of commands. Their docstrings are the help texts."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro


def _from_preset(metavar: str) -> object:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="(default: the preset's)")


def _own(metavar: str) -> object:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="(default: the architecture's own)")


Int = Annotated[int | None, _from_preset("INT")]
Float = Annotated[float | None, _from_preset("FLOAT")]
METHODS = ("auto", "sequential", "associative", "chunked", "checkpointed", "materialized")
"""`dsfjax.engines.Method`, which would bring JAX."""
Method = Annotated[str | None, _from_preset(f"{{{','.join(METHODS)}}}")]
Decay = Annotated[str | None, _from_preset("{all,matrices}")]
Schedule = Annotated[str | None, _from_preset("{cosine,constant}")]
OwnInt = Annotated[int | None, _own("INT")]
# Not required by the parser, so that its absence can be answered with the names there are.
Mixer = Annotated[str, tyro.conf.arg(metavar="NAME", help_behavior_hint="(required)")]
Names = Annotated[tuple[str, ...], _from_preset("MIXER ...")]
Ints = Annotated[tuple[int, ...], _from_preset("INT ...")]
YesNo = Annotated[bool | None, _from_preset("{True,False}")]
ReportDir = Annotated[
    Path | None,
    tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: report/ in the run directory)"),
]
RetryFailed = Annotated[bool, tyro.conf.FlagCreatePairsOff]
NoReport = Annotated[bool, tyro.conf.FlagCreatePairsOff]
DataDir = Annotated[
    Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: $DSFJAX_DATA)")
]
RunDir = Annotated[
    Path | None,
    tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: under runs/, named by the config)"),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What every command has."""

    imports: Annotated[
        tuple[str, ...],
        tyro.conf.arg(name="import", metavar="MODULE ...", help_behavior_hint="(default: none)"),
    ] = ()
    """Modules to import first, which register architectures, tasks and aspects of your own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading(Command):
    """What commands have that read data sets."""

    data_dir: DataDir = None
    """Folder of data sets; "dsfjax data list" says what belongs there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tracked:
    """Who else is told of the evaluations of a run."""

    tensorboard: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Write the evaluations for TensorBoard, into tensorboard/ in the run directory."""
    wandb: Annotated[
        str | None, tyro.conf.arg(metavar="PROJECT", help_behavior_hint="(default: none)")
    ] = None
    """Send the evaluations to this project of Weights & Biases; WANDB_MODE=offline keeps them in
    the run directory."""


@dataclasses.dataclass(frozen=True)
class Training(Tracked, Reading):
    """What ``train``, ``compare`` and ``sweep`` have in common; None means as in the preset.

    The options of a task are added when it is known which, and one for each axis (`completed`).
    """

    task: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TASK")]
    """The task; "dsfjax COMMAND TASK --help" lists its options."""
    preset: str = "demo"
    """Where the other options start from: demo, smoke, or paper where a task has published
    settings."""
    config: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: none)")
    ] = None
    """TOML or JSON file of settings, such as the config.json of a run. It overrides the preset, and
    options override the file."""
    mixer_option: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        tyro.conf.arg(metavar="[MIXER.]OPTION=VALUE", help_behavior_hint="(repeatable)"),
    ] = ()
    """An option of the architecture, such as normalizer=softplus; with several architectures and
    MIXER. of that one alone."""
    surroundings: Annotated[str | None, _from_preset("{paper,practice}")] = None
    """What surrounds the recurrence: as in the paper's experiments, or as in models in use."""
    block: Annotated[str | None, _from_preset("{prenorm,transformer,mamba}")] = None
    """Mixer and MLP, the authors' Transformer block without MLP, or the mixer alone."""
    mlp_ratio: Int = None
    """Hidden width of the MLP over that of the model."""
    mlp: Annotated[str | None, _from_preset("{gelu,swiglu}")] = None
    """The MLP: two maps around a GELU, or three with a gate."""
    norm: Annotated[str | None, _from_preset("{layer,rms}")] = None
    """Norms of the blocks."""
    embed_scale: Float = None
    """Multiplies what the embedding gives."""
    residual_scale: Float = None
    """Multiplies what mixers and MLPs add to the residual stream."""
    logit_scale: Float = None
    """Multiplies the outputs of the head."""
    logit_cap: Float = None
    """Soft cap on the outputs of the head, c tanh(x / c); 0 for none."""
    bidirectional: YesNo = None
    """Whether every layer also has a mixer that reads the sequence from its end."""
    pooling: Annotated[str | None, _from_preset("{mean,last}")] = None
    """What a classifier reads of a sequence: the mean of its features, or the last."""
    remat: YesNo = None
    """Compute every block again in the backward pass: less memory, more time."""
    max_length: Int = None
    """Learned positions, 0 for none."""
    init: Annotated[str | None, _from_preset("{published,authors}")] = None
    """Initial distributions: the published ones, or those of the authors' code."""
    embed_dropout: Float = None
    """Dropout rate after the embedding."""
    residual_dropout: Float = None
    """Dropout rate on what the layers add to the residual stream."""
    attention_dropout: Float = None
    """Dropout rate on the attention matrix, for attention mixers."""
    method: Method = None
    """Engine of the recurrence."""
    precision: Annotated[str | None, _from_preset("{float32,bfloat16,tf32}")] = None
    """Type that the model computes in; states, sums, logits and master weights are float32."""
    steps: Int = None
    """Training steps, a multiple of eval-every."""
    batch_size: Int = None
    """Examples per step, for each member."""
    accumulate: Int = None
    """Parts of a batch that are computed one after the other, for less memory."""
    eval_every: Int = None
    """Steps between evaluations."""
    eval_examples: Int = None
    """Held-out examples per evaluation."""
    stop_at: Float = None
    """Held-out accuracy, or other score of the task, at which a member has solved it and stops."""
    patience: Int = None
    """Evaluations without a lower held-out loss after which a member stops."""
    checkpoint_every: Int = None
    """Evaluations between checkpoints."""
    probe_every: Annotated[
        int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: no probes)")
    ] = None
    """Steps between looks inside the models while they train, a multiple of eval-every."""
    shared_data: YesNo = None
    """Whether all members see the same batches, or each seed its own."""
    schedule: Schedule = None
    """Learning rate over time."""
    warmup_steps: Int = None
    """Steps of linear warm-up."""
    clip: Float = None
    """Largest global norm of the gradient."""
    dynamics_rate: Float = None
    """Factor on the learning rate of what sets the decays of a state, such as A_log."""
    average: Float = None
    """Decay rate of a moving average of the parameters, by which the model is then judged."""
    b1: Float = None
    """AdamW's decay rate of the first moment."""
    b2: Float = None
    """AdamW's decay rate of the second moment."""
    eps: Float = None
    """AdamW's epsilon, added to the root of the second moment."""
    decay: Decay = None
    """What weight decay shrinks: all parameters, as in the paper, or the matrices only, so neither
    biases, norms, learned positions nor what sets the decays of a state (such as A_log and D)."""
    devices: Annotated[
        int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: all)")
    ] = None
    """Devices to cut the members over, or their batches. A CPU counts as one per core."""
    memory: Annotated[
        float | None, tyro.conf.arg(metavar="GIB", help_behavior_hint="(default: 80 %)")
    ] = None
    """Memory to use of each device; members that do not fit at once take turns."""
    sequence_shards: Annotated[int, tyro.conf.arg(metavar="INT")] = 1
    """Devices to cut the steps of each sequence over, a divisor of its length: for sequences of
    which one device cannot hold the activations."""
    quick_compile: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Compile with few optimisations: for runs that take less time than their compilation."""
    mfu: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Say which part of the peak of the devices the model uses also where it has to be measured, as
    on CPUs. Where the maker declares it, it is said anyway."""
    estimate: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Say the parameters, operations and memory of every program from its shapes alone. Nothing is
    compiled, trained or written."""
    run_dir: RunDir = None
    """Folder of the run. The same command on the same folder continues where it stopped."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What has one value in ``train`` and ``compare``; None means as in the preset."""

    d_model: Int = None
    """Width of the model."""
    num_layers: Int = None
    """Depth of the model."""
    d_state: Int = None
    """State expansion per head, for mixers that have one."""
    num_heads: Int = None
    """Heads, for mixers that have them."""


@dataclasses.dataclass(frozen=True)
class Train(Sizes, Training):
    """Train one mixer."""

    mixer: Mixer = ""
    """The architecture, one that "dsfjax systems" lists; or a pattern such as
    3xssd+softmax_attention."""
    layers: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME[*TIMES] ...")] = ()
    """In place of --mixer, the architectures of the layers in turn, until there are --num-layers:
    ssd*3 softmax_attention. "ssd&softmax_attention" is a layer with both."""


@dataclasses.dataclass(frozen=True)
class Compare(Sizes, Training):
    """Train several mixers on one task or more, each for every learning rate and seed."""

    task: Annotated[  # type: ignore[assignment]
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="TASK ...")
    ]
    """The tasks; "dsfjax compare TASK --help" lists the options of one."""
    mixers: Names = ()
    """The architectures, or patterns of layers such as 3xssd+softmax_attention."""
    retry_failed: RetryFailed = False
    """Run those again that failed before."""
    report: ReportDir = None
    """Folder of the report: which architecture, and what is inside the trained models."""
    no_report: NoReport = False
    """Write no report; "dsfjax analyze" makes it later."""


@dataclasses.dataclass(frozen=True)
class Sweep(Training):
    """Train every combination of the values given, as few programs of many members each."""

    mixers: Names = ()
    """The architectures. Each of these and of the sizes below is a program of its own."""
    d_model: Ints = ()
    """Widths of the model."""
    num_layers: Ints = ()
    """Depths of the model."""
    d_state: Ints = ()
    """State expansions per head, for mixers that have one."""
    num_heads: Ints = ()
    """Numbers of heads, for mixers that have them."""
    launcher: str = "here"
    """Where to run: here; ray, a task per program; or hosts, each program on the devices of all
    processes that are started with this command."""
    process: Annotated[
        tuple[str, int, int] | None,
        tyro.conf.arg(metavar="ADDRESS NUM INDEX", help_behavior_hint="(default: the cluster's)"),
    ] = None
    """With hosts: address of the first process, how many there are, and which this one is."""
    retry_failed: RetryFailed = False
    """Run programs again that failed before."""
    report: ReportDir = None
    """Folder of the report, for each task of its own."""
    no_report: NoReport = False
    """Write no report; "dsfjax analyze" makes it later."""


@dataclasses.dataclass(frozen=True)
class Results(Command):
    """Print the results of a sweep or comparison, a member per line."""

    run_dir: tyro.conf.Positional[Path]
    """Folder of the sweep."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """A JSON object per line, with config and final metrics, instead of a table."""
    no_timing: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Leave out wall times and timestamps: the rest is the same for the same sweep."""


@dataclasses.dataclass(frozen=True)
class Systems(Command):
    """List the architectures: structure of A, state size, shared parameters, bounds on |λ|."""

    d_model: int = 64
    """Width."""
    d_state: OwnInt = None
    """State expansion per head, for architectures that have one."""
    num_heads: OwnInt = None
    """Heads, for architectures that have them."""


@dataclasses.dataclass(frozen=True)
class Explain(Command):
    """Say how an architecture is computed, and why, with flops, bytes and memory."""

    mixer: Mixer = ""
    """The architecture, one that "dsfjax systems" lists."""
    length: int = 1024
    """Length of the sequence."""
    method: str = "auto"
    """Engine: auto, sequential, associative, chunked, checkpointed or materialized."""
    d_model: int = 64
    """Width."""
    d_state: OwnInt = None
    """State expansion per head, for architectures that have one."""
    num_heads: OwnInt = None
    """Heads, for architectures that have them."""


@dataclasses.dataclass(frozen=True)
class Data(Reading):
    """List the data sets of tasks, or prepare them: check the files and make arrays of them."""

    # Not required by the parser, so that its absence can be answered with the choices.
    action: tyro.conf.Positional[
        Annotated[str, tyro.conf.arg(metavar="{list,prepare}", help_behavior_hint="(required)")]
    ] = ""
    """list: which data sets are there. prepare: make the arrays that tasks read, once."""
    names: tyro.conf.Positional[
        Annotated[
            tuple[str, ...], tyro.conf.arg(metavar="NAME ...", help_behavior_hint="(default: all)")
        ]
    ] = ()
    """The data sets."""
    source: str = "files"
    """What to prepare them from: files of the data folder, or tfds, which fetches a data set of
    tensorflow-datasets into the data folder first if it is not there."""


@dataclasses.dataclass(frozen=True)
class Lengths(Reading):
    """Evaluate the trained models of a run, comparison or sweep on longer and longer sequences."""

    run_dir: tyro.conf.Positional[Path]
    """Folder of the run, comparison or sweep."""
    factors: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Lengths of the sequences over the training length."""
    starts: tuple[str, ...] = ("empty", "carried", "random")
    """Where sequences begin: without a state, in the final state of another sequence, or in a
    random state of the same size. Models with softmax attention begin without a state only."""
    examples: Annotated[
        int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: as in training)")
    ] = None
    """Held-out examples at each length."""
    out: Annotated[
        Path | None,
        tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: lengths/ in the run directory)"),
    ] = None
    """Folder of lengths.csv and lengths.png."""


_OfTask = "(default: the task's)"


@dataclasses.dataclass(frozen=True)
class Recommend(Command):
    """Say which architectures did best on the tasks that are nearest to yours, and at what cost."""

    task: tyro.conf.Positional[
        Annotated[str, tyro.conf.arg(metavar="TASK", help_behavior_hint="(optional)")]
    ] = ""
    """A task of which length, inputs and demands are taken; options have priority."""
    length: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint=_OfTask)] = None
    """Steps of a sequence."""
    vocab: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint=_OfTask)] = None
    """Token ids, where the inputs are tokens."""
    channels: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint=_OfTask)] = None
    """Values per step, where the inputs are values."""
    demands: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="DEMAND ...", help_behavior_hint=_OfTask)
    ] = ()
    """What it takes: recall, copying, state-tracking, memorization, smoothing, classification,
    language, forecasting, or a word of a task of your own."""
    decode_memory: Annotated[
        str | None, tyro.conf.arg(metavar="BYTES", help_behavior_hint="(default: any)")
    ] = None
    """Memory for the state of one sequence in decoding, such as 64kB or 1MB."""
    budget: Annotated[
        str | None, tyro.conf.arg(metavar="AMOUNT", help_behavior_hint="(default: any)")
    ] = None
    """What training may take, such as 10Mtokens or 2000steps; results that took more are marked."""
    run_dir: Annotated[
        tuple[Path, ...], tyro.conf.arg(metavar="DIR ...", help_behavior_hint="(default: none)")
    ] = ()
    """Folders of runs, comparisons or sweeps of your own, which count like the results that come
    with the package."""
    d_model: int = 64
    """Width of the model whose memory, parameters and operations are shown."""
    num_layers: int = 2
    """Its depth."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print JSON instead of tables."""


@dataclasses.dataclass(frozen=True)
class Bench(Command):
    """Time the engines on this machine, next to plain JAX and other packages."""

    cases: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="CASE ...", help_behavior_hint="(default: all)")
    ] = ()
    """Cases of the grid; "lengths" is the table of growth with the length."""
    precision: str = "float32"
    """Of the engines and of plain JAX: float32, bfloat16 (states, sums and decays in float32) or
    tf32. Errors are against float64 in each."""
    repeats: int = 5
    """Rounds in which the contestants of a case take turns; the tables show medians."""
    devices: Annotated[
        int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: all)")
    ] = None
    """Devices to cut the batch over, for every contestant in JAX. A CPU counts as one per core."""
    out: Annotated[
        Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: none)")
    ] = None
    """Also write JSON, Markdown, CSV and a plot into this folder."""
    no_baselines: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """The engines alone."""
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Shorter sequences, to see that everything runs."""
    long: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Also errors over 100,000 steps and memory over a million."""


@dataclasses.dataclass(frozen=True)
class Selfcheck(Command):
    """Check every engine and op on this device against float64; exit code 1 if one is off."""

    precision: Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            metavar="PRECISION ...", help_behavior_hint="(default: float32 bfloat16 tf32)"
        ),
    ] = ()
    """Precisions: float32, bfloat16 (states and sums in float32), tf32 (products, where the device
    has it) and float64."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print JSON instead of a table."""


def completed(
    command: type[Command],
    fields: Mapping[str, dataclasses.Field[Any]],
    axes: Sequence[Any],
    presets: Mapping[str, str] | None = None,
) -> Any:
    """The options of a command with those of a task, and one for each axis of a grid.

    Args:
        command: ``Train``, ``Compare``, ``Sweep``, or another about one task.
        fields: The task's own, by name (`dsfjax.tasks.options`). Whole numbers, which change a
            shape or a law, have several values in a sweep.
        axes: The axes (`dsfjax.training.config.AXES`). ``Train`` takes one value of each.
        presets: The task's presets, each with what it is for, which the help lists.

    Returns:
        A subclass of the command.
    """
    added = []
    default = "the preset's" if issubclass(command, Training) else "the task's"
    if issubclass(command, Training) and presets:
        known = "; ".join(f"{name} ({about})" for name, about in presets.items())
        hint = tyro.conf.arg(help=f"Where the other options start from: {known}.")
        preset = dataclasses.field(default=command.preset, kw_only=True)
        added.append(("preset", Annotated[str, hint], preset))
    for axis in axes:
        one = issubclass(command, Train)
        about = axis.about if one else f"{axis.about} Several values are trained together."
        name = axis.one if one else axis.flag
        added.append(_option(name, axis.kind, about, default, not one))
    for name, field in fields.items():
        kind = type(field.default)
        about = field.metadata.get("help", f"Option {name.replace('_', ' ')} of the task.")
        several = issubclass(command, Sweep) and kind is int
        added.append(_option(name, kind, about, default, several))
    return dataclasses.make_dataclass(
        command.__name__,
        added,
        bases=(command,),
        frozen=True,
        namespace={"__doc__": command.__doc__},
    )


def _option(name: str, kind: type, about: str, default: str, several: bool) -> tuple[str, Any, Any]:
    metavar = f"{kind.__name__.upper()}{' ...' if several else ''}"
    hint = tyro.conf.arg(metavar=metavar, help=about, help_behavior_hint=f"(default: {default})")
    typed = Annotated[tuple[kind, ...] if several else kind | None, hint]
    return name, typed, dataclasses.field(default=() if several else None, kw_only=True)
