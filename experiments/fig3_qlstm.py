"""Figure 3: an LSTM with the state transition of an SSM.

Claim: the quasi LSTM recalls more with the reversed sigmoid to a learnt power as its forget gate,
the state transition of SSD, and the more so the longer the task.
Varied: the gate, the width d and the task.

    python -m experiments.fig3_qlstm --scale small
"""

import functools

from dsfjax.training import TrainConfig
from experiments import plots
from experiments.claims import Claim
from experiments.experiment import Experiment, main
from experiments.settings import Scale, Task, config

MIXERS = ("qlstm", "qlstm_reversed")
TASKS: dict[Scale, tuple[Task, ...]] = {
    "demo": ((16, 2),),
    "small": ((16, 2), (32, 2)),
    "paper": ((64, 4), (128, 8), (256, 16)),
}
WIDTHS: dict[Scale, tuple[int, ...]] = {
    "demo": (8, 16),
    "small": (32, 64),
    "paper": (64, 128, 256, 512),
}


def configs(scale: Scale, faithful: bool) -> dict[str, TrainConfig]:
    """The points of the figure; the authors ran these models as the paper has them."""
    del faithful
    return {
        f"{mixer}, L={task[0]}, {task[1]} pairs, d={d_model}": config(scale, mixer, task, d_model)
        for task in TASKS[scale]
        for mixer in MIXERS
        for d_model in WIDTHS[scale]
    }


EXPERIMENT = Experiment(
    "fig3_qlstm",
    __doc__,
    configs,
    functools.partial(plots.over, axis="d_model", label="width d"),
    (
        Claim(
            "The qLSTM recalls more with the reversed gate.",
            better={"series": "qlstm_reversed"},
            worse={"series": "qlstm"},
        ),
    ),
)

if __name__ == "__main__":
    main(EXPERIMENT)
