"""Is softmax attention only a larger state? Recurrent models with the state of its KV cache.

After L tokens the cache of a softmax layer with n = d holds 2 L d numbers. Here the state expansion
of each recurrent model is chosen so that its layers carry as many.

Claim: a state as large as the cache does not suffice; softmax attention recalls more than linear
attention of the same size of state.
Varied: the architecture and the task, at one width d.

    python -m experiments.kv_cache_state --scale small
"""

import functools
from dataclasses import replace

from dsfjax.analysis import state_size
from dsfjax.nn import ModelConfig, build
from dsfjax.training import TrainConfig
from experiments import plots
from experiments.claims import Claim
from experiments.experiment import Experiment, main
from experiments.settings import Scale, Task, config

SOFTMAX = "softmax_attention"
RECURRENT = ("linear_attention", "normalized_attention", "ssd")
TASKS: dict[Scale, tuple[Task, ...]] = {
    "demo": ((16, 2),),
    "small": ((32, 4), (64, 8)),
    "paper": ((64, 4), (128, 8), (256, 16)),
}
WIDTH: dict[Scale, int] = {"demo": 8, "small": 32, "paper": 64}


def configs(scale: Scale, faithful: bool) -> dict[str, TrainConfig]:
    """The points of the figure."""
    d_model, found = WIDTH[scale], {}
    for task in TASKS[scale]:
        where = f"L={task[0]}, {task[1]} pairs, d={d_model}"
        softmax = config(scale, SOFTMAX, task, d_model, d_model)
        found[f"{SOFTMAX}, {where}"] = softmax
        target = _size(softmax.model, task[0])
        for mixer in RECURRENT:
            base = config(scale, mixer, task, d_model, 1, faithful=faithful)
            n = _matched(base, target)
            found[f"{mixer}, {where}"] = replace(base, model=replace(base.architecture, d_state=n))
    return found


def _matched(base: TrainConfig, target: int) -> int:
    """The state expansion with the state nearest to ``target`` numbers: states grow as n does."""
    return max(1, round(target / _size(base.model, base.task.seq_len)))


@functools.cache
def _size(model: ModelConfig, length: int) -> int:
    return state_size(build(model), length)


EXPERIMENT = Experiment(
    "kv_cache_state",
    __doc__,
    configs,
    plots.bars,
    (
        Claim(
            "Softmax attention recalls more than linear attention of the same size of state.",
            better={"series": SOFTMAX, "d_state": "any"},
            worse={"series": "linear_attention", "d_state": "any"},
        ),
    ),
)

if __name__ == "__main__":
    main(EXPERIMENT)
