"""Length generalisation: sequences up to 64 times as long as those of training.

Asked: what of what was learnt at lengths up to 40 holds beyond, and whether it is the length or the
state that is new there: sequences begin without a state, in the final state of another sequence,
or in a random state of the same size (arXiv 2507.02782).
Varied: the architecture, on the tasks of `experiments.state_tracking`, whose runs these are, and on
selective copying.

    python -m experiments.length_generalisation --scale small
"""

from experiments import plots
from experiments.experiment import Experiment, main
from experiments.rows import Row, configs
from experiments.state_tracking import MIXERS, SMALL
from experiments.state_tracking import ROWS as TRACKING

NOTE = (
    "Mean and standard deviation over seeds, at the learning rate that is best at the training "
    "length (dotted); grey: the score that needs no memory. Softmax attention begins without a "
    "state only."
)
ROWS = (
    *TRACKING,
    Row("selective copying", "selective_copying", {}, {**SMALL, "seq_len": 32, "num_tokens": 4}),
)

EXPERIMENT = Experiment(
    "length_generalisation",
    __doc__,
    configs(ROWS, MIXERS),
    plots.lengths,
    note=NOTE,
    after=True,
    lengths=(1, 2, 4, 8, 16, 32, 64),
)

if __name__ == "__main__":
    main(EXPERIMENT)
