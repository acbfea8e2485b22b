"""Time series: forecasts of transformer temperatures (ETTh1) next to a linear model.

The paper promised ETT to its reviewers and claims nothing of it. Asked here: which of its
architectures forecasts better than a linear map of the same steps does (arXiv 2205.13504).
Varied: the architecture and the horizon. All series, each an example of its own, 96 steps read (by
the linear model 336).

    python -m experiments.table_ett --scale small --data-dir FOLDER
"""

import functools

from experiments import plots
from experiments.claims import Claim
from experiments.experiment import Experiment, main
from experiments.rows import Row, configs

SMALL = {
    "lookback": 96,
    "steps": 600,
    "learning_rates": (8e-3,),
    "eval_examples": 2048,
}
ROWS = tuple(
    Row(f"h={horizon}", "forecast", {"series": "ETTh1", "horizon": horizon}, SMALL)
    for horizon in (24, 168)
)

EXPERIMENT = Experiment(
    "table_ett",
    __doc__,
    configs(ROWS),
    functools.partial(plots.bars, by=("where",)),
    (
        Claim(
            "SSD forecasts better than softmax attention.",
            better={"series": "ssd"},
            worse={"series": "softmax_attention"},
        ),
    ),
    after=True,
)

if __name__ == "__main__":
    main(EXPERIMENT)
