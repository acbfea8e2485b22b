"""The protocol of a task: what training, reports and commands know of it, and all they know."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, Shaped

from dsfjax.tasks.data.declared import provenance
from dsfjax.tasks.metric import ACCURACY, Baseline, Metric

TRAIN, HELD_OUT = "train", "held_out"
"""The splits that training draws from and is judged on."""

DEMANDS = {
    "recall": "find what belongs to a token that came before",
    "copying": "repeat a part of the sequence, or all of it",
    "state-tracking": "keep a state that every token changes",
    "memorization": "keep facts in the parameters",
    "smoothing": "add up many weak or noisy values",
    "classification": "give one answer about a whole sequence",
    "language": "predict a text",
    "forecasting": "predict the values that follow",
}
"""What a task may demand of a model, in words. Tasks with a demand in common are neighbours."""


class Example(NamedTuple):
    """One sequence, or any leading batch axes of them, and what is asked about it.

    The queries are given by position, so that a loss computes logits at q positions instead of at
    all L. A task that asks one question about the whole sequence has one query, at the last step.

    Sequences of several lengths are padded on the right, with any values, and say their ``length``.
    Several documents in one sequence say in ``reset`` where each starts: nothing passes from one to
    the next. So a pair of texts is one sequence, the second right after the first.

    Attributes:
        inputs: Token ids (L,), or values (L, channels) of a task without a vocabulary.
        query_positions: Steps after which something is asked, (q,).
        targets: The answers, (q,): token ids or classes; or values, (q, …), where the task has
            ``num_outputs``.
        weights: Weight of each query in loss and metrics, (q,): 0 for one that only fills up; None
            for the same weight for all.
        reset: True where a document starts, (L,); None for one document.
        length: Number of steps that are not padding, (); None for all.
    """

    inputs: Shaped[Array, "*batch l"]
    query_positions: Int[Array, "*batch queries"]
    targets: Shaped[Array, ...]
    weights: Float[Array, "*batch queries"] | None = None
    reset: Bool[Array, "*batch l"] | None = None
    length: Int[Array, "*batch"] | None = None


class Preset(NamedTuple):
    """Settings that are known to work.

    Attributes:
        about: What it is for.
        settings: Field of the task, the model, the optimiser or the run to its value.
        mixers: The architectures to compare; empty for those of the preset of this name that all
            tasks share, or the paper's.
        own: Architecture to the settings in which it differs.
    """

    about: str = ""
    settings: Mapping[str, Any] = {}
    mixers: tuple[str, ...] = ()
    own: Mapping[str, Mapping[str, Any]] = {}


def option(default: Any, about: str) -> Any:
    """A field of a task with a help text for the command line.

    Args:
        default: Its default.
        about: One sentence.

    Returns:
        A dataclass field.
    """
    return dataclasses.field(default=default, metadata={"help": about})


def cross_entropy(
    logits: Float[Array, "*batch k"], targets: Int[Array, "*batch"]
) -> dict[str, Shaped[Array, "*batch"]]:
    r"""Cross-entropy and accuracy of each answer.

    .. math:: \log \sum_v e^{z_v} - z_y

    Args:
        logits: z, one row per query.
        targets: y, the right answers.

    Returns:
        ``loss`` and ``accuracy`` (whether the largest logit is the target) of every query.
    """
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return {
        "loss": jax.nn.logsumexp(logits, axis=-1) - chosen,
        "accuracy": logits.argmax(axis=-1).astype(targets.dtype) == targets,
    }


class Task(abc.ABC):
    """A task: where its examples come from, what is asked, and how an answer is judged.

    **You write** a frozen dataclass below `dsfjax.tasks.Generated` (examples are made on the
    device), `dsfjax.tasks.Resident` (a data set that fits on the device) or `dsfjax.tasks.Windows`
    (stretches of one). Its fields are the task's options: numbers and strings with defaults;
    `option` adds a help text. It says what it is with these attributes, which may be fields, class
    attributes or properties:

    * ``title``: its name in a heading.
    * ``seq_len``: L, steps of a sequence.
    * ``vocab_size`` for token ids, or ``channels`` for sequences of values.
    * ``num_classes`` if the question is about the whole sequence: a class from pooled features;
      with ``num_documents`` = 2, about a pair of documents in one sequence.
    * ``num_outputs`` if every query asks for values: how many. `measure` and `baselines` are then
      the task's own.
    * ``num_decoded`` if the whole sequence is to be put into its last features: how many tokens a
      decoder makes of them. Its one query has them all as the answer, and `measure` is the task's
      own.

    With none of them every query asks for a token.

    It may add ``baselines``, ``sources``, ``describe``, ``measure`` and ``presets``, and with a
    ``measure`` of its own ``metric``, by which models are compared, and ``also``, further metrics
    that are only reported. ``demands`` says what it takes, such as ("recall",): `DEMANDS` has the
    words, and others are allowed. By them `dsfjax recommend` finds tasks that are alike.

    **You get**, after ``dsfjax.tasks.register(name, YourTask)``: ``dsfjax train name`` with an
    option per field, compiled sweeps, checkpoints, probes, the report with its baselines, and the
    contract tests. Nothing in the package has to be edited. A task in a module of your own is made
    known with ``--import your_module``.

    A data set that does not fit is ``streamed``: the host sends what a block of steps reads.
    """

    title: str = ""
    seq_len: int
    vocab_size: int = 0
    channels: int = 0
    num_classes: int = 0
    num_outputs: int = 0
    num_decoded: int = 0
    num_documents: int = 1
    streamed: bool = False
    metric: ClassVar[Metric] = ACCURACY
    also: ClassVar[tuple[Metric, ...]] = ()
    presets: ClassVar[Mapping[str, Preset]] = {}
    demands: ClassVar[tuple[str, ...]] = ()
    data_sets: ClassVar[tuple[str, ...]] = ()
    """Data sets that it reads, one or another of them as its options say (`dsfjax.tasks.data`)."""

    @abc.abstractmethod
    def arrays(self, split: str) -> PyTree:
        """The data of a split as NumPy arrays with one row per example; () if there are none.

        They are arguments of the compiled program, so that it holds no copy of them.

        Args:
            split: `TRAIN` or `HELD_OUT`.
        """

    def block(self, step: int, steps: int, count: int) -> PyTree:
        """What a compiled program reads its training examples from, for a block of steps.

        The same for all blocks, and sent to the device once, unless the task is ``streamed``.

        Args:
            step: The first step of the block.
            steps: Steps of the block.
            count: Examples of a batch.
        """
        del step, steps, count
        return self.arrays(TRAIN)

    @abc.abstractmethod
    def size(self, split: str) -> int | None:
        """Number of examples of a split; None where they never end.

        Args:
            split: `TRAIN` or `HELD_OUT`.
        """

    @abc.abstractmethod
    def picks(self, key: PRNGKeyArray, step: Int[Array, ""], count: int) -> Array:
        """Which examples a training step sees, one entry along the first axis for each.

        Devices that divide a batch divide these entries, and each makes its own examples of them.

        Args:
            key: Key of the data of a run, the same at every step.
            step: The step.
            count: Examples of a batch.
        """

    @abc.abstractmethod
    def held_out(self, key: PRNGKeyArray, index: Int[Array, ""]) -> Array:
        """The pick of a held-out example, the same for every run.

        Args:
            key: Key of all held-out examples.
            index: Its number, from 0.
        """

    @abc.abstractmethod
    def example(self, pick: Array, data: PyTree) -> Example:
        """One example.

        Args:
            pick: An entry of `picks`, or a `held_out` one.
            data: `arrays` of the split, on the device.
        """

    def drawn(self, pick: Array, data: PyTree) -> Example:
        """One training example.

        Args:
            pick: An entry of `picks`.
            data: What `block` gave, on the device.
        """
        return self.example(pick, data)

    def measure(
        self, outputs: Float[Array, "*batch k"], targets: Shaped[Array, ...]
    ) -> dict[str, Shaped[Array, "*batch"]]:
        """How each answer is judged: ``loss``, and a number for `metric` and each of `also`.

        Training and evaluation average them over the queries, with their weights.

        Args:
            outputs: What the model's head gives for every query, float32 or wider.
            targets: The answers.
        """
        return cross_entropy(outputs, targets)

    def baselines(self) -> dict[str, Baseline]:
        """What can be had without a model: "chance", "trivial" and, where it makes sense, "linear".

        "chance" is guessing; "trivial" the best answer that takes no memory of the sequence's
        order; "linear" a linear model of the whole input. Whoever claims that a model has learnt
        the task compares it with the better of the first two. A task that is not judged by its
        accuracy has none unless it says so.
        """
        choices = self.num_classes or self.vocab_size
        if self.metric.name != ACCURACY.name or not choices:
            return {}
        return {"chance": Baseline(1 / choices, f"guessing among all {choices} answers")}

    def measured(self) -> tuple[Metric, ...]:
        """Everything that it is judged by: `metric`, which decides, and `also`."""
        return (self.metric, *self.also)

    def trivial(self) -> Baseline:
        """The baseline that a model has to beat to have learnt anything.

        The worst score and no words where the task has no baselines.
        """
        known = self.baselines()
        some = [known[name] for name in ("trivial", "chance") if name in known]
        nothing = Baseline(self.metric.worst, "")
        return min(some, key=lambda each: self.metric.order(each.score), default=nothing)

    def sources(self, example: Example) -> Int[Array, " queries"] | None:
        """For each query the step whose token is the answer; None where no single step is.

        Figures follow the tokens at these steps and ring the pairs (query, source).

        Args:
            example: One example.
        """
        del example
        return None

    def provenance(self) -> str:
        """Which files the examples are made of, for the record of a run; "" if there are none."""
        return provenance(self.data_sets)

    def describe(self) -> str:
        """Its sizes in words, such as "L = 64, 4 key–value pairs"."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]  # every task is a dataclass
        return ", ".join(f"{f.name.replace('_', ' ')} {getattr(self, f.name)}" for f in fields)

    def slug(self) -> str:
        """Its sizes as part of a file's name."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return "-".join(f"{f.name.replace('_', '')}{getattr(self, f.name)}" for f in fields)
