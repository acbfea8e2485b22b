"""Running sums and products, by a loop and as other devices compute them."""

from typing import Literal

import jax
import numpy as np
import pytest

from dsfjax._util.accumulation import running


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", ["sum", "product"])
def test_rows_are_combined_up_to_each(
    kind: Literal["sum", "product"],
    reverse: bool,
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x = np.random.default_rng(0).normal(size=(5, 2, 3))
    expected = np.empty_like(x)
    for t in range(5):
        rows = x[t:] if reverse else x[: t + 1]
        expected[t] = rows.sum(axis=0) if kind == "sum" else rows.prod(axis=0)
    np.testing.assert_allclose(running(kind, jax.numpy.asarray(x), reverse=reverse), expected)
