"""Floor 6: what reports and probes look at in a trained model, one file each.

An `Aspect` declares how it is measured on a System, summed up, drawn, written to a file and read.
These are the built-in ones, in the order of the report; a module of your own adds to them with
`register`.
"""

from dsfjax.aspects.aspect import Asked as Asked
from dsfjax.aspects.aspect import Aspect as Aspect
from dsfjax.aspects.aspect import Column as Column
from dsfjax.aspects.aspect import Findings as Findings
from dsfjax.aspects.aspect import Layers as Layers
from dsfjax.aspects.aspect import Measured as Measured
from dsfjax.aspects.aspect import Panel as Panel
from dsfjax.aspects.aspect import SomeLayers as SomeLayers
from dsfjax.aspects.aspect import Stack as Stack
from dsfjax.aspects.aspect import measure as measure
from dsfjax.aspects.aspect import numbered as numbered
from dsfjax.aspects.aspect import register as register
from dsfjax.aspects.aspect import registered as registered
from dsfjax.aspects.aspect import stacks as stacks
from dsfjax.aspects.aspect import summarise as summarise
from dsfjax.aspects.eigenvalues import EIGENVALUES as EIGENVALUES
from dsfjax.aspects.gradient_flow import GRADIENT_FLOW as GRADIENT_FLOW
from dsfjax.aspects.memory_curves import MEMORY as MEMORY
from dsfjax.aspects.phi_maps import PHI_MAPS as PHI_MAPS
from dsfjax.aspects.state_over_time import STATE_OVER_TIME as STATE_OVER_TIME
from dsfjax.aspects.state_use import STATE_USE as STATE_USE

for _aspect in (EIGENVALUES, MEMORY, STATE_USE, PHI_MAPS, GRADIENT_FLOW, STATE_OVER_TIME):
    register(_aspect)
