"""Figure 1: linear attention approaches softmax attention as its state grows.

Claim: the accuracy of linear attention rises with the state expansion n towards that of softmax
attention, whose state is infinite.
Varied: n, at one width d, on two tasks.

    python -m experiments.fig1_state_expansion --scale small
"""

import functools

from dsfjax.training import TrainConfig
from experiments import plots
from experiments.claims import Claim
from experiments.experiment import Experiment, main
from experiments.settings import Scale, Task, config

MIXERS = ("softmax_attention", "linear_attention")
TASKS: dict[Scale, tuple[Task, ...]] = {
    "demo": ((16, 2),),
    "small": ((32, 4), (64, 8)),
    "paper": ((256, 16), (512, 64)),
}
WIDTH: dict[Scale, int] = {"demo": 16, "small": 64, "paper": 512}
STATES: dict[Scale, tuple[int, ...]] = {
    "demo": (2, 8),
    "small": (4, 16, 64),
    "paper": (32, 64, 128, 256),
}


def configs(scale: Scale, faithful: bool) -> dict[str, TrainConfig]:
    """The points of the figure; the authors ran these models as the paper has them."""
    del faithful
    d_model = WIDTH[scale]
    return {
        f"{mixer}, L={task[0]}, {task[1]} pairs, d={d_model}, n={n}": config(
            scale, mixer, task, d_model, n
        )
        for task in TASKS[scale]
        for mixer in MIXERS
        for n in STATES[scale]
    }


EXPERIMENT = Experiment(
    "fig1_state_expansion",
    __doc__,
    configs,
    functools.partial(plots.over, axis="d_state", label="state expansion n"),
    (
        Claim(
            "Linear attention recalls more with the largest state expansion than with the least.",
            better={"series": "linear_attention", "d_state": "largest"},
            worse={"series": "linear_attention", "d_state": "smallest"},
        ),
        Claim(
            "At the least state expansion softmax attention recalls more than linear attention.",
            better={"series": "softmax_attention", "d_state": "smallest"},
            worse={"series": "linear_attention", "d_state": "smallest"},
        ),
    ),
)

if __name__ == "__main__":
    main(EXPERIMENT)
