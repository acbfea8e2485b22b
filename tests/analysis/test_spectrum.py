"""Distributions of eigenvalues against NumPy on the eigenvalues themselves."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax.analysis import eigenvalues, log_eigenvalues, merge, quantile, spectrum
from dsfjax.analysis.spectrum import LOG_MODULUS_EDGES, NUM_PHASE_BINS
from dsfjax.core import InnerOutput, OuterInput, Scalar, System
from tests import systems_zoo as zoo
from tests.engine_runs import compiled

L = 23
NAMES = ("scalar_extremes", "scalar_given", "diagonal_full", "complex_per_state", "low_rank")
distribution, values_of = compiled(spectrum), compiled(eigenvalues)


MORE = ("scalar_summed", "dense", "kernel")
QUICK = {"scalar_extremes", "complex_per_state", "low_rank", "kernel"}


@pytest.mark.parametrize("name", zoo.slow_unless(QUICK, [*NAMES, "kernel"]))
def test_against_numpy(name: str) -> None:
    system = zoo.kernel_system(L) if name == "kernel" else zoo.system(name, L)
    values = np.asarray(values_of(system))
    found = distribution(system)
    for head in range(values.shape[1]):
        v = values[:, head].reshape(-1)
        v = v[~np.isnan(v)]
        with np.errstate(divide="ignore"):
            log = np.log(np.abs(v))
        assert float(found.weight[head]) == len(v)
        edges = np.array([-np.inf, *LOG_MODULUS_EDGES, np.inf])
        counts = [np.sum((log >= a) & (log < b)) for a, b in zip(edges, edges[1:], strict=False)]
        np.testing.assert_allclose(found.modulus[head], np.array(counts) / len(v), rtol=1e-14)
        # log λ keeps the phase of a decay of 0; it is counted, as log |λ| is, in the lowest bin.
        angle = np.angle(v)[np.abs(v) > 0]
        turns = np.floor((angle + np.pi) / (2 * np.pi / NUM_PHASE_BINS)).astype(int)
        counts = np.bincount(turns % NUM_PHASE_BINS, minlength=NUM_PHASE_BINS) / len(v)
        missing = np.asarray(found.phase[head]) - counts
        np.testing.assert_allclose(missing.sum(), np.mean(v == 0), atol=1e-14)
        assert missing.min() > -1e-14
        finite = log[~np.isneginf(log)]
        for got, expected in (
            (found.mean[head], finite.mean()),
            (found.minimum[head], log.min()),
            (found.maximum[head], log.max()),
            (found.zero[head], np.mean(v == 0)),
            (found.growing[head], np.mean(log > 0)),
        ):
            np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", zoo.slow_unless(QUICK, [*NAMES, *MORE]))
def test_logarithms_and_phases_give_the_eigenvalues(name: str) -> None:
    system = zoo.kernel_system(L) if name == "kernel" else zoo.system(name, L)
    expected, log = np.asarray(values_of(system)), compiled(log_eigenvalues)(system)
    with np.errstate(invalid="ignore"):
        got = np.exp(np.asarray(log.log_modulus)) * np.exp(1j * np.asarray(log.phase))
    np.testing.assert_allclose(got, expected + 0j, rtol=1e-12, atol=1e-14)
    phase = np.asarray(log.phase)
    assert np.nanmin(phase) > -np.pi and np.nanmax(phase) <= np.pi


def test_merge_counts_every_eigenvalue_once() -> None:
    """Two sequences with different numbers of defined steps, as one long one."""
    rng = np.random.default_rng(0)
    log_a = jnp.asarray(-(rng.exponential(size=(4, 6, 2)) ** 2)).at[1, 2].set(-jnp.inf)
    reset = jnp.zeros((4, 6), bool).at[2, 3].set(True)
    one = jnp.ones((1, 1, 1))

    def build(log_a: jax.Array, reset: jax.Array) -> System:
        return System(
            Scalar(log_a), OuterInput(one), InnerOutput(one), reset=reset, state_shape=(2, 1, 1)
        )

    parts = compiled(jax.vmap(lambda a, r: spectrum(build(a, r))))(log_a, reset)
    whole = distribution(build(log_a.reshape(24, 2), reset.reshape(24)))
    for got, expected in zip(merge(parts), whole, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12)
    both, flat = merge(merge(parts)), np.asarray(log_a).copy()
    flat[2, 3] = -np.inf  # the reset
    np.testing.assert_allclose(both.weight, flat.size)
    np.testing.assert_allclose(both.mean, flat[np.isfinite(flat)].mean(), rtol=1e-12)
    np.testing.assert_allclose(both.zero, np.mean(np.isneginf(flat)), rtol=1e-12)


@pytest.mark.parametrize("name", ["complex_per_state"])
def test_many_eigenvalues_are_done_in_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    system = zoo.system(name, L)
    whole = spectrum(system)
    monkeypatch.setattr(sys.modules["dsfjax.analysis.spectrum"], "_AT_ONCE", 30)
    for got, expected in zip(spectrum(system), whole, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_quantiles_to_the_width_of_a_bin() -> None:
    rng = np.random.default_rng(1)
    log = np.sort(-(10 ** rng.uniform(-4, 1, 4000)))
    one = jnp.ones((1, 1, 1))
    system = System(
        Scalar(jnp.asarray(log)[:, None]), OuterInput(one), InnerOutput(one), state_shape=(1, 1, 1)
    )
    found = spectrum(system)
    for q in (0.0, 0.1, 0.5, 0.9, 1.0):
        got, expected = float(quantile(found, q)[0]), np.quantile(log, q)
        assert abs(np.log10(got / expected)) < 0.25, (q, got, expected)  # four bins per decade
    extremes = [float(quantile(found, q)[0]) for q in (0.0, 1.0)]
    np.testing.assert_allclose(extremes, log[[0, -1]], rtol=1e-14)


def test_misuse_is_refused() -> None:
    system = zoo.system("scalar", L)
    with pytest.raises(ValueError, match="expected increasing bin edges"):
        spectrum(system, edges=(0.0, 0.0))
    with pytest.raises(ValueError, match="expected 3 edges"):
        quantile(spectrum(system, edges=(-1.0, 0.0, 1.0)), 0.5)
    with pytest.raises(ValueError, match="q in"):
        quantile(spectrum(system), 1.5)


def test_an_eigenvalue_on_an_edge_counts_above_it() -> None:
    """log |λ| of −1, 0 and 1 on edges of these values, and one below all of them."""
    log_a = jnp.array([-2.0, -1.0, 0.0, 1.0]).reshape(4, 1)
    system = System(Scalar(log_a), OuterInput(), InnerOutput(), state_shape=(1, 1, 1), length=4)
    found = spectrum(system, edges=(-1.0, 0.0, 1.0)).modulus
    np.testing.assert_allclose(found, np.full((1, 4), 0.25))
