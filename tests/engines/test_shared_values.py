"""Heads that share values, against the same system with a copy of the values for every head."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import KernelSystem, Scalar, analysis, explain, materialize, scan, slice_time
from dsfjax.core import feature_system
from dsfjax.engines import log_normalizer
from tests import reference_loop as reference
from tests import systems_zoo as zoo
from tests.engine_runs import COMPILE_FAST, compiled_scan, compiled_step, differentiable

METHODS = ("sequential", "chunked", "materialized")
SLOW = pytest.mark.slow


def copied(system: KernelSystem) -> KernelSystem:
    """With values of every head."""
    return dataclasses.replace(system, W=system.map_of_heads(), value_heads=None)


def copies(v: jax.Array) -> jax.Array:
    """Shared values (S, V, p), once for each of four heads."""
    return jnp.repeat(v, 4 // v.shape[1], axis=1)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        pytest.param(n, m, marks=[] if (n, m) == ("shared", "chunked") else SLOW)
        for n in zoo.SHARED
        for m in METHODS
    ],
)
def test_values_gradients_and_cache(name: str, method: str) -> None:
    """Over several blocks, resets, and a past that is read from the cache."""
    length, cut = 140, 30
    system = zoo.kernel_variant(name, length)
    u = zoo.tokens(system, length)
    bar = jnp.cos(jnp.arange(length * system.output_width)).reshape(length, -1)
    arrays, rebuild = differentiable((system, u))

    def run(make, x):
        whole, u = rebuild(x)
        whole = make(whole)
        y_1, cache = scan(slice_time(whole, 0, cut), u[:cut], method=method)
        y_2, cache = scan(slice_time(whole, cut, length), u[cut:], cache, method=method)
        y = jnp.concatenate([y_1, y_2])
        return jnp.vdot(y, bar), (y, cache)

    both = [
        jax.jit(jax.grad(partial(run, make), has_aux=True), compiler_options=COMPILE_FAST)
        for make in (lambda system: system, copied)
    ]
    (got, (y, cache)), (expected, (y_2, cache_2)) = (each(arrays) for each in both)
    assert reference.error(y, y_2) < 1e-12
    assert cache.v.shape[1:] == system.value_shape
    assert reference.error(copies(cache.v), cache_2.v) == reference.error(cache.k, cache_2.k) == 0
    for a, b in zip(got, expected, strict=True):
        assert reference.error(a, b) < 1e-11


def test_decoding_holds_each_value_once() -> None:
    system = zoo.kernel_variant("shared", 9)
    u = zoo.tokens(system, 9)
    expected, cache = reference.attention(system, u)[0], system.cache(100)
    assert cache.v.shape == (system.most_slots, 2, zoo.P)
    held = sum(x.size for x in (cache.k, cache.v))
    assert held == system.state_size(9) == explain(system).state_size
    assert system.slot_size == copied(system).slot_size - 2 * zoo.P
    for t in range(9):
        y, cache = compiled_step(slice_time(system, t, t + 1), u[t], cache)
        assert reference.error(y, expected[t]) < 1e-12
    with pytest.raises(ValueError, match=r"\(V, p\) = .*\(2, 3\)"):
        scan(system, u, copied(system).cache(9))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_stays_with_its_heads(bad: float) -> None:
    """And within what reads it: decays of 0 between, the window and documents keep it out."""
    system = dataclasses.replace(zoo.kernel_variant("shared", 12), W=None)
    u = zoo.tokens(system, 12).at[4, 1].set(bad)  # channel 1 of value head 0
    y = {m: compiled_scan(system, u, method=m)[0].reshape(12, 4, -1) for m in METHODS}
    seen = np.asarray(materialize(system))[:, :, 4].T > 0
    spoilt = np.zeros(y["chunked"].shape, bool)
    spoilt[:, :2, 1] = seen[:, :2]
    for found in y.values():
        assert np.array_equal(~np.isfinite(found), spoilt)
    # A decay of 0 in one of the heads that share a value hides it from that head alone.
    log_a = jnp.zeros((12, 4)).at[6, 1].set(-jnp.inf)
    system = dataclasses.replace(
        system, transition=Scalar(log_a), window=None, keep_first=0, reset=None
    )
    for method in METHODS:
        found = compiled_scan(system, u, method=method)[0].reshape(12, 4, -1)
        assert not np.isfinite(found[4:, 0, 1]).any() and np.isfinite(found[6:, 1, 1]).all()


def test_maps_and_analysis_see_every_head() -> None:
    system = zoo.kernel_variant("shared", 8)
    u, each = zoo.tokens(system, 8), copied(system)
    y = reference.attention(system, u)[0]
    assert reference.error(materialize(system), materialize(each)) == 0
    full = materialize(system, full=True)
    assert reference.error(jnp.einsum("tosd,sd->to", full, u), y) < 1e-12
    assert reference.error(log_normalizer(system), log_normalizer(each)) == 0
    without = analysis.scale_head(system, 1, 0.0)
    kept = jnp.ones(4).at[1].set(0)[None, :, None]
    changed = (y.reshape(8, 4, -1) * kept).reshape(8, -1)
    assert reference.error(scan(without, u)[0], changed) < 1e-12
    assert reference.error(analysis.mean_age(system), analysis.mean_age(each)) < 1e-12
    plain = dataclasses.replace(system, window=None, keep_first=0)
    for measure in (analysis.rkhs_norm, lambda s, u: analysis.truncation_error(s, u, 4).output):
        assert reference.error(measure(plain, u), measure(copied(plain), u)) < 1e-12
    found = scan(feature_system(plain, jnp.exp), u)[0]
    expected = scan(feature_system(copied(plain), jnp.exp), u)[0]
    assert reference.error(found, expected) < 1e-12
