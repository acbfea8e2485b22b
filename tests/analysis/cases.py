"""Cases of which some run always and all with the slow tests: every one compiles for a second."""

from collections.abc import Iterable
from typing import Any

import pytest

# One or two of every way through the tools: shared and own blocks, η, complex, dense, mixing.
FAST = frozenset({"scalar", "scalar_summed", "diagonal_factored", "complex_lti", "low_rank"})


def slow_unless(fast: Iterable[str], names: Iterable[str]) -> list[Any]:
    """Names as parameters, those that are not in ``fast`` marked slow."""
    return [x if x in fast else pytest.param(x, marks=pytest.mark.slow) for x in names]
