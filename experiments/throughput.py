"""What this library does faster than what one would write in its place, measured in one run.

* A grid of learning rates and seeds on resident data as one program, next to its members one after
  another by the same loop.
* The input pipeline of every streamed task, next to the training step that it feeds.
* Language training on documents that share windows, next to a padded window for each.
* A training step of S4D, next to the same model with a scan or a convolution written by hand.

    python -m experiments.throughput --data-dir FOLDER --scale small

How it is measured: `experiments.comparison`.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from dsfjax import nn, tasks
from dsfjax._util import limits
from dsfjax.nn import ModelConfig
from dsfjax.tasks import TRAIN, Example, Task, examples
from dsfjax.training import TrainConfig, optimizer, presets
from dsfjax.training.config import fitted
from dsfjax.training.devices import WHOLE, Layout, layout
from dsfjax.training.objective import own
from dsfjax.training.program import training_data
from dsfjax.training.runs import program_of
from dsfjax.training.step import TrainState, init_state, train_step
from experiments import by_hand
from experiments.comparison import Comparison, Row, Seconds
from experiments.step_time import our_block

TIMED: Any = {
    "stop_at": None,
    "steps": 10**6,
    "eval_examples": 1,
    "schedule": "constant",
    "seeds": (0,),
    "learning_rates": (1e-3,),
}
"""Settings of runs that are timed: one member that does not end and evaluates next to nothing."""


class Sizes(NamedTuple):
    """What is measured at a scale.

    Attributes:
        classifier: Task and settings of the grid of rates and seeds.
        streamed: Name of a row to the settings of a streamed language task.
        documents: Settings of training on documents.
        windows: Lengths of their windows.
        tokens: Tokens of a batch of them, whatever the length.
        images: Task, and settings of the S4D model.
        batch: Images of a batch.
    """

    classifier: tuple[str, dict[str, Any]]
    streamed: dict[str, dict[str, Any]]
    documents: dict[str, Any]
    windows: tuple[int, ...]
    tokens: int
    images: tuple[str, dict[str, Any]]
    batch: int


_GRID = {"learning_rates": (1e-3, 3e-3, 1e-2), "seeds": (0, 1, 2, 3)}
# A text, its tokens, and steps of a block: fewer where a large vocabulary makes each take longer.
_TEXTS = (
    ("wikitext2", "bytes", 20),
    ("wikitext2", "words", 4),
    ("wikitext2", "bpe", 4),
    ("tinyshakespeare", "bytes", 20),
    ("imdb", "bytes", 20),
)
SIZES = {
    "small": Sizes(
        (
            "mnist",
            _GRID | {"pool": 1, "d_model": 32, "d_state": 16, "batch_size": 8, "eval_every": 4},
        ),
        # The smallest model of the presets: a larger one gives the pipeline more time.
        {
            f"{corpus}, {tokens}": {"corpus": corpus, "tokens": tokens, "eval_every": steps}
            for corpus, tokens, steps in _TEXTS
        },
        {"corpus": "imdb", "d_model": 64, "num_layers": 2, "eval_every": 4},
        (1024, 4096),
        16_384,
        ("cifar10", {"d_model": 128, "d_state": 16, "num_layers": 4}),
        8,
    ),
    "demo": Sizes(
        ("digits", _GRID | {"d_model": 8, "d_state": 4, "batch_size": 4, "eval_every": 2}),
        {"tinyshakespeare, bytes": {"corpus": "tinyshakespeare", "seq_len": 16, "eval_every": 2}},
        {"corpus": "imdb", "d_model": 8, "eval_every": 2},
        (64,),
        128,
        ("digits", {"d_model": 8, "d_state": 4, "num_layers": 1}),
        4,
    ),
}
"""Scale to sizes. Demo shows in a minute that everything runs."""


def resident_grid(sizes: Sizes, seconds: Seconds) -> Iterator[Row]:
    """Member-steps per second of a grid as one program, and of its members one after another."""
    task, settings = sizes.classifier
    made = presets.build(task, "ssd", _settings(task, settings))
    found = seconds({"ours": our_block(made), "apart": our_block(made, apart=True)})
    done = len(made.members) * made.eval_every
    rates, seeds = len(made.learning_rates), len(made.seeds)
    ours, apart = (done / found[name] for name in ("ours", "apart"))
    case = f"{made.task.title}, {rates} rates × {seeds} seeds, {jax.device_count()} devices"
    what = "one program against one member after another"
    yield Row(what, case, ours, apart, "member-steps/s", ours / apart, 1.3)


def pipelines(sizes: Sizes, seconds: Seconds) -> Iterator[Row]:
    """Batches per second that the host prepares, and that training takes."""
    for case, settings in sizes.streamed.items():
        settings = _settings("language", settings | {"streamed": True})
        made = presets.build("language", "linear_attention", settings)
        plan, block = program_of(made), made.eval_every
        places = itertools.count(0, block)

        def prepare(plan: Any = plan, places: Iterator[int] = places) -> None:
            training_data(plan, next(places))

        found = seconds({"pipeline": prepare, "training": our_block(made)})
        ours, step = (block / found[name] for name in ("pipeline", "training"))
        yield Row("input pipeline against training", case, ours, step, "batches/s", ours / step, 2)


def packing(sizes: Sizes, seconds: Seconds) -> Iterator[Row]:
    """Tokens per second that the loss counts, packed and padded."""
    for length in sizes.windows:
        rates, shares = {}, {}
        made: dict[str, TrainConfig] = {}
        for name, packed in (("packed", True), ("padded", False)):
            sized = {"seq_len": length, "batch_size": sizes.tokens // length, "packed": packed}
            settings = _settings("language", sizes.documents | sized)
            made[name] = presets.build("language", "ssd", settings)
            shares[name] = _counted(made[name].task)
        found = seconds({name: our_block(each) for name, each in made.items()})
        for name, each in made.items():
            rates[name] = sizes.tokens * each.eval_every * shares[name] / found[name]
        case = f"{made['packed'].task.title}, L = {length}, {shares['padded']:.0%} of padded count"
        # Windows that hold most documents whole, as the benchmarks of long texts have them.
        wanted = 2 if length == max(sizes.windows) else None
        ratio = rates["packed"] / rates["padded"]
        what = "packed against padded"
        yield Row(what, case, rates["packed"], rates["padded"], "tokens/s", ratio, wanted)


def _counted(task: Task) -> float:
    """Share of the tokens of training windows that the loss counts."""
    arrays = task.arrays(TRAIN)
    if not isinstance(arrays, dict):
        return 1.0
    return float(np.minimum(arrays["lengths"] - 1, task.seq_len).mean() / task.seq_len)


def s4d_step(sizes: Sizes, seconds: Seconds) -> Iterator[Row]:
    """Time and temporary memory of a training step of S4D by our engine, and by hand."""
    name, settings = sizes.images
    task = tasks.get(name)
    model = fitted(ModelConfig("s4d", vocab_size=1, block="mamba", **settings), task)
    batch = examples(task, TRAIN, sizes.batch, jax.random.key(0))
    methods = {"auto": "ours"} | {engine.name: engine.name for engine in by_hand.BY_HAND}
    with by_hand.named():
        steps = {
            title: Step(dataclasses.replace(model, method=method), batch)
            for method, title in methods.items()
        }
    mib = {title: step.temporary_bytes / 2**20 for title, step in steps.items()}
    steps = {k: step for k, step in steps.items() if step.temporary_bytes < 0.8 * limits.memory()}
    losses = {title: step() for title, step in steps.items()}
    if not np.allclose(list(losses.values()), losses["ours"], rtol=1e-3):
        raise RuntimeError(f"throughput: expected one loss of all, got {losses}")
    found = seconds({title: step.__call__ for title, step in steps.items()})
    case = f"{task.title}, S4D, " + ", ".join(f"{k} = {v}" for k, v in settings.items())
    case += f", batch {sizes.batch}"
    associative, convolution = (engine.name for engine in by_hand.BY_HAND)
    for other, wanted in ((associative, 5), (convolution, 1)):
        if other not in found:  # it does not fit into memory; its row below says how much it takes
            continue
        what, ratio = f"training step against {other}", found[other] / found["ours"]
        yield Row(what, case, 1e3 * found["ours"], 1e3 * found[other], "ms", ratio, wanted)
    for other, wanted in ((associative, 10), (convolution, None)):
        what, ratio = f"temporary memory against {other}", mib[other] / mib["ours"]
        yield Row(what, case, mib["ours"], mib[other], "MiB", ratio, wanted)


class Step:
    """A compiled training step, forward, backward and update, on one batch over and over.

    Attributes:
        temporary_bytes: On all devices, by the compiler's account.
    """

    def __init__(self, config: ModelConfig, batch: Example) -> None:
        model = nn.build(config)
        where = layout(1, jax.devices(), batch_size=len(batch.inputs))
        adamw = optimizer.build(
            optimizer.OptimizerConfig(schedule="constant"), 1e-3, labels=model.labels
        )

        def step(state: TrainState, batch: Example) -> tuple[TrainState, PyTree]:
            axis = where.examples
            part = jax.tree.map(lambda leaf: own(leaf, axis), batch)
            return train_step(state, part, model=model, optimizer=adamw, axis_name=axis)

        state = jax.jit(lambda key: init_state(model, adamw, key))(jax.random.key(0))
        self._batch, self._state = _whole(where, batch), _whole(where, state)
        split = where.split(step, (WHOLE, WHOLE), (WHOLE, WHOLE))
        lowered = jax.jit(split, donate_argnums=0).lower(self._state, self._batch)
        self._step: Any = lowered.compile()
        temporary = self._step.memory_analysis().temp_size_in_bytes
        self.temporary_bytes = temporary * len(where.devices)

    def __call__(self) -> float:
        """Take a step; the loss before it."""
        self._state, metrics = self._step(self._state, self._batch)
        return float(metrics["loss"])


def _whole(where: Layout, tree: PyTree) -> PyTree:
    """A copy on each of the devices, PRNG keys among it."""
    return jax.device_put(tree, where.sharding(WHOLE))


def _settings(task: str, own: dict[str, Any]) -> dict[str, Any]:
    return dict(presets.get("demo", task).settings) | TIMED | own


PARTS = {"grid": resident_grid, "pipeline": pipelines, "packing": packing, "s4d": s4d_step}
COMPARISON = Comparison("throughput", __doc__, PARTS, SIZES)

if __name__ == "__main__":
    COMPARISON.main()
