"""For tests and doctests alike: quick compilation, and default precision for doctests."""

import gc
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

# Most of the time is compilation of functions that run once: let the compiler optimise less.
# XLA's MLIR emitters for fusions take more than half of what is left, and so does one LLVM module
# per kernel; both flags are gone or different in later releases, where an unknown one is fatal.
_QUICK = {"xla_backend_optimization_level": "0"}
if version("jaxlib").startswith("0.10."):
    _QUICK |= {"xla_cpu_use_fusion_emitters": "false", "xla_cpu_parallel_codegen_split_count": "1"}
_given = os.environ.get("XLA_FLAGS", "")
_flags = [f"--{flag}={value}" for flag, value in _QUICK.items() if flag not in _given]
os.environ["XLA_FLAGS"] = " ".join([*_flags, _given]).strip()

import jax  # noqa: E402
import pytest  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--costs FOLDER``."""
    parser.addoption("--costs", type=Path, help="write what tests cost (tests/costs.py)")


def pytest_configure(config: pytest.Config) -> None:
    """Meter the tests where asked to: in the workers, if there are any."""
    folder, is_worker = config.getoption("costs"), "PYTEST_XDIST_WORKER" in os.environ
    if folder and (is_worker or not config.getoption("numprocesses", None)):
        from tests.costs import Meter

        config.pluginmanager.register(Meter(folder))


def pytest_collection_finish() -> None:
    """Modules and tests stay to the end: the collector of garbage need not walk through them.

    Tracing makes many small objects that live as long as their program. With the usual thresholds
    the collector walks over all of them again and again, a seventh of the processor time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@pytest.fixture(autouse=True)
def _doctest_precision(request: pytest.FixtureRequest) -> Iterator[None]:
    """Doctests run under JAX's default precision: they show what a user's session shows."""
    if isinstance(request.node, pytest.DoctestItem):
        with jax.enable_x64(False):
            yield
    else:
        yield
