"""Training on sequences that are cut over devices; run by ``test_cut_sequences.py`` on eight."""

import dataclasses
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dsfjax.nn import ModelConfig
from dsfjax.tasks import Example, Generated
from dsfjax.training import Listener, OptimizerConfig, Resources, TrainConfig, load, train
from dsfjax.training.compilation import compiling, template
from dsfjax.training.devices import layout
from dsfjax.training.loop import run
from dsfjax.training.program import members
from dsfjax.training.runs import program_of
from tests.architectures import CARRY_MORE, PAPER, REPRESENTATIVES
from tests.training.small_config import CONFIG

ARCHITECTURES = [name for name in (*PAPER, *REPRESENTATIVES) if name not in CARRY_MORE]
"""One of every structure; `tests/nn/test_shards.py` has all, on one device for several."""
CUT = Resources(sequence_shards=4)
"""Of the eight devices; the other two divide the members or the batches."""


class Kill(Listener):
    """Ends a run after its first checkpoint."""

    def evaluated(self, name: str, lines: list[dict[str, Any]]) -> None:
        if lines[0]["step"] == CONFIG.eval_every:
            raise KeyboardInterrupt


def resumes(folder: Path) -> None:
    """A run that was cut over devices is that of one device, killed and continued on others too."""
    alone = train(CONFIG, folder / "alone", resources=Resources(1))
    whole = train(CONFIG, folder / "whole", resources=CUT)
    assert whole["devices"] == 8, whole
    for name, first, then in (("same", CUT, CUT), ("other", CUT, Resources(1))):
        try:
            train(CONFIG, folder / name, resources=first, listener=Kill())
            raise AssertionError("expected the run to be killed")
        except KeyboardInterrupt:
            train(CONFIG, folder / name, resources=then)
    expected = load(folder / "alone").params
    for name, tolerance in (("whole", 1e-9), ("other", 1e-9)):
        close(load(folder / name).params, expected, tolerance)
    close(load(folder / "same").params, load(folder / "whole").params, 0)
    assert [m["status"] for m in alone["members"]] == [m["status"] for m in whole["members"]]


def every_architecture(_: Path) -> None:
    """One step of each, with dropout: the parameters after it and the metrics before."""
    for mixer in ARCHITECTURES:
        model = ModelConfig(
            mixer, vocab_size=32, d_model=8, num_layers=1, d_state=4, residual_dropout=0.1
        )
        model = dataclasses.replace(model, surroundings="practice")
        config = dataclasses.replace(
            CONFIG, model=model, seeds=(0,), learning_rates=(1e-2,), steps=1, eval_every=1
        )
        plan, which, found = program_of(config), members(config.members), []
        for devices, shards in ((1, 1), (8, 4)):
            where = layout(1, jax.devices()[:devices], batch_size=4, shards=shards, quick=True)
            assert where.share * where.shards == devices
            (block,) = run(plan, which, 1, where=where)
            found.append((block.carry().states.params, block.metrics))
        # The first step of Adam is that of signs: rounding of gradients near 0 shows enlarged.
        close(found[0], found[1], 1e-6)
        print(mixer, flush=True)


@dataclasses.dataclass(frozen=True)
class Noise(Generated):
    """Random tokens, of which each is to tell the next: a language model's shapes."""

    seq_len: int = 1024
    vocab_size: int = 50_257

    def sample(self, key: jax.Array) -> Example:
        ids = jax.random.randint(key, (self.seq_len + 1,), 0, self.vocab_size, jnp.int32)
        return Example(ids[:-1], jnp.arange(self.seq_len, dtype=jnp.int32), ids[1:])


def language_model(_: Path) -> None:
    """A training step with 70 million parameters compiles, of abstract arrays alone."""
    task = Noise()
    model = ModelConfig(
        "ssd",
        vocab_size=task.vocab_size,
        d_model=512,
        num_layers=12,
        num_heads=8,
        surroundings="practice",
        remat=True,
    )
    config = TrainConfig(task, model, OptimizerConfig(), batch_size=8, steps=1, eval_every=1)
    config = dataclasses.replace(config, eval_examples=8)
    plan = program_of(config)
    params = template(plan, 1).states.params
    where = layout(1, jax.devices(), batch_size=8, shards=4, quick=True)
    assert (where.share, where.shards) == (2, 4)
    compiled = compiling(plan, where).result()
    found = {
        "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(params)),
        "bytes of a device": compiled.bytes,
        "seconds": compiled.seconds,
        "processor seconds": time.process_time(),
    }
    print(json.dumps(found), flush=True)


def close(found: Any, expected: Any, tolerance: float) -> None:
    """Largest difference over largest entry, of every leaf."""
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        one, other = np.asarray(one, float), np.asarray(other, float)
        assert np.abs(one - other).max() <= tolerance * np.abs(other).max(), (one, other)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        globals()[sys.argv[1]](Path(scratch))
