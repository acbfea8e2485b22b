"""Doctests run under JAX's default precision: they show what a user's session shows."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def _doctest_precision(request: pytest.FixtureRequest) -> Iterator[None]:
    if isinstance(request.node, pytest.DoctestItem):
        with jax.enable_x64(False):
            yield
    else:
        yield
