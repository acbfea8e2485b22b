"""What a run is: task, model, optimiser, and the members trained together."""

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

from dsfjax._util import extensions
from dsfjax._util.fields import convert_fields
from dsfjax._util.names import choose
from dsfjax.nn import Buildable, ModelConfig
from dsfjax.tasks import ACCURACY, HELD_OUT, TRAIN, Task
from dsfjax.training.axes import Axis, at_least_0, axes_of, axis, check, positive
from dsfjax.training.optimizer import OptimizerConfig
from dsfjax.training.storage import serial

STOP_WHEN = ("all_members", "one_rate")
_SOLVED: Any = "as the metric says"
INTERFACE = (
    "vocab_size",
    "channels",
    "num_classes",
    "num_outputs",
    "num_documents",
    "num_decoded",
)
"""What a model and its task have in common."""


def fitted(model: ModelConfig, task: Task) -> ModelConfig:
    """A model with the inputs and outputs of a task.

    Args:
        model: The model.
        task: The task.

    Returns:
        The model with the task's vocabulary or channels; a classifier if the task has classes, with
        the head "values" if it asks for values, with a decoder if the last features are to hold the
        whole sequence.
    """
    own_head = "tied" if model.head in ("classifier", "values", "decoder") else model.head
    if task.num_decoded:
        own_head = "decoder"
    elif task.num_outputs:
        own_head = "values"
    elif task.num_classes:
        own_head = "classifier"
    elif task.channels and own_head == "tied":
        own_head = "untied"
    own: dict[str, Any] = {name: getattr(task, name) for name in INTERFACE}
    return replace(model, head=own_head, **own)


@dataclass(frozen=True)
class TrainConfig:
    """One model on one task, for every point of a grid: learning rates, seeds and what else varies.

    The axes of the grid (`AXES`) are tuples of values, and every combination is a member. They are
    arguments of one compiled program; all else is compiled in. A new axis is one more field made by
    `dsfjax.training.axes.axis`, which says what it is, and the line that uses a member's value.

    Attributes:
        task: The task.
        model: The model; what it reads and answers is what the task shows and asks (`fitted`). Or
            one of another kind, `dsfjax.nn.Buildable`.
        optimizer: AdamW and its schedule.
        batch_size: Examples per step and member.
        accumulate: Parts of a batch that are computed one after the other, with the memory of one
            part; a divisor of ``batch_size``.
        steps: Training steps, a multiple of ``eval_every``.
        eval_every: Steps between evaluations.
        eval_examples: Held-out examples per evaluation, the same each time and for each member.
        stop_at: Held-out score from which a member is solved and stops, or None. By default 0.999
            of an accuracy, and None of other metrics, on whose scales no number means "solved".
        stop_when: End the run when "all_members" have stopped, or already when "one_rate" (one
            point of all axes but the seeds) has all its seeds solved: then no other can do better.
        patience: Evaluations without a lower held-out loss after which a member stops, or None.
        shared_data: Whether all members see the same batches; by default each seed has its own.
        train_examples: Size of a fixed data set, seen in the same order in every epoch, whose last
            batch may be smaller; by default every step draws new examples.
        checkpoint_every: Evaluations between checkpoints; the last step always has one.
        imports: Modules that make the architecture and the task known; read again with the config.
        probe_every: Steps between looks inside the models (:mod:`dsfjax.training.probes`), a
            multiple of ``eval_every``; None for none.

    Raises:
        ValueError: If the parts do not fit each other.

    Examples:
        >>> from dsfjax import tasks
        >>> task = tasks.get(tasks.names()[0], vocab_size=64, seq_len=32)
        >>> model = ModelConfig("ssd", vocab_size=64)
        >>> TrainConfig(task, model, steps=250, eval_every=100)
        Traceback (most recent call last):
            ...
        ValueError: expected steps to be a multiple of eval_every = 100, got 250; nearest: 200
    """

    task: Task
    model: ModelConfig | Buildable
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    batch_size: int = 64
    steps: int = 1000
    eval_every: int = 100
    eval_examples: int = 512
    seeds: tuple[int, ...] = axis(
        "seed",
        "Seed of initialisation, data and dropout.",
        kind=int,
        default=(0,),
        flag="seeds",
        one="seed",
        expected="{} in [0, 2^31)",
        holds=lambda seed: 0 <= seed < 2**31,
    )
    learning_rates: tuple[float, ...] = axis(
        "learning_rate",
        "Peak learning rate.",
        kind=float,
        default=(1e-3,),
        flag="lrs",
        one="lr",
        expected="positive {}",
        holds=positive,
    )
    weight_decays: tuple[float, ...] = axis(
        "weight_decay",
        "Decoupled weight decay.",
        kind=float,
        absent="weight_decay",
        expected="{} >= 0",
        holds=at_least_0,
    )
    init_scales: tuple[float, ...] = axis(
        "init_scale",
        "Factor on the initial weight matrices: not on biases, norms or rates.",
        kind=float,
        default=(1.0,),
        expected="positive {}",
        holds=positive,
    )
    dropouts: tuple[float, ...] = axis(
        "dropout",
        "Dropout rate, wherever the model's own is not 0.",
        kind=float,
        expected="{} in [0, 1)",
        holds=lambda rate: 0 <= rate < 1,
    )
    stop_at: float | None = _SOLVED
    stop_when: str = "all_members"
    patience: int | None = None
    shared_data: bool = False
    train_examples: int | None = field(default=None, metadata=serial.LATER)
    checkpoint_every: int = 5
    accumulate: int = field(default=1, metadata=serial.LATER)
    probe_every: int | None = field(default=None, metadata=serial.LATER)
    imports: tuple[str, ...] = field(default=(), metadata=serial.LATER)

    def __post_init__(self) -> None:
        if self.stop_at is _SOLVED:
            object.__setattr__(self, "stop_at", 0.999 if self.task.metric == ACCURACY else None)
        convert_fields(self)
        for name in INTERFACE:
            wanted, found = getattr(self.task, name), getattr(self.model, name)
            if found != wanted:
                raise ValueError(f"expected model.{name} = task.{name} = {wanted}, got {found}")
        if self.model.max_length and self.model.max_length < self.task.seq_len:
            raise ValueError(
                f"expected model.max_length of 0 (no learned positions) or at least "
                f"task.seq_len = {self.task.seq_len}, got {self.model.max_length}"
            )
        for name in (
            "batch_size",
            "steps",
            "eval_every",
            "eval_examples",
            "checkpoint_every",
            "accumulate",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} >= 1, got {getattr(self, name)}")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"expected accumulate to divide batch_size = {self.batch_size}, got "
                f"{self.accumulate}"
            )
        if self.steps % self.eval_every:
            nearest = max(1, round(self.steps / self.eval_every)) * self.eval_every
            raise ValueError(
                f"expected steps to be a multiple of eval_every = {self.eval_every}, "
                f"got {self.steps}; nearest: {nearest}"
            )
        for one in AXES:
            check(one, getattr(self, one.field))
        places = ("embed_dropout", "residual_dropout", "attention_dropout")
        if self.dropouts and not any(getattr(self.model, name) for name in places):
            raise ValueError(
                f"expected a model with dropout to vary its rate, got {self.dropouts} and none; "
                f"say where with a positive rate: {', '.join(places)}"
            )
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"expected patience >= 1 or None, got {self.patience}")
        if self.train_examples is not None and self.train_examples < 1:
            raise ValueError(f"expected train_examples >= 1 or None, got {self.train_examples}")
        self._check_sizes()
        if self.probe_every is not None:
            _ = self.architecture
        if self.probe_every is not None and (
            self.probe_every < 1 or self.probe_every % self.eval_every
        ):
            raise ValueError(
                f"expected probe_every to be a positive multiple of eval_every = "
                f"{self.eval_every} or None, got {self.probe_every}"
            )
        if self.stop_at is not None and self.task.metric.percent and not 0 < self.stop_at <= 1:
            raise ValueError(f"expected stop_at in (0, 1] or None, got {self.stop_at}")
        choose("stop_when", self.stop_when, STOP_WHEN)
        if self.optimizer.warmup_steps >= self.steps:
            raise ValueError(
                f"expected optimizer.warmup_steps below steps = {self.steps}, "
                f"got {self.optimizer.warmup_steps}"
            )

    def _check_sizes(self) -> None:
        """A data set has so many examples; one that is made has as many as a run wants."""
        for split, name in ((TRAIN, "batch_size"), (HELD_OUT, "eval_examples")):
            most = self.task.size(split)
            if most is not None and getattr(self, name) > most:
                raise ValueError(
                    f"expected {name} of at most {most}, the examples of split {split!r}, "
                    f"got {getattr(self, name)}"
                )
        if self.train_examples is not None and self.task.size(TRAIN) is not None:
            raise ValueError(
                "expected train_examples None for a task with a training set of "
                f"{self.task.size(TRAIN)} examples, got {self.train_examples}"
            )

    @property
    def architecture(self) -> ModelConfig:
        """The model, for what looks inside of our architectures.

        Raises:
            ValueError: If it is of another kind.
        """
        if isinstance(self.model, ModelConfig):
            return self.model
        raise ValueError(
            f"expected a run of one of our architectures, got one of {self.model.mixer}, which "
            "reports and probes do not look into"
        )

    @property
    def members(self) -> "tuple[Member, ...]":
        """Every point of the grid, seeds running fastest."""
        own: dict[str, Sequence[Any]] = {}
        for one in AXES:
            absent = getattr(self.optimizer, one.absent) if one.absent else None
            own[one.field] = getattr(self, one.field) or (absent,)
        return grid(**own)

    @property
    def fingerprint(self) -> str:
        """A name of eight characters that no other config has."""
        return hashlib.sha256(to_json(self).encode()).hexdigest()[:8]


AXES = axes_of(TrainConfig)
"""The axes of a grid, the one that runs fastest last."""

Member = NamedTuple("Member", [(one.name, Any) for one in AXES])  # type: ignore[misc]
"""One point of the grid: a value of each axis, None where members have none of their own."""


def grid(**values: Sequence[Any]) -> tuple[Member, ...]:
    """Every combination of the values of each axis, seeds running fastest.

    Args:
        **values: Values of axes, by the field of `TrainConfig`. An axis that is not named has the
            default of that field, or that of the optimiser, or one None.

    Returns:
        The members.

    Raises:
        ValueError: If there is no such axis; the nearest is named.

    Examples:
        >>> [member.seed for member in grid(learning_rates=[0.5, 0.25], seeds=[0, 1])]
        [0, 1, 0, 1]
    """
    for name in values:
        choose("axis", name, [one.field for one in AXES])
    defaults: dict[str, Any] = {each.name: each.default for each in fields(TrainConfig)}
    optimizer = OptimizerConfig()

    def of(one: Axis) -> Sequence[Any]:
        absent = getattr(optimizer, one.absent) if one.absent else None
        return values.get(one.field) or defaults[one.field] or (absent,)

    return tuple(Member(*point) for point in itertools.product(*map(of, AXES)))


def to_json(config: TrainConfig) -> str:
    """A config as JSON text.

    Args:
        config: The config.

    Returns:
        Indented JSON that :func:`from_json` reads back to an equal config.
    """
    return json.dumps(serial.to_dict(config), indent=2) + "\n"


def from_json(text: str) -> TrainConfig:
    """Read a config from JSON text.

    Args:
        text: JSON, as :func:`to_json` writes it; fields with a default may be absent.

    Returns:
        The config.

    Raises:
        ValueError: If a key is unknown (the nearest is named), missing, or does not fit.
        TypeError: If a value has the wrong type.

    Examples:
        >>> from dsfjax import tasks
        >>> task = tasks.get(tasks.names()[0], vocab_size=64, seq_len=32)
        >>> config = TrainConfig(task, ModelConfig(mixer="ssd", vocab_size=64))
        >>> from_json(to_json(config)) == config
        True
    """
    data = json.loads(text)
    if isinstance(data, dict):
        extensions.load(serial.strings(data.get("imports", ()), "config.imports"))
    return serial.from_dict(TrainConfig, data)
