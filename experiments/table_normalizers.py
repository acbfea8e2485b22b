"""Table of normalisers: which function of the token should divide normalized attention.

Claim: of exp, softplus and sigmoid, exp recalls most and classifies images best. Exp of a ReLU,
which cannot shrink below 1, is shown beside them.
Varied: the normaliser, on the tasks of figure 2 and on images of the Long Range Arena (at scale
small those of `experiments.table_lra`).

    python -m experiments.table_normalizers --scale small --data-dir FOLDER
"""

import functools

from dsfjax.training import TrainConfig
from experiments import plots, rows, table_lra
from experiments.claims import Claim
from experiments.experiment import Experiment, main
from experiments.fig2_normalization import STATE, TASKS, WIDTHS
from experiments.settings import Scale, config

NORMALIZERS = ("exp", "softplus", "sigmoid", "exp_relu")


def configs(scale: Scale, faithful: bool) -> dict[str, TrainConfig]:
    """The points of the table; faithful ones have the authors' MLP."""
    found: dict[str, TrainConfig] = {}
    for task in TASKS[scale]:
        for normalizer in NORMALIZERS:
            # Exp is the default: left out, this is the very run of figure 2.
            own = {} if normalizer == "exp" else {"normalizer": normalizer}
            for d_model in WIDTHS[scale]:
                n = STATE[scale]
                name = f"{normalizer}, L={task[0]}, {task[1]} pairs, d={d_model}, n={n}"
                found[name] = config(
                    scale, "normalized_attention", task, d_model, n, faithful=faithful, **own
                )
    (images,) = (row for row in table_lra.ROWS if row.task == "cifar10")
    for normalizer in NORMALIZERS:
        own = {} if normalizer == "exp" else {"normalizer": normalizer}
        name = f"{normalizer}, {images.name}"
        found[name] = rows.config(scale, images, "normalized_attention", own)
    return found


EXPERIMENT = Experiment(
    "table_normalizers",
    __doc__,
    configs,
    functools.partial(plots.bars, by=("where",)),
    tuple(
        Claim(
            f"Exp normalises better than {other}.",
            better={"series": "exp"},
            worse={"series": other},
        )
        for other in ("softplus", "sigmoid")
    ),
    after=True,
)

if __name__ == "__main__":
    main(EXPERIMENT)
