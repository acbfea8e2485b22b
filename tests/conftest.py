"""float64, run-time type checks, and strict promotion where the mathematics lives."""

import ctypes
import itertools
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores, so XLA's pool in each is narrow. Not one thread: a host callback that
    # waits for a computation needs a second.
    os.environ.setdefault("NPROC", "2")

import hypothesis
import jax
import jaxtyping
import pytest

from tests import checks, costs, goldens

jaxtyping.install_import_hook("dsfjax", f"{checks.__name__}.checked")

jax.config.update("jax_enable_x64", True)

# The first example of a shape compiles, so no deadline; derandomized, so that a red run repeats.
hypothesis.settings.register_profile("dsfjax", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("dsfjax")

_TESTS, _PROCESS = itertools.count(1), Path("/proc/self")
_MOST_PAGES = 1_500_000_000 // resource.getpagesize()
STRICT = frozenset({"core", "engines", "ops", "systems", "analysis", "selfcheck"})


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What costs too much for every run is marked slow."""
    slow = costs.slow_tests()
    for item in items:
        if costs.name_of(item.nodeid) in slow:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _strict_promotion(request: pytest.FixtureRequest) -> Iterator[None]:
    """No implicit dtype or rank promotion in the areas of ``STRICT``; optax and NNX need both."""
    area = request.path.relative_to(Path(__file__).parent).parts[0]
    if area in STRICT:
        with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
            yield
    else:
        yield


@pytest.fixture(autouse=True)
def _release_programs() -> Iterator[None]:
    """Forget compiled programs before they fill the memory, or Linux runs out of maps for them.

    Four workers share a machine's memory. A process may hold 65,530 maps, a program takes a
    hundred, and XLA aborts where there are none left.
    """
    yield
    if next(_TESTS) % 16 == 0 and _PROCESS.exists():
        pages = int((_PROCESS / "statm").read_text().split()[1])
        with (_PROCESS / "maps").open() as maps:
            if pages > _MOST_PAGES or sum(1 for _ in maps) > 30_000:
                jax.clear_caches()
                if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
                    trim(0)  # glibc keeps what was freed in small pieces until it is asked for it


@pytest.fixture
def replace_engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, Any], None]]:
    """``replace_engine(name, engine)`` puts another engine in the place of the one of a name."""
    from dsfjax.engines import ENGINES

    yield lambda name, engine: monkeypatch.setitem(ENGINES, name, engine)
    monkeypatch.undo()


@pytest.fixture
def golden() -> Callable[[str], goldens.Golden]:
    """``golden(name)`` reads ``tests/golden/<name>.npz``."""
    return goldens.load
