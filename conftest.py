"""For tests and doctests alike: quick compilation, and default precision for doctests."""

import os
from collections.abc import Iterator

# Most of the suite's time is compilation of functions that run once: let LLVM optimise less.
_QUICK = "--xla_backend_optimization_level=0"
if "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_QUICK}".strip()

import jax  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture(autouse=True)
def _doctest_precision(request: pytest.FixtureRequest) -> Iterator[None]:
    """Doctests run under JAX's default precision: they show what a user's session shows."""
    if isinstance(request.node, pytest.DoctestItem):
        with jax.enable_x64(False):
            yield
    else:
        yield
