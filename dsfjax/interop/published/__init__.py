"""Published checkpoints as their exact Systems: `open`, and a file per group of model families.

To add a family, read ``families/mamba_models.py``: a function per kind of layer, written for one
sequence with `Run`, and one that reads the config and says which layers there are. To add a format
of the authors of a model, which `convert` makes a published one of, read ``rwkv7_format.py``.
"""

from dsfjax.interop.published.converting import convert as convert
from dsfjax.interop.published.opened import Opened as Opened
from dsfjax.interop.published.opened import OpenedLayer as OpenedLayer
from dsfjax.interop.published.opened import mean_loss as mean_loss
from dsfjax.interop.published.opening import inspect as inspect
from dsfjax.interop.published.opening import open as open
from dsfjax.interop.published.reducing import Reduced as Reduced
from dsfjax.interop.published.reducing import measure_states as measure_states
from dsfjax.interop.published.reducing import reduce as reduce
from dsfjax.interop.published.running import Used as Used
