"""Softmax attention as a `KernelSystem`, against the textbook and through its caches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import KVCache, materialize, scan, slice_time, step
from dsfjax.engines import attention, log_normalizer
from tests import reference_loop as reference
from tests import systems_zoo as zoo
from tests.engine_runs import COMPILE_FAST, compiled_scan, compiled_step, differentiable

METHODS = ("sequential", "chunked", "materialized")
SLOW = pytest.mark.slow


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("length", [1, 40, *(pytest.param(x, marks=SLOW) for x in (2, 7))])
def test_textbook(length, method):
    system = zoo.kernel_system(length)
    u = zoo.tokens(system, length)
    y, phi = reference.attention(system, u)
    assert reference.error(compiled_scan(system, u, method=method)[0], y) < 1e-12
    assert reference.error(materialize(system), phi) < 1e-12


@pytest.mark.parametrize(
    ("length", "with_reset"),
    [
        (129, True),
        (300, False),
        *(pytest.param(x, True, marks=SLOW) for x in (128, 300)),
    ],
)
def test_blocks(length, with_reset):
    """Lengths around the block of 128 keys."""
    system = zoo.kernel_system(length, with_reset=with_reset)
    u = zoo.tokens(system, length)
    y, cache = compiled_scan(system, u, method="chunked")
    assert reference.error(y, reference.attention(system, u)[0]) < 1e-12
    for a, b in zip(cache, compiled_scan(system, u, method="materialized")[1], strict=True):
        assert (a is None and b is None) or reference.error(a, b) == 0


@pytest.mark.parametrize("method", METHODS)
def test_reverse(method):
    """Each token sees itself and what follows within its document."""
    system = zoo.kernel_system(12)
    u = zoo.tokens(system, 12)
    y = compiled_scan(system, u, method=method, reverse=True)[0]
    assert system.reset is not None
    document = np.cumsum(np.asarray(system.reset))
    _, heads, _ = system.q.shape
    v = np.asarray(u) @ np.asarray(system.W).T
    v = v.reshape(12, heads, -1)
    for h in range(heads):
        scores = np.exp(np.asarray(system.q[:, h] @ system.k[:, h // 2].T))
        visible = (document[:, None] == document) & ~np.tri(12, k=-1, dtype=bool)
        weights = np.where(visible, scores, 0)
        expected = weights / weights.sum(axis=1, keepdims=True) @ v[:, h]
        assert reference.error(y.reshape(12, heads, -1)[:, h], expected) < 1e-12


@pytest.mark.parametrize("length", [pytest.param(5, marks=SLOW), 150])
def test_gradients_agree(length):
    system = zoo.kernel_system(length)
    arrays, rebuild = differentiable((system, zoo.tokens(system, length)))
    bar = jnp.cos(jnp.arange(length * system.output_width)).reshape(length, -1)

    def pull_back(method):
        run = jax.jit(
            lambda x: jax.grad(lambda x: jnp.vdot(scan(*rebuild(x), method=method)[0], bar))(x),
            compiler_options=COMPILE_FAST,
        )
        return run(arrays)

    def textbook(x):
        system, u = rebuild(x)
        v = (u @ system.W.T).reshape(length, 4, -1)
        scores = jnp.einsum("thm,shm->hts", system.q, jnp.repeat(system.k, 2, axis=1))
        document = jnp.cumsum(system.reset)
        visible = (document[:, None] == document[None]) & jnp.tri(length, dtype=bool)
        phi = jax.nn.softmax(jnp.where(visible[None], scores, -jnp.inf))
        return jnp.vdot(jnp.einsum("hts,shp->thp", phi, v).reshape(length, -1), bar)

    for expected, *got in zip(
        jax.jit(jax.grad(textbook))(arrays), *(pull_back(m) for m in METHODS), strict=True
    ):
        for x in got:
            assert reference.error(x, expected) < 1e-11


def test_large_scores_do_not_overflow():
    system = zoo.kernel_system(200)
    u = zoo.tokens(system, 200)
    system = dataclasses.replace(system, q=1000 * system.q)
    exact = np.asarray(compiled_scan(system, u, method="materialized")[0])
    assert np.all(np.isfinite(exact))
    assert reference.error(compiled_scan(system, u, method="chunked")[0], exact) < 1e-11


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cut", [pytest.param(1, marks=SLOW), 6])
def test_cut(cut, method):
    system = zoo.kernel_system(10)
    u = zoo.tokens(system, 10)
    expected, whole = compiled_scan(system, u)
    y_1, cache = compiled_scan(slice_time(system, 0, cut), u[:cut], method=method)
    y_2, cache = compiled_scan(slice_time(system, cut, 10), u[cut:], cache, method=method)
    assert reference.error(jnp.concatenate([y_1, y_2]), expected) < 1e-12
    assert reference.error(cache.k, whole.k) == 0
    assert int(cache.first) == int(whole.first)


def empty(capacity: int, dtype=jnp.float64) -> KVCache:
    return zoo.kernel_system(1).cache(capacity, dtype)


@pytest.mark.parametrize("allocated", [False, True])
def test_decoding(allocated):
    """A cache that grows, and one that is written in place with constant shapes."""
    system = zoo.kernel_system(7)
    u = zoo.tokens(system, 7)
    expected = reference.attention(system, u)[0]
    cache = empty(9) if allocated else None
    for t in range(7):
        y, cache = compiled_step(slice_time(system, t, t + 1), u[t], cache)
        assert isinstance(cache, KVCache)
        assert reference.error(y, expected[t]) < 1e-12
        assert cache.k.shape[0] == (9 if allocated else t + 1)


def test_decoding_in_a_compiled_loop():
    system = zoo.kernel_system(7)
    u = zoo.tokens(system, 7)
    expected = reference.attention(system, u)[0]

    decode = jax.jit(lambda cache, now, token: step(now, token, cache))
    cache = empty(7)
    for t in range(7):
        y, cache = decode(cache, slice_time(system, t, t + 1), u[t])
        assert reference.error(y, expected[t]) < 1e-12
    assert decode._cache_size() == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", METHODS)
def test_prefill_of_an_allocated_cache(method):
    system = zoo.kernel_system(7)
    u = zoo.tokens(system, 7)
    expected = reference.attention(system, u)[0]
    y, cache = compiled_scan(slice_time(system, 0, 5), u[:5], empty(8), method=method)
    assert reference.error(y, expected[:5]) < 1e-12
    assert (cache.k.shape[0], int(cache.length)) == (8, 5)
    y, cache = compiled_scan(slice_time(system, 5, 7), u[5:], cache, method=method)
    assert reference.error(y, expected[5:]) < 1e-12


@pytest.mark.parametrize("method", METHODS)
def test_overflow_raises_where_the_length_is_known(method):
    system = zoo.kernel_system(4)
    u = zoo.tokens(system, 4)
    with pytest.raises(ValueError, match="expected room for 4 more steps.*0 of 3.*larger capacity"):
        scan(system, u, empty(3), method=method)
    full = scan(system, u, empty(4), method=method)[1]
    with pytest.raises(ValueError, match="room for 1 more steps.*4 of 4"):
        step(slice_time(system, 3, 4), u[3], full)


def test_overflow_is_nan_while_tracing():
    system = zoo.kernel_system(4)
    u = zoo.tokens(system, 4)
    cache, finite = empty(3), []
    for t in range(4):
        y, cache = compiled_step(slice_time(system, t, t + 1), u[t], cache)
        finite.append(bool(jnp.all(jnp.isfinite(y))))
        assert bool(jnp.all(jnp.isnan(y))) != finite[-1]
    assert finite == [True, True, True, False]


def test_bfloat16_cache():
    """Half the memory; sums are float32 nevertheless."""
    system = zoo.kernel_system(20, with_reset=False)
    u = zoo.tokens(system, 20)
    expected = reference.attention(system, u)[0]
    y, cache = compiled_scan(system, u, empty(20, jnp.bfloat16))
    assert (y.dtype, cache.k.dtype, cache.v.dtype) == (u.dtype, jnp.bfloat16, jnp.bfloat16)
    assert 1e-6 < reference.error(y, expected) < 2e-2


def test_bfloat16_inputs():
    system = jax.tree.map(
        lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float64 else x, zoo.kernel_system(20)
    )
    u = zoo.tokens(system, 20).astype(jnp.bfloat16)
    wide = jax.tree.map(lambda x: x.astype(float) if x.dtype == jnp.bfloat16 else x, system)
    expected = reference.attention(wide, u.astype(float))[0]
    for method in METHODS:
        y, cache = compiled_scan(system, u, method=method)
        assert (y.dtype, cache.k.dtype) == (jnp.bfloat16, jnp.float32)
        assert reference.error(y.astype(float), expected) < 1e-2, method


@pytest.mark.parametrize("length", [3, 150])
def test_log_normalizer(length):
    system = zoo.kernel_system(length)
    q, k, reset = (np.asarray(x) for x in (system.q, system.k, system.reset))
    document = np.cumsum(reset)
    expected = np.zeros((length, 4))
    for t in range(length):
        seen = [s for s in range(t + 1) if document[s] == document[t]]
        for h in range(4):
            expected[t, h] = np.log(np.exp(k[seen, h // 2] @ q[t, h]).sum())
    assert reference.error(log_normalizer(system), expected) < 1e-12


def test_full_kernel():
    system = zoo.kernel_system(6)
    u = zoo.tokens(system, 6)
    full = materialize(system, full=True)
    y = np.einsum("tosd,sd->to", full, u)
    assert reference.error(y, reference.attention(system, u)[0]) < 1e-12


def test_vmap():
    systems = [zoo.kernel_system(150, seed) for seed in range(2)]
    tokens = [zoo.tokens(system, 150, seed) for seed, system in enumerate(systems)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *systems)
    run = jax.jit(jax.vmap(lambda s, u: scan(s, u, method="chunked")[0]))
    y = run(stacked, jnp.stack(tokens))
    for i in range(2):
        assert reference.error(y[i], reference.attention(systems[i], tokens[i])[0]) < 1e-12


def test_blocks_use_memory_linear_in_the_length():
    """The compiled program has no buffer of L × L entries."""
    length = 16 * attention.BLOCK
    system = zoo.kernel_system(length, with_reset=False)
    u = zoo.tokens(system, length)
    compiled = jax.jit(lambda s, u: scan(s, u, method="chunked")[0]).lower(system, u).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 0.25 * length**2 * 4 * 8
