"""Sizes that are known to work, as data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dsfjax._util.names import choose
from dsfjax.nn import ModelConfig
from dsfjax.tasks.mqar import MQARConfig
from dsfjax.training.config import TrainConfig
from dsfjax.training.optimizer import OptimizerConfig

PAPER_MIXERS = (
    "softmax_attention",
    "linear_attention",
    "normalized_attention",
    "s6",
    "ssd",
    "qlstm",
    "qlstm_reversed",
    "rg_lru",
)


@dataclass(frozen=True)
class Preset:
    """A comparison: one config, and the mixers to put into it.

    Attributes:
        about: What it is for.
        mixers: The mixers, in the order of the table.
        base: The config; its ``model.mixer`` is replaced.
        own: Mixer to those fields of ``ModelConfig`` in which it differs from ``base``.
    """

    about: str
    mixers: tuple[str, ...]
    base: TrainConfig
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


PRESETS = {
    "demo": Preset(
        about="the paper's mixers on small MQAR: minutes on a laptop",
        mixers=PAPER_MIXERS,
        base=TrainConfig(
            task=MQARConfig(vocab_size=64, seq_len=32, num_kv_pairs=4),
            # With the short convolutions of practice every mixer sees the token before, without
            # which the recall of a value takes many times as many steps to be found.
            model=ModelConfig(
                mixer="softmax_attention",
                vocab_size=64,
                d_model=64,
                num_layers=2,
                block="mamba",
                surroundings="practice",
            ),
            optimizer=OptimizerConfig(schedule="cosine", warmup_steps=50),
            batch_size=32,
            steps=400,
            eval_every=100,
            eval_examples=512,
            seeds=(0, 1),
            learning_rates=(2e-3, 5e-3),
            stop_at=0.999,
            stop_when="one_rate",
        ),
    ),
    "smoke": Preset(
        about="two tiny mixers for a few steps: seconds, and learns nothing",
        mixers=("linear_attention", "ssd"),
        base=TrainConfig(
            task=MQARConfig(vocab_size=32, seq_len=16, num_kv_pairs=2),
            model=ModelConfig(
                mixer="linear_attention", vocab_size=32, d_model=16, num_layers=1, block="mamba"
            ),
            optimizer=OptimizerConfig(schedule="cosine"),
            batch_size=8,
            steps=24,
            eval_every=4,
            eval_examples=16,
            seeds=(0, 1),
            learning_rates=(1e-3, 1e-2),
            checkpoint_every=1,
        ),
    ),
}
"""Name to preset."""


def get(name: str) -> Preset:
    """A preset by name.

    Args:
        name: One of ``PRESETS``.

    Returns:
        The preset.

    Raises:
        ValueError: If there is none of that name; the nearest is named.

    Examples:
        >>> get("smoke").mixers
        ('linear_attention', 'ssd')
    """
    return PRESETS[choose("preset", name, PRESETS)]


def configs(preset: Preset, mixers: Sequence[str] | None = None) -> dict[str, TrainConfig]:
    """A config for each mixer of a preset.

    Args:
        preset: The preset.
        mixers: The mixers to take, which need not be the preset's own; by default those.

    Returns:
        Mixer to config, in the order given.

    Examples:
        >>> list(configs(get("smoke"), ["s6"]))
        ['s6']
    """
    base = preset.base
    return {
        mixer: replace(base, model=replace(base.model, mixer=mixer, **preset.own.get(mixer, {})))
        for mixer in (preset.mixers if mixers is None else mixers)
    }
