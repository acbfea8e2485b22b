"""Long sequences: images by the pixel, text by the byte, nested lists.

Claims: SSMs lead on the Long Range Arena; the paper's reason is that their step Δ also scales what
is written (recurrent normalisation). Compared are S6 and SSD, normalized attention with and without
its ratio η, softmax and linear attention.
Varied: the architecture, on tasks of the Long Range Arena. At scale small they are smaller than
the benchmark's, and two that fit a laptop stand beside them (handwritten digits, and MNIST with
squares of four pixels averaged): these numbers compare with each other, not with published ones.

    python -m experiments.table_lra --scale small --data-dir FOLDER
"""

import functools

from experiments import plots
from experiments.claims import Claim
from experiments.experiment import Experiment, main
from experiments.rows import Row, configs

ROWS = (
    Row(
        "digits",
        "digits",
        {},
        {"steps": 2000, "learning_rates": (5e-3,), "eval_every": 200, "eval_examples": 360},
    ),
    Row(
        "MNIST, 14 × 14",
        "mnist",
        {},
        {
            "pool": 2,
            "batch_size": 16,
            "steps": 2000,
            "learning_rates": (5e-3,),
            "eval_every": 400,
        },
    ),
    Row(
        "text, 1,000 bytes",
        "imdb_bytes",
        {},
        {"batch_size": 8, "steps": 1000, "learning_rates": (5e-3,), "eval_every": 250},
    ),
    Row(
        "ListOps, at most 256 symbols",
        "listops",
        {},
        {
            "longer_than": 31,
            "shorter_than": 256,
            "seq_len": 256,
            "steps": 600,
            "learning_rates": (5e-3,),
            "eval_every": 200,
        },
    ),
    Row(
        "CIFAR-10, grey, JPEG copy",
        "cifar10",
        {},
        {"batch_size": 8, "steps": 600, "learning_rates": (5e-3,), "eval_every": 200},
    ),
)

EXPERIMENT = Experiment(
    "table_lra",
    __doc__,
    configs(ROWS),
    functools.partial(plots.bars, by=("where",)),
    tuple(
        Claim(
            f"{ssm.upper()} classifies long sequences better than {attention.replace('_', ' ')}.",
            better={"series": ssm},
            worse={"series": attention},
        )
        for ssm in ("s6", "ssd")
        for attention in ("softmax_attention", "linear_attention", "normalized_attention")
    ),
    after=True,
)

if __name__ == "__main__":
    main(EXPERIMENT)
