"""State tracking: parity, and products in the groups S3 and A5, at the training length.

Claim (arXiv 2411.12537, 2404.08819): recurrences whose eigenvalues are real and positive, and
attention, do not track states that flip; a nonlinear RNN does, and DeltaNet with a factor of 2 that
lets its eigenvalues reach −1. All architectures of the paper have positive eigenvalues, as
`spectra` of the result says for what was trained here; the qLSTM's gates do not see its state, so
it is no nonlinear RNN either. At the training length a model may still fit what does not
generalise: `experiments.length_generalisation` takes these models further.
Varied: the architecture. Trained on lengths 3 to 40.

    python -m experiments.state_tracking --scale small
"""

import functools

from experiments import plots
from experiments.claims import Claim
from experiments.experiment import Experiment, main
from experiments.rows import Row, Variants, configs

MIXERS: Variants = {
    **{name: (name, {}) for name in ("softmax_attention", "linear_attention", "ssd", "qlstm")},
    "rg_lru": ("rg_lru", {}),
    "deltanet": ("deltanet", {}),
    "deltanet with negative eigenvalues": ("deltanet", {"allow_neg_eigval": True}),
    "lstm": ("lstm", {}),
}
SMALL = {"steps": 600, "learning_rates": (5e-3,), "eval_examples": 512}
ROWS = (
    Row("parity", "parity", {}, SMALL),
    Row("S3", "word_problem", {"group": "S3"}, SMALL),
    Row("A5", "word_problem", {"group": "A5"}, SMALL),
)

EXPERIMENT = Experiment(
    "state_tracking",
    __doc__,
    configs(ROWS, MIXERS),
    functools.partial(plots.bars, by=("where",)),
    (
        Claim(
            "DeltaNet tracks states better with negative eigenvalues.",
            better={"series": "deltanet with negative eigenvalues"},
            worse={"series": "deltanet"},
        ),
        Claim(
            "The LSTM, whose gates see its state, tracks states better than the qLSTM.",
            better={"series": "lstm"},
            worse={"series": "qlstm"},
        ),
    ),
    after=True,
)

if __name__ == "__main__":
    main(EXPERIMENT)
