"""Heat maps: accuracy of five models over width and state expansion, task by task.

Claim: recall grows with both the width d and the state expansion n, the paper's appendix.
Varied: model, task, d and n. At small scale it is what figures 1 and 2 trained, side by side; cells
that they do not have are grey.

    python -m experiments.heatmap_mqar --scale small
"""

from dsfjax.training import TrainConfig
from experiments import fig1_state_expansion, fig2_normalization, grids
from experiments.claims import Claim
from experiments.experiment import Experiment, main
from experiments.fig2_normalization import MIXERS
from experiments.settings import Scale, Task, config

TASKS: tuple[Task, ...] = ((64, 4), (128, 8), (256, 16), (512, 64))
WIDTHS = (64, 128, 256, 512)
STATES = (32, 64, 128, 256)


def configs(scale: Scale, faithful: bool) -> dict[str, TrainConfig]:
    """The cells of the maps."""
    if scale != "paper":
        sources = (fig2_normalization, fig1_state_expansion)
        found = [pair for source in sources for pair in source.configs(scale, False).items()]
        return {name: each for name, each in found if name.split(",")[0] in MIXERS}
    return {
        f"{mixer}, L={task[0]}, {task[1]} pairs, d={d_model}, n={n}": config(
            scale, mixer, task, d_model, n, faithful=faithful
        )
        for task in TASKS
        for mixer in MIXERS
        for d_model in WIDTHS
        for n in STATES
    }


EXPERIMENT = Experiment(
    "heatmap_mqar",
    __doc__,
    configs,
    grids.heat,
    tuple(
        Claim(
            f"{mixer} recalls more in the largest width than in the least.",
            better={"series": mixer, "d_model": "largest"},
            worse={"series": mixer, "d_model": "smallest"},
        )
        for mixer in MIXERS
    ),
)

if __name__ == "__main__":
    main(EXPERIMENT)
