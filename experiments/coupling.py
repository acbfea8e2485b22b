"""Coupling: does it help that transition and input share parameters?

In SSMs and the RG-LRU what a state forgets and what it takes in are tied; in an LSTM they are not.
Here each of three recurrent networks is trained both ways: with its input scaled by √(1 − λ²), the
coupling of the RG-LRU, and without.

Claim of the paper, as a hypothesis: coupled transitions train better.
Varied: the coupling and the network.

    python -m experiments.coupling --scale small
"""

from dsfjax.training import TrainConfig
from experiments import plots
from experiments.claims import Claim
from experiments.experiment import Experiment, main
from experiments.settings import RECURRENT, Scale, Task, config

TASKS: dict[Scale, tuple[Task, ...]] = {
    "demo": ((16, 2),),
    "small": ((16, 2), (32, 2)),
    "paper": ((64, 4), (128, 8), (256, 16)),
}
WIDTHS: dict[Scale, tuple[int, ...]] = {"demo": (8,), "small": (64,), "paper": (64, 128, 256)}
WORDS = {True: "coupled", False: "not coupled"}


def configs(scale: Scale, faithful: bool) -> dict[str, TrainConfig]:
    """The points of the figure; the authors did not run it."""
    del faithful
    found = {}
    for task in TASKS[scale]:
        for mixer in RECURRENT:
            for coupled in (False, True):
                # The default is left out, so that runs are those of figure 3.
                own = {} if coupled == (mixer == "rg_lru") else {"coupled": coupled}
                for d_model in WIDTHS[scale]:
                    where = f"L={task[0]}, {task[1]} pairs, d={d_model}"
                    name = f"{mixer} {WORDS[coupled]}, {where}"
                    found[name] = config(scale, mixer, task, d_model, **own)
    return found


EXPERIMENT = Experiment(
    "coupling",
    __doc__,
    configs,
    plots.bars,
    tuple(
        Claim(
            f"{mixer} recalls more when coupled.",
            better={"series": f"{mixer} coupled"},
            worse={"series": f"{mixer} not coupled"},
        )
        for mixer in RECURRENT
    ),
)

if __name__ == "__main__":
    main(EXPERIMENT)
