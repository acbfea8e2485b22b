"""A config for tests on several devices: six members of a small model."""

from dsfjax.nn import ModelConfig
from dsfjax.tasks.mqar import MQARConfig
from dsfjax.training import TrainConfig

CONFIG = TrainConfig(
    MQARConfig(vocab_size=32, seq_len=16, num_kv_pairs=2),
    ModelConfig("linear_attention", vocab_size=32, d_model=8, num_layers=1, block="mamba"),
    batch_size=4,
    steps=4,
    eval_every=2,
    eval_examples=8,
    seeds=(0, 1, 2),
    learning_rates=(1e-3, 1e-2),
    stop_at=None,
    checkpoint_every=1,
)
