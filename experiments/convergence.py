"""Convergence: steps to 50, 90 and 99 % of the queries, by architecture and learning rate.

Claim: none of the paper's; it measures how soon what figure 2 shows is reached, and at which
learning rates it is reached at all. A hollow marker is the mean of those seeds that got there.
Varied: as in figure 2, whose runs these are: what it has trained is not trained again.

    python -m experiments.convergence --scale small
"""

from experiments import grids
from experiments.experiment import Experiment, main
from experiments.fig2_normalization import configs

NOTE = (
    "Mean over the seeds that reached the level, as seen at evaluations; hollow where not all "
    "did, nothing where none did."
)
EXPERIMENT = Experiment("convergence", __doc__, configs, grids.steps, note=NOTE)

if __name__ == "__main__":
    main(EXPERIMENT)
