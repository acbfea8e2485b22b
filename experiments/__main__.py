"""All experiments in turn: ``python -m experiments --scale small``.

Each takes the options of a single one. They share a run directory, so that points in common are
trained once, and the same command goes on where it was ended. What fails, or reads a data set that
is not there, is named at the end, when the page has been renewed with the others.
"""

import sys

from dsfjax.tasks.data.reading import DataError
from experiments import page
from experiments.experiment import main

if __name__ == "__main__":
    failures = []
    for experiment in page.EXPERIMENTS:
        try:
            main(experiment, sys.argv[1:])
        except (RuntimeError, DataError) as error:  # of some points; the others are written
            failures.append(f"{experiment.name}: {error}")
    page.renew()
    sys.exit("\n".join(failures) or None)
