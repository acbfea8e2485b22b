"""Made-up results."""

from typing import Any

from dsfjax.guidance import Evidence


def evidence(mixer: str, mean: float, std: float = 0.01, **own: Any) -> Evidence:
    """A result on a task of 64 steps, whose trivial answer is right half of the time."""
    given = {
        "task": "made_up",
        "demands": ("recall",),
        "length": 64,
        "vocab_size": 16,
        "trivial": 0.5,
        "seeds": 4,
        "steps": 100,
        "tokens": 640_000,
        "num_params": 5_000,
        "state_size": 64,
        "source": "table",
        "scale": "small",
    }
    return Evidence(mixer=mixer, mean=mean, std=std, **(given | own))
