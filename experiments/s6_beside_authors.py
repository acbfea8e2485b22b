"""The authors' S6 and ours, trained from the same weights on the same batches: the losses agree.

Two blocks of their code, with their recurrence and their initial weights: S6, the selective scan
alone, and Mamba, with its gate, short convolution and twice the width. Theirs runs in PyTorch with
their own reference of the scan, ours is `dsfjax.interop.language_model`, trained by the step that
every run of dsfjax takes. Ours is given their initial weights, theirs our batches, so whatever is
different in model, gradient, loss or optimiser shows as a difference of losses that grows.

    python -m experiments.s6_beside_authors --authors PATH_OF_A_CLONE_OF_DSF_MQAR

It needs PyTorch, einops and pydantic.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.table import Table

from dsfjax import interop
from dsfjax._util.limits import cores
from dsfjax.bench.peers.importing import load
from dsfjax.cli.output import console
from dsfjax.tasks import TRAIN, examples, mqar
from dsfjax.training import OptimizerConfig, optimizer
from dsfjax.training.step import DATA, TrainState, stream, train_step
from dsfjax.training.storage import environment, files
from experiments import authors

MIXERS: dict[str, dict[str, Any]] = {
    "s6": {"name": "s6"},
    "mamba": {"name": "mamba", "kwargs": {"expand": 2, "use_fast_path": False}},
}
"""Blocks to the mixers in them, as their configuration names them."""
SHOWN = 10
"""A loss in so many is written into the file."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to train.

    Attributes:
        authors: A clone of IntelligentControlSystems/dsf-mqar.
        mixers: "s6", "mamba" or both.
        steps: Training steps.
        seq_len: Length of a sequence; the vocabulary is twice as large.
        pairs: Key-value pairs.
        d_model: Width.
        batch_size: Examples per step.
        learning_rate: The rate of every step.
        dtype: What both compute in.
        out: A JSON file for the losses.
    """

    authors: Path
    mixers: tuple[str, ...] = tuple(MIXERS)
    steps: int = 300
    seq_len: int = 64
    pairs: int = 8
    d_model: int = 64
    batch_size: int = 2
    learning_rate: float = 3e-3
    dtype: Literal["float32", "float64"] = "float64"
    out: Path | None = None


def main(options: Options) -> None:
    """Train both and print how far the losses are apart.

    Args:
        options: The options.
    """
    jax.config.update("jax_enable_x64", options.dtype == "float64")
    if options.dtype == "float64":
        authors.compute_in_float64()
    rows = []
    table = Table("mixer", "first loss", "last loss", "largest difference", "at step")
    for mixer in options.mixers:
        losses = np.array(list(both(options, mixer)))
        apart = np.abs(losses[:, 0] - losses[:, 1])
        worst = int(apart.argmax())
        table.add_row(
            mixer, f"{losses[0, 0]:.4f}", f"{losses[-1, 0]:.4f}", f"{apart[worst]:.1e}", f"{worst}"
        )
        kept = {"ours": losses[::SHOWN, 0].tolist(), "theirs": losses[::SHOWN, 1].tolist()}
        found = {"largest_difference": float(apart[worst]), "at_step": worst}
        rows.append({"mixer": mixer, **found, "every": SHOWN, **kept})
    console().print(table)
    if options.out is not None:
        what = dataclasses.asdict(options)
        del what["authors"], what["out"], what["mixers"]
        what |= {"cores": cores(), "torch": load("torch").__version__, "rows": rows}
        files.write_json(options.out, what | {"environment": environment.describe()})


def both(options: Options, mixer: str) -> Iterator[tuple[float, float]]:
    """Train both models side by side.

    Args:
        options: The options.
        mixer: One of ``MIXERS``.

    Yields:
        The losses of a batch before the step on it, ours and theirs.
    """
    torch = load("torch")
    torch.manual_seed(0)
    task = mqar.MQARConfig(
        vocab_size=2 * options.seq_len, seq_len=options.seq_len, num_kv_pairs=options.pairs
    )
    keywords: dict[str, Any] = {
        "d_model": options.d_model,
        "d_qk": 16,
        "n_layers": 2,
        "vocab_size": task.vocab_size,
        "block_type": "MambaBlock",
        "max_position_embeddings": 0,
        "embed_dropout": 0.0,
        "sequence_mixer": MIXERS[mixer],
    }
    theirs = authors.language_model(options.authors, **keywords).to(getattr(torch, options.dtype))
    ours = interop.language_model(**keywords)
    weights = theirs.state_dict()
    params = ours.params({name: jnp.array(weights[name].numpy()) for name in ours.shapes})
    their_step = authors.stepping(theirs, options.learning_rate)
    adamw = optimizer.build(OptimizerConfig(schedule="constant"), options.learning_rate)
    key = jax.random.key(0)

    @jax.jit
    def step(state: TrainState) -> tuple[TrainState, jax.Array, Any]:
        batch = examples(task, TRAIN, options.batch_size, stream(key, DATA, state.step))
        state, metrics = train_step(state, batch, model=ours.model, optimizer=adamw)
        return state, metrics["loss"], (batch.inputs, mqar.labels(batch))

    state = TrainState(params, adamw.init(params), jnp.zeros((), jnp.int32), key)
    for _ in range(options.steps):
        state, loss, batch = step(state)
        tokens, labels = (np.asarray(part, np.int64) for part in batch)
        yield float(loss), their_step(tokens, labels)


if __name__ == "__main__":
    main(tyro.cli(Options, prog="python -m experiments.s6_beside_authors", description=__doc__))
