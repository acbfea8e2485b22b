"""Floor 9: time the engines, next to plain JAX and other packages, on this machine."""

from dsfjax.bench.case import Case as Case
from dsfjax.bench.case import Layer as Layer
from dsfjax.bench.case import cases as cases
from dsfjax.bench.contest import contest as contest
from dsfjax.bench.measure import Measurement as Measurement
from dsfjax.bench.measure import measure as measure
from dsfjax.bench.run import Plan as Plan
from dsfjax.bench.run import Results as Results
from dsfjax.bench.run import run as run
from dsfjax.bench.tables import tables as tables
from dsfjax.bench.write import write as write
