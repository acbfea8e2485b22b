"""On a CPU no program has a batch of factorisations, two of which could wait for each other."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import Dense, Diagonal, InnerOutput, OuterInput, System, analysis
from dsfjax._util.factor import one_by_one

FACTORISATIONS = {"eigh", "eig", "svd", "qr", "geqrf", "householder_product"}


def equations(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr):
            if is_jaxpr(value):
                yield from equations(getattr(value, "jaxpr", value))


def is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def batches(function: Any, *inputs: Any) -> list[tuple[str, int]]:
    """Name and number of axes of the operand of every factorisation."""
    return [
        (equation.primitive.name, equation.invars[0].aval.ndim)
        for equation in equations(jax.make_jaxpr(function)(*inputs).jaxpr)
        if equation.primitive.name in FACTORISATIONS
    ]


def test_values_are_those_of_the_batch() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4))
    values, vectors = one_by_one(jnp.linalg.eigh, jnp.asarray(x + x.swapaxes(-1, -2)))
    expected = np.linalg.eigh(x + x.swapaxes(-1, -2))
    np.testing.assert_allclose(values, expected[0], atol=1e-12)
    assert vectors.shape == (2, 3, 4, 4)


def test_the_search_finds_a_batch() -> None:
    assert batches(jax.jit(jnp.linalg.eigh), jnp.zeros((3, 4, 4)))[0] == ("eigh", 3)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere batches are computed as such")
def test_analyses_factorise_one_matrix_after_the_other() -> None:
    b = jnp.ones((5, 2, 3))
    shape = {"state_shape": (2, 3, 4)}
    diagonal = System(Diagonal(-b[..., None]), OuterInput(b), InnerOutput(b), **shape)  # pyright: ignore[reportArgumentType]
    dense = System(Dense(jnp.ones((5, 2, 3, 3)) / 9), OuterInput(b), InnerOutput(b), **shape)  # pyright: ignore[reportArgumentType]
    found = batches(analysis.state_use, diagonal)
    found += batches(analysis.eigenvalues, dense)
    found += batches(analysis.lyapunov_exponents, dense)
    found += batches(lambda s: analysis.balancing(analysis.mean_gramians(s), 2), diagonal)
    assert {name for name, _ in found} >= {"eigh", "svd", "eig"}
    assert [axes for _, axes in found] == [2] * len(found)
