"""MAD: six small tasks that tell abilities apart (arXiv 2403.17844), one setting of each.

The paper claims nothing of it. At scale small the settings are the published baselines but for the
copying of tokens, whose sequences have 128 steps instead of 256; training is much shorter than
published (600 steps of 16 sequences), and examples never repeat.
Varied: the architecture.

    python -m experiments.table_mad --scale small
"""

import functools

from experiments import plots
from experiments.experiment import Experiment, main
from experiments.rows import Row, configs

SMALL = {
    "batch_size": 16,
    "steps": 600,
    "eval_every": 200,
    "learning_rates": (5e-3,),
    "eval_examples": 512,
}
ROWS = (
    Row("in-context recall", "mad_in_context_recall", {}, SMALL),
    Row("fuzzy recall", "mad_fuzzy_recall", {}, SMALL),
    Row("noisy recall", "mad_noisy_recall", {}, SMALL),
    Row("selective copying", "mad_selective_copying", {}, {**SMALL, "seq_len": 128}),
    Row("compression", "mad_compression", {}, SMALL),
    Row("memorization", "mad_memorization", {}, SMALL),
)

EXPERIMENT = Experiment(
    "table_mad",
    __doc__,
    configs(ROWS),
    functools.partial(plots.bars, by=("where",)),
    after=True,
)

if __name__ == "__main__":
    main(EXPERIMENT)
