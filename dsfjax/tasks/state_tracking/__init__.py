r"""State tracking: tasks whose answer is a state that every step changes.

The state must be followed through the whole sequence, and no step can be left out. Which
architectures can do so over any length is decided by the eigenvalues and the structure of A: a
diagonal A with values in [0, 1] cannot count modulo two, and a diagonal A of any kind cannot
multiply in a group that is not solvable, such as A5.

* `Parity`: whether a sequence has an odd number of ones.
* `ModularArithmetic`: the value of an expression modulo 5, with or without brackets.
* `WordProblem`: the product of group elements, after every step.

References:
    Merrill et al. (2024), arXiv:2404.08819. Grazzi et al. (2025), arXiv:2411.12537.
"""

from dsfjax.tasks.state_tracking.arithmetic import ModularArithmetic as ModularArithmetic
from dsfjax.tasks.state_tracking.groups import WordProblem as WordProblem
from dsfjax.tasks.state_tracking.groups import group_table as group_table
from dsfjax.tasks.state_tracking.parity import Parity as Parity
from dsfjax.tasks.state_tracking.tracking import StateTracking as StateTracking
