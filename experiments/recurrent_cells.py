"""The LSTM and the GRU next to the qLSTM of figure 3.

Claim: the state transition of an SSM makes an LSTM recall more. The paper shows it on the quasi
LSTM, whose gates do not read the state. Here the LSTM and the GRU, whose gates do, run on the tasks
of `experiments.fig3_qlstm`, whose runs are shared: in the same surroundings, with as many
parameters.
Varied: the cell, the size and the task. A size is the width d of the qLSTM; a cell with weights
from state to state is narrower, by what these weights cost.

    python -m experiments.recurrent_cells --scale small
"""

import functools
from dataclasses import replace

from dsfjax.training import TrainConfig
from experiments import fig3_qlstm, plots
from experiments.claims import Claim
from experiments.experiment import Experiment, main
from experiments.settings import Scale, Task, config

CELLS: dict[Scale, dict[str, tuple[int, ...]]] = {
    "demo": {"lstm": (6, 12), "gru": (7, 14)},
    "small": {"lstm": (24, 49), "gru": (27, 55)},
    "paper": {"lstm": (55, 103, 194, 373), "gru": (58, 111, 213, 414)},
}
"""Widths at which a cell has as many parameters as the qLSTM of the widths of figure 3."""


def cell_config(scale: Scale, cell: str, task: Task, width: int) -> TrainConfig:
    """A cell in the surroundings that figure 3 has around the qLSTM: in practice, those are its."""
    found = config(scale, cell, task, width)
    return replace(found, model=replace(found.architecture, surroundings="practice"))


def configs(scale: Scale, faithful: bool) -> dict[str, TrainConfig]:
    """The points of figure 3, and the cells of the same sizes."""
    shared = fig3_qlstm.configs(scale, faithful)
    return shared | {
        f"{cell}, L={task[0]}, {task[1]} pairs, d={d_model}": cell_config(scale, cell, task, width)
        for task in fig3_qlstm.TASKS[scale]
        for cell, widths in CELLS[scale].items()
        for d_model, width in zip(fig3_qlstm.WIDTHS[scale], widths, strict=True)
    }


EXPERIMENT = Experiment(
    "recurrent_cells",
    __doc__,
    configs,
    functools.partial(plots.bars, by=("where",)),
    tuple(
        # Widths differ: the largest models of both are compared.
        Claim(
            f"The qLSTM with the reversed gate recalls more than the {cell.upper()}.",
            better={"series": "qlstm_reversed", "d_model": "largest"},
            worse={"series": cell, "d_model": "largest"},
        )
        for cell in CELLS["paper"]
    ),
)

if __name__ == "__main__":
    main(EXPERIMENT)
