"""Floor 4: what a model costs, counted on shapes alone: nothing is run and nothing is allocated.

* `dsfjax.cost.sizing`: parameters, state, and the model that has a given size.
* `dsfjax.cost.operations`: operations and memory traffic of any function, on its jaxpr.
* `dsfjax.cost.memory`: the peak memory of any function, before it is compiled.
* `dsfjax.cost.peak`: what a device can do at most, declared or measured.
* `dsfjax.cost.per_token`: both for a model, per token, in training, prefill and decoding.
"""

from dsfjax.cost.memory import Memory as Memory
from dsfjax.cost.memory import memory_of as memory_of
from dsfjax.cost.memory import peak_memory as peak_memory
from dsfjax.cost.operations import Operations as Operations
from dsfjax.cost.operations import count_operations as count_operations
from dsfjax.cost.per_token import PHASES as PHASES
from dsfjax.cost.per_token import Cost as Cost
from dsfjax.cost.per_token import Phase as Phase
from dsfjax.cost.per_token import cost as cost
from dsfjax.cost.sizing import Match as Match
from dsfjax.cost.sizing import Parameterized as Parameterized
from dsfjax.cost.sizing import SequenceModel as SequenceModel
from dsfjax.cost.sizing import cache_equivalent as cache_equivalent
from dsfjax.cost.sizing import match_size as match_size
from dsfjax.cost.sizing import num_parameters as num_parameters
from dsfjax.cost.sizing import state_size as state_size
