"""Cases of which some run always and all with the slow tests: every one compiles for a second."""

from tests.systems_zoo import slow_unless as slow_unless

# One or two of every way through the tools: shared and own blocks, η, complex, dense, mixing.
FAST = frozenset({"scalar", "scalar_summed", "diagonal_factored", "complex_lti", "low_rank"})
