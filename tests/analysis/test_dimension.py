"""Effective dimensions of known spectra, and covariances of the states of the reference loop."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax.analysis import effective_dimension, normalizers, state_covariance
from dsfjax.analysis.dimension import Axis
from tests import reference_loop as reference
from tests import systems_zoo as zoo
from tests.engine_runs import compiled

L = 9


def test_known_spectra() -> None:
    energies = jnp.array(
        [
            [1.0, 1.0, 1.0, 1.0],
            [0.0, 5.0, 0.0, 0.0],
            [0.02, 0.0, 0.97, 0.01],
            [3.0, -1e-17, 1.0, 0.0],
        ]
    )
    found = effective_dimension(energies)
    assert found.rank.tolist() == [4, 1, 2, 2]
    expected = [4, 1, 1 / (0.02**2 + 0.97**2 + 0.01**2), 16 / 10]
    np.testing.assert_allclose(found.participation, expected, rtol=1e-12)


def test_share_is_the_smallest_number_that_reaches_it() -> None:
    energies = jnp.array([0.1, 0.5, 0.3, 0.1])
    ranks = [int(effective_dimension(energies, share=s).rank) for s in (0.5, 0.51, 0.8, 0.95, 1.0)]
    assert ranks == [1, 2, 2, 4, 4]
    nothing = effective_dimension(jnp.zeros(4))
    assert int(nothing.rank) == 0 and np.isnan(nothing.participation)
    with pytest.raises(ValueError, match="expected share in"):
        effective_dimension(energies, share=0.0)


@pytest.mark.parametrize("name", ["scalar_summed", "diagonal_factored", "complex_lti", "dense"])
def test_covariances_of_the_states(name: str) -> None:
    system = zoo.system(name, L)
    u = zoo.tokens(system, L)
    heads, n, p = system.state_shape
    eta = np.exp(np.asarray(normalizers(system, length=L).log))[:, :, None, None]
    h = reference.run(system, u).states[..., :p] / eta
    cases: dict[Axis, np.ndarray] = {
        "all": h.reshape(L, heads, n * p),
        "states": h.transpose(0, 3, 1, 2).reshape(L * p, heads, n),
        "channels": h.transpose(0, 2, 1, 3).reshape(L * n, heads, p),
    }
    for over, samples in cases.items():
        expected = np.einsum("shi,shj->hij", samples, samples.conj()) / len(samples)
        got = compiled(partial(state_covariance, over=over))(system, u)
        assert reference.error(got, expected) < 1e-12


def test_misuse_is_refused() -> None:
    system = zoo.kernel_system(L)
    with pytest.raises(ValueError, match="KernelSystem has no finite state"):
        state_covariance(system, zoo.tokens(system, L))
