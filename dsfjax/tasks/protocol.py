"""The protocol of a task: what training, reports and commands know of it, and all they know."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, Shaped

from dsfjax.tasks import stream
from dsfjax.tasks.data.declared import provenance
from dsfjax.tasks.metric import ACCURACY, Baseline, Metric

TRAIN, HELD_OUT = "train", "held_out"
"""The splits that training draws from and is judged on."""


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
            tasks share.
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


def shuffled(key: PRNGKeyArray, index: Int[Array, " count"], size: int) -> Int[Array, " count"]:
    r"""Entries of a random permutation of ``size`` rows, without the rest of it.

    A step of training needs a batch of the epoch's order; to shuffle all rows for it takes longer
    than a small model's step. This is the swap-or-not shuffle: in every round each x has a partner,
    :math:`x' = k_r - x` modulo the size, and a random bit of the pair says whether both change
    places. So each round is a permutation, of any size.

    Args:
        key: Key of the permutation.
        index: Places in it, int32.
        size: Number of rows.

    Returns:
        The rows at these places, int32.

    Numerics:
        O(count · log size); four rounds for every bit of the size.

    References:
        Hoang, Morris and Rogaway (2012), arXiv:1208.1176.

    Example:
        >>> sorted(shuffled(jax.random.key(0), jnp.arange(7, dtype=jnp.int32), 7).tolist())
        [0, 1, 2, 3, 4, 5, 6]
    """
    rounds = 4 * size.bit_length()
    offset_key, bit_key = jax.random.split(key)
    offsets = jax.random.randint(offset_key, (rounds,), 0, size, jnp.int32)
    masks = jax.random.bits(bit_key, (rounds,), jnp.uint32)

    def swap(r: Array, x: Array) -> Array:
        partner = offsets[r] - x
        partner = jnp.where(partner < 0, partner + size, partner)
        # The finaliser of MurmurHash3: each bit depends on all of those that come in.
        bits = jnp.maximum(x, partner).astype(jnp.uint32) ^ masks[r]
        bits = (bits ^ bits >> 16) * jnp.uint32(0x85EBCA6B)
        bits = (bits ^ bits >> 13) * jnp.uint32(0xC2B2AE35)
        return jnp.where(bits >> 31, partner, x)

    return jax.lax.fori_loop(0, rounds, swap, index)


class Task(abc.ABC):
    """A task: where its examples come from, what is asked, and how an answer is judged.

    **You write** a frozen dataclass below `Generated` (examples are made on the device) or
    `Resident` (a data set that fits on the device). Its fields are the task's options: numbers and
    strings with defaults; `option` adds a help text. It says what it is with these attributes,
    which may be fields, class attributes or properties:

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
    that are only reported.

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


class Generated(Task):
    """A task whose examples are made on the device, inside the compiled loop; they never end.

    You write `sample`. Held-out examples have keys that no training step uses.
    """

    @abc.abstractmethod
    def sample(self, key: PRNGKeyArray) -> Example:
        """Draw one example; pure, and called under ``jit`` and ``vmap``.

        Args:
            key: PRNG key.
        """

    def lengthened(self, factor: int) -> Generated:
        """The task on sequences ``factor`` times as long, of the same vocabulary.

        Whether a model that was trained on short sequences solves long ones is asked of it.

        Args:
            factor: How many times as long; 1 for the task itself.

        Raises:
            ValueError: If it has no such length.
        """
        if not any(field.name == "seq_len" for field in dataclasses.fields(self)):  # type: ignore[arg-type]
            raise ValueError(
                f"{type(self).__name__}: expected a field seq_len to change, found none; write "
                "lengthened(factor)."
            )
        return dataclasses.replace(self, seq_len=factor * self.seq_len)  # type: ignore[type-var]

    def arrays(self, split: str) -> PyTree:
        """Nothing: there is no data set."""
        del split
        return ()

    def size(self, split: str) -> int | None:
        """None: the examples never end."""
        del split
        return None

    def picks(self, key: PRNGKeyArray, step: Int[Array, ""], count: int) -> Array:
        """A key per example."""
        return jax.random.split(jax.random.fold_in(key, step), count)

    def held_out(self, key: PRNGKeyArray, index: Int[Array, ""]) -> Array:
        """The key of a held-out example."""
        return jax.random.fold_in(key, index)

    def example(self, pick: Array, data: PyTree) -> Example:
        """The example of a key."""
        del data
        return self.sample(pick)


class Resident(Task):
    """A task with a data set that fits on the device: its arrays are arguments of the program.

    You write `arrays` and `read`. Every epoch goes through the training split in an order of its
    own, drawn from the run's key; what is left at the end of an epoch is too little for a batch
    and is passed over.

    With ``streamed`` set (make it an option), the training split stays on the host, and grain sends
    the rows of a block of steps in a shuffled order. That order is the same for all members of a
    program, whatever their seeds; it depends on the step alone, so that a run resumes anywhere.
    """

    @abc.abstractmethod
    def read(self, row: PyTree) -> Example:
        """The example of one row of `arrays`; pure, and called under ``jit`` and ``vmap``.

        Args:
            row: `arrays` without their first axis.
        """

    def size(self, split: str) -> int | None:
        """Number of rows."""
        return len(jax.tree.leaves(self.arrays(split))[0])

    def row(self, arrays: PyTree, index: int) -> PyTree:
        """A row on the host, as `read` takes it.

        Args:
            arrays: What `arrays` gave.
            index: Its number, from 0.
        """
        return jax.tree.map(lambda rows: np.asarray(rows[index]), arrays)

    def block(self, step: int, steps: int, count: int) -> PyTree:
        """The training split; if ``streamed``, the rows of these steps, one after the other."""
        if not self.streamed:
            return self.arrays(TRAIN)
        rows = list(stream.rows(self, step * count, (step + steps) * count))
        return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)

    def picks(self, key: PRNGKeyArray, step: Int[Array, ""], count: int) -> Array:
        """Indices of rows."""
        if self.streamed:
            return step * count + jnp.arange(count, dtype=step.dtype)
        size = self.size(TRAIN) or 0
        per_epoch = size // count
        own = jax.random.fold_in(key, step // per_epoch)
        return shuffled(own, step % per_epoch * count + jnp.arange(count, dtype=jnp.int32), size)

    def held_out(self, key: PRNGKeyArray, index: Int[Array, ""]) -> Array:
        """The index itself."""
        del key
        return index

    def example(self, pick: Array, data: PyTree) -> Example:
        """The example of an index."""
        return self.read(jax.tree.map(lambda rows: rows[pick], data))

    def drawn(self, pick: Array, data: PyTree) -> Example:
        """The example of an index; if ``streamed``, of a row that was sent for this block."""
        if not self.streamed:
            return self.example(pick, data)
        # Blocks begin at multiples of their size, so the rows that were sent begin at such a pick.
        return self.read(jax.tree.map(lambda rows: rows[pick % len(rows)], data))


class Windows(Resident):
    """A task whose examples are stretches of long arrays, such as a text or a series of values.

    You write `arrays`, whose leaves have time as their first axis, ``window``, the steps of an
    example with all that is asked about it, and `read` of one such stretch. An epoch has every
    window once, in an order of its own. Held-out windows come in a fixed random order, so the first
    few are a fair sample of all.
    """

    window: int
    stride: int = 1

    def size(self, split: str) -> int | None:
        """Number of windows."""
        steps = len(jax.tree.leaves(self.arrays(split))[0])
        return max(0, (steps - self.window) // self.stride + 1)

    def held_out(self, key: PRNGKeyArray, index: Int[Array, ""]) -> Array:
        """The number of a window."""
        del key
        order = np.random.default_rng(0).permutation(self.size(HELD_OUT) or 0)
        return jnp.asarray(order, jnp.int32)[index]

    def row(self, arrays: PyTree, index: int) -> PyTree:
        """A window on the host."""
        own = slice(index * self.stride, index * self.stride + self.window)
        return jax.tree.map(lambda leaf: np.asarray(leaf[own]), arrays)

    def example(self, pick: Array, data: PyTree) -> Example:
        """The example of a window."""
        first = pick * self.stride
        return self.read(
            jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, self.window), data)
        )


def examples(
    task: Task, split: str, count: int, key: PRNGKeyArray, data: PyTree | None = None
) -> Example:
    """The first held-out or training examples, as a batch on the device.

    Args:
        task: The task.
        split: `TRAIN` or `HELD_OUT`.
        count: How many.
        key: Key of the held-out examples, or of the data of a run.
        data: `Task.arrays` of the split, where a compiled program has them as an argument; by
            default they become constants.

    Returns:
        A batch of ``count``.
    """
    if split == TRAIN:
        picks = task.picks(key, jnp.zeros((), jnp.int32), count)
    else:
        picks = jax.vmap(lambda index: task.held_out(key, index))(jnp.arange(count))
    if data is None:
        data = jax.tree.map(lambda rows: jnp.asarray(np.asarray(rows)), task.arrays(split))
    return jax.vmap(lambda pick: task.example(pick, data))(picks)
