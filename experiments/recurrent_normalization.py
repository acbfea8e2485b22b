"""Recurrent normalisation: what Δ in B, and η's ratio in A, are worth.

Claim: S6 and SSD lead on long sequences since one quantity, Δ, scales both what is kept and what is
written, which normalises the recurrence; the ratio η_{t-1}/η_t of normalized attention does so,
too. Ablations: Δ only in the transition; η only in what is written.
Varied: the architecture with and without, on tasks of `experiments.table_lra`, whose runs are
shared, and on recall.

    python -m experiments.recurrent_normalization --scale small --data-dir FOLDER
"""

import functools

from experiments import plots
from experiments.claims import Claim
from experiments.experiment import Experiment, main
from experiments.rows import Row, Variants, configs
from experiments.table_lra import ROWS as LONG

WITHOUT = {
    "s6": ("S6 without Δ in B", {"scaled_input": False}),
    "ssd": ("SSD without Δ in B", {"scaled_input": False}),
    "normalized_attention": ("normalized without its ratio", {"recurrent": False}),
}
SERIES: Variants = {
    name: series
    for mixer, (ablated, varied) in WITHOUT.items()
    for name, series in {mixer: (mixer, {}), ablated: (mixer, varied)}.items()
}
RECALL = Row(
    "recall",
    "mqar",
    {},
    {
        "vocab_size": 64,
        "seq_len": 32,
        "num_kv_pairs": 4,
        "steps": 600,
        "learning_rates": (5e-3, 1e-2),
    },
)
ROWS = (*(row for row in LONG if row.name in ("digits", "ListOps, at most 256 symbols")), RECALL)

EXPERIMENT = Experiment(
    "recurrent_normalization",
    __doc__,
    configs(ROWS, SERIES),
    functools.partial(plots.bars, by=("where",)),
    tuple(
        Claim(
            f"{mixer} is better with recurrent normalisation than without.",
            better={"series": mixer},
            worse={"series": ablated},
        )
        for mixer, (ablated, _) in WITHOUT.items()
    ),
    after=True,
)

if __name__ == "__main__":
    main(EXPERIMENT)
