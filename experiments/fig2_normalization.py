"""Figure 2: how much of the gap between linear and softmax attention a normaliser closes.

Claim: softmax attention recalls where linear attention fails; linear attention with a learnt
normaliser (normalized attention) and SSD, which are as recurrent as it, close most of the gap.
Varied: the architecture and the width d, at a fixed state expansion n.

Normalized attention and SSD are shown twice: as the paper describes them, and as the authors ran
them, the one with an MLP that no other model has, the other as S6 with a scalar A.

    python -m experiments.fig2_normalization --scale small
"""

import functools

from dsfjax.training import TrainConfig
from experiments import plots
from experiments.claims import Claim
from experiments.experiment import Experiment, main
from experiments.settings import Scale, Task, config

MIXERS = ("softmax_attention", "linear_attention", "normalized_attention", "ssd", "s6")
QUIRKS = {
    "normalized_attention": "normalized_attention with MLP",
    "ssd": "ssd as scalar S6",
}
TASKS: dict[Scale, tuple[Task, ...]] = {
    "demo": ((16, 2),),
    "small": ((32, 4), (64, 8)),
    "paper": ((512, 64),),
}
WIDTHS: dict[Scale, tuple[int, ...]] = {
    "demo": (16,),
    "small": (32, 64),
    "paper": (64, 128, 256, 512),
}
STATE: dict[Scale, int] = {"demo": 4, "small": 16, "paper": 128}


def configs(scale: Scale, faithful: bool) -> dict[str, TrainConfig]:
    """The points of the figure, which has both ways of the authors' two peculiarities."""
    del faithful
    found = {}
    for task in TASKS[scale]:
        for mixer in MIXERS:
            for d_model in WIDTHS[scale]:
                n = STATE[scale]
                where = f"L={task[0]}, {task[1]} pairs, d={d_model}, n={n}"
                found[f"{mixer}, {where}"] = config(scale, mixer, task, d_model, n)
                if mixer in QUIRKS:
                    own = config(scale, mixer, task, d_model, n, faithful=True)
                    found[f"{QUIRKS[mixer]}, {where}"] = own
    return found


EXPERIMENT = Experiment(
    "fig2_normalization",
    __doc__,
    configs,
    functools.partial(plots.over, axis="d_model", label="width d"),
    (
        Claim(
            "Softmax attention recalls more than linear attention.",
            better={"series": "softmax_attention"},
            worse={"series": "linear_attention"},
        ),
        Claim(
            "Normalized attention recalls more than linear attention.",
            better={"series": "normalized_attention"},
            worse={"series": "linear_attention"},
        ),
        Claim(
            "SSD recalls more than linear attention.",
            better={"series": "ssd"},
            worse={"series": "linear_attention"},
        ),
    ),
)

if __name__ == "__main__":
    main(EXPERIMENT)
