"""Floor 8: every engine and op on this device, in every precision, against float64 on the host."""

from dsfjax.selfcheck.check import selfcheck as selfcheck
from dsfjax.selfcheck.found import Check as Check
from dsfjax.selfcheck.problems import STRUCTURES as STRUCTURES
