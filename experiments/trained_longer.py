"""Long sequences again: one model per task, and training until it has learnt.

`experiments.table_lra` compares architectures after as many steps as five of them have time for.
Here is what the same tasks give with about an epoch of examples, or more: S4D in both directions
(arXiv 2206.11893) on images, whose training steps cost least, since its state is constant in time
and a chunk thus a convolution; and S6 on text, which led there.
Varied: the task.

    python -m experiments.trained_longer --scale small --data-dir FOLDER
"""

import functools
from typing import Any

from dsfjax.training import TrainConfig
from experiments import plots
from experiments.experiment import Experiment, main
from experiments.rows import Row, configs
from experiments.settings import Scale

IMAGES: dict[str, Any] = {
    "bidirectional": True,
    "d_model": 64,
    "learning_rates": (4e-3,),
}
ROWS = {
    "s4d": (
        Row(
            "digits",
            "digits",
            {},
            IMAGES
            | {
                "steps": 1500,
                "eval_every": 300,
                "eval_examples": 360,
                "residual_dropout": 0.1,
                "weight_decay": 0.1,
            },
        ),
        Row("MNIST, 14 × 14", "mnist", {}, IMAGES | {"pool": 2, "steps": 2000, "eval_every": 400}),
    ),
    "s6": (
        Row(
            "text, 1,000 bytes",
            "imdb_bytes",
            {},
            {"batch_size": 8, "steps": 2000, "learning_rates": (5e-3,), "eval_every": 500},
        ),
    ),
}


def _configs(scale: Scale, faithful: bool) -> dict[str, TrainConfig]:
    return {
        name: config
        for mixer, rows in ROWS.items()
        for name, config in configs(rows, (mixer,))(scale, faithful).items()
    }


EXPERIMENT = Experiment(
    "trained_longer",
    __doc__,
    _configs,
    functools.partial(plots.bars, by=("where",)),
    after=True,
    compares=False,
)

if __name__ == "__main__":
    main(EXPERIMENT)
