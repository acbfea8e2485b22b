"""Floor 4: architectures, one per file, as pure functions of parameters and tokens to a System."""

from dsfjax.systems.architecture import Architecture as Architecture
from dsfjax.systems.architecture import Place as Place
from dsfjax.systems.architecture import Traits as Traits
from dsfjax.systems.registry import PRACTICE as PRACTICE
from dsfjax.systems.registry import get as get
from dsfjax.systems.registry import names as names
from dsfjax.systems.registry import option_types as option_types
from dsfjax.systems.registry import options as options
from dsfjax.systems.registry import register as register
from dsfjax.systems.surrounding import Surrounding as Surrounding
