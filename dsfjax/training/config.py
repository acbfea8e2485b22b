"""What a run is: task, model, optimiser, and the members trained together."""

import json
import math
from dataclasses import dataclass, field

from dsfjax.nn import ModelConfig
from dsfjax.tasks.mqar import MQARConfig
from dsfjax.training import serial
from dsfjax.training.choice import choose
from dsfjax.training.optimizer import OptimizerConfig

STOP_WHEN = ("all_members", "one_rate")


@dataclass(frozen=True)
class TrainConfig:
    """One mixer on one task, for every learning rate with every seed.

    Attributes:
        task: The task.
        model: The model; its vocabulary is the task's.
        optimizer: AdamW and its schedule.
        batch_size: Examples per step and member.
        steps: Training steps, a multiple of ``eval_every``.
        eval_every: Steps between evaluations.
        eval_examples: Held-out examples per evaluation, the same each time and for each member.
        seeds: Seeds of initialisation, data and dropout.
        learning_rates: Peak learning rates.
        stop_at: Held-out accuracy from which a member is solved and stops, or None.
        stop_when: End the run when "all_members" have stopped, or already when "one_rate" has all
            its seeds solved: then no other rate can do better.
        shared_data: Whether all members see the same batches; by default each seed has its own.
        checkpoint_every: Evaluations between checkpoints; the last step always has one.

    Raises:
        ValueError: If the parts do not fit each other.

    Examples:
        >>> task, model = MQARConfig(vocab_size=64, seq_len=32), ModelConfig("ssd", vocab_size=64)
        >>> TrainConfig(task, model, steps=250, eval_every=100)
        Traceback (most recent call last):
            ...
        ValueError: expected steps to be a multiple of eval_every = 100, got 250; nearest: 200
    """

    task: MQARConfig
    model: ModelConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    batch_size: int = 64
    steps: int = 1000
    eval_every: int = 100
    eval_examples: int = 512
    seeds: tuple[int, ...] = (0,)
    learning_rates: tuple[float, ...] = (1e-3,)
    stop_at: float | None = 0.999
    stop_when: str = "all_members"
    shared_data: bool = False
    checkpoint_every: int = 5

    def __post_init__(self) -> None:
        if self.model.vocab_size != self.task.vocab_size:
            raise ValueError(
                f"expected model.vocab_size = task.vocab_size = {self.task.vocab_size}, "
                f"got {self.model.vocab_size}"
            )
        if self.model.max_length and self.model.max_length < self.task.seq_len:
            raise ValueError(
                f"expected model.max_length of 0 (no learned positions) or at least "
                f"task.seq_len = {self.task.seq_len}, got {self.model.max_length}"
            )
        for name in ("batch_size", "steps", "eval_every", "eval_examples", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} >= 1, got {getattr(self, name)}")
        if self.steps % self.eval_every:
            nearest = max(1, round(self.steps / self.eval_every)) * self.eval_every
            raise ValueError(
                f"expected steps to be a multiple of eval_every = {self.eval_every}, "
                f"got {self.steps}; nearest: {nearest}"
            )
        for name in ("seeds", "learning_rates"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"expected distinct {name}, at least one, got {values}")
        if not all(0 <= seed < 2**31 for seed in self.seeds):
            raise ValueError(f"expected seeds in [0, 2^31), got {self.seeds}")
        if not all(rate > 0 and math.isfinite(rate) for rate in self.learning_rates):
            raise ValueError(f"expected positive learning_rates, got {self.learning_rates}")
        if self.stop_at is not None and not 0 < self.stop_at <= 1:
            raise ValueError(f"expected stop_at in (0, 1] or None, got {self.stop_at}")
        choose("stop_when", self.stop_when, STOP_WHEN)
        if self.optimizer.warmup_steps >= self.steps:
            raise ValueError(
                f"expected optimizer.warmup_steps below steps = {self.steps}, "
                f"got {self.optimizer.warmup_steps}"
            )


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
        >>> task = MQARConfig(vocab_size=64, seq_len=32)
        >>> config = TrainConfig(task, ModelConfig(mixer="ssd", vocab_size=64))
        >>> from_json(to_json(config)) == config
        True
    """
    return serial.from_dict(TrainConfig, json.loads(text))
