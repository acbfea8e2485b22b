"""How a model is trained at each scale: the same call, another :class:`TrainConfig`.

* ``demo`` learns nothing; it shows in seconds that everything runs.
* ``small`` fits four CPU cores: short sequences, a vocabulary twice their length, 2,000 steps
  of 16 sequences, and the short convolutions of practice, without which the paper's mixers take far
  longer to find recall.
* ``paper`` is the configuration of the authors' code: AdamW with weight decay on everything, a
  cosine stepped once per epoch, 64 epochs of the same 100,000 examples in the same order, dropout,
  their initial values, biases and blocks. The examples have the law of theirs, not their very
  numbers.
"""

import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from dsfjax.nn import ModelConfig
from dsfjax.tasks.mqar import MQARConfig
from dsfjax.training import OptimizerConfig, TrainConfig

Scale = Literal["demo", "small", "paper"]
Task = tuple[int, int]
"""Length of a sequence and number of key-value pairs."""

ATTENTION = ("softmax_attention", "linear_attention", "normalized_attention")
RECURRENT = ("qlstm", "qlstm_reversed", "rg_lru")
FEW_STATES = (*RECURRENT, "lstm", "gru")
"""Those with a number or two per channel for a state."""
TRAIN_EXAMPLES, EPOCHS = 100_000, 64
BATCH_SIZES = {64: 512, 128: 256, 256: 128, 512: 64}


def config(
    scale: Scale,
    mixer: str,
    task: Task,
    d_model: int,
    d_state: int | None = None,
    *,
    faithful: bool = False,
    **options: Any,
) -> TrainConfig:
    """One model on one task at a scale.

    Args:
        scale: "demo", "small" or "paper".
        mixer: Name of an architecture; "ssd" is Mamba-2's, unless it is to be faithful.
        task: Length and number of pairs.
        d_model: Width.
        d_state: State expansion per head, for architectures that have one.
        faithful: Repeat two peculiarities of the authors' runs: normalized attention alone has an
            MLP (of ratio 4), and the rows called SSD are S6 with a scalar A.
        **options: Further keywords of the architecture.

    Returns:
        The config.
    """
    name = "s6" if faithful and mixer == "ssd" else mixer
    made = {"demo": _demo, "small": _small, "paper": _paper}[scale](name, task)
    own = dict(made.architecture.options) | options
    if name != mixer:
        own["scalar"] = True
    model = replace(
        made.architecture,
        d_model=d_model,
        d_state=None if mixer in FEW_STATES else d_state,
        options=tuple(sorted(own.items())),
    )
    if faithful and mixer == "normalized_attention":
        model = replace(model, block="prenorm")
    return replace(made, model=model)


def _demo(mixer: str, task: Task) -> TrainConfig:
    return replace(
        _small(mixer, task),
        batch_size=8,
        steps=40,
        eval_every=20,
        eval_examples=64,
        seeds=(0, 1),
        learning_rates=(5e-3, 2e-2),
        optimizer=OptimizerConfig(warmup_steps=10),
    )


def _small(mixer: str, task: Task) -> TrainConfig:
    length, pairs = task
    vocab = 2 * length
    # A state of one number per channel takes smaller steps.
    rates = (2e-3, 5e-3, 1e-2) if mixer in FEW_STATES else (4e-3, 9e-3, 2e-2)
    return TrainConfig(
        MQARConfig(vocab_size=vocab, seq_len=length, num_kv_pairs=pairs),
        ModelConfig(mixer, vocab, block="mamba", surroundings="practice"),
        OptimizerConfig(schedule="cosine", warmup_steps=50),
        batch_size=16,
        steps=2000,
        eval_every=100,
        eval_examples=512,
        seeds=(0, 1, 2, 3),
        learning_rates=rates,
        stop_at=0.99,
        checkpoint_every=5,
    )


def _paper(mixer: str, task: Task) -> TrainConfig:
    length, pairs = task
    batch = BATCH_SIZES[length] // (2 if mixer in FEW_STATES else 1)
    steps_per_epoch = math.ceil(TRAIN_EXAMPLES / batch)
    attention, positions = mixer in ATTENTION, mixer in ATTENTION + FEW_STATES
    options: dict[str, Any] = {"bias": True} if attention else {}
    if mixer in ("qlstm", "qlstm_reversed"):
        options = {"value_map": False}
    return TrainConfig(
        MQARConfig(vocab_size=8192, seq_len=length, num_kv_pairs=pairs),
        ModelConfig(
            mixer,
            8192,
            num_layers=2,
            num_heads=1,
            block="transformer" if positions else "mamba",
            surroundings="authors",
            max_length=length if positions else 0,
            embed_dropout=0.1,
            attention_dropout=0.1 if attention else 0.0,
            init="published" if mixer == "ssd" else "authors",
            options=tuple(options.items()),
        ),
        OptimizerConfig(
            schedule="cosine_per_epoch", steps_per_epoch=steps_per_epoch, weight_decay=0.1
        ),
        batch_size=batch,
        steps=EPOCHS * steps_per_epoch,
        eval_every=steps_per_epoch,
        eval_examples=3000,
        seeds=tuple(range(10)),
        learning_rates=tuple(float(rate) for rate in np.logspace(-4, -2, 4)),
        stop_at=0.99,
        shared_data=True,
        train_examples=TRAIN_EXAMPLES,
        checkpoint_every=1,
    )
