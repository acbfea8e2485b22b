"""All experiments in turn: ``python -m experiments --scale small``.

Each takes the options of a single one. They share a run directory, so that points in common are
trained once, and the same command goes on where it was ended. At the end the page is renewed.
"""

import sys

from experiments import (
    convergence,
    coupling,
    fig1_state_expansion,
    fig2_normalization,
    fig3_qlstm,
    heatmap_mqar,
    kv_cache_state,
    page,
    table_normalizers,
)
from experiments.experiment import main

ORDER = (
    fig2_normalization,
    fig3_qlstm,
    fig1_state_expansion,
    table_normalizers,
    coupling,
    kv_cache_state,
    convergence,
    heatmap_mqar,
)

if __name__ == "__main__":
    for module in ORDER:
        main(module.EXPERIMENT, sys.argv[1:])
    page.renew()
