"""Windows, decays, soft caps and sinks of a `KernelSystem`, against its equation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import Dense, KernelSystem, Scalar, explain, materialize, scan, slice_time
from dsfjax.engines import attention, log_normalizer
from dsfjax.engines.moving_keys import CHUNK
from tests import reference_loop as reference
from tests import systems_zoo as zoo
from tests.engine_runs import COMPILE_FAST, compiled, compiled_scan, compiled_step, differentiable

METHODS = ("sequential", "chunked", "materialized")
SLOW = pytest.mark.slow


def equation(system: KernelSystem, u: jax.Array) -> jax.Array:
    """Outputs by the whole L × L array of scores, differentiable."""
    length, heads, _ = system.q.shape
    v = u if system.W is None else u @ system.W.T
    k = jnp.repeat(system.k, heads // system.k.shape[1], axis=1)
    x = jnp.einsum("thm,shm->hts", system.q, k)
    if system.soft_cap is not None:
        x = system.soft_cap * jnp.tanh(x / system.soft_cap)
    t = jnp.arange(length)
    document = jnp.zeros(length) if system.reset is None else jnp.cumsum(system.reset)
    seen = (document[:, None] == document[None]) & (t[:, None] >= t[None])
    if system.window is not None:
        begin = jnp.argmax(document[:, None] == document[None], axis=1)
        first = t[None] - begin[:, None] < system.keep_first
        seen = seen & ((t[:, None] - t[None] < system.window) | first)
    seen = jnp.broadcast_to(seen[None], x.shape)
    if isinstance(system.transition, Scalar):
        g = jnp.broadcast_to(system.transition.log_a, (length, heads)).T
        between = (t[:, None, None] >= t[None, None]) & (t[None, None] > t[None, :, None])
        between = between.astype(x.dtype)  # (t, s, r): s < r ≤ t
        is_zero = jnp.isneginf(g)
        seen = seen & (jnp.einsum("tsr,hr->hts", between, is_zero.astype(x.dtype)) == 0)
        x = x + jnp.einsum("tsr,hr->hts", between, jnp.where(is_zero, 0, g))
    weights = jnp.where(seen, jnp.exp(x), 0)
    sink = 0 if system.sink is None else jnp.exp(system.sink)[:, None, None]
    phi = weights / (weights.sum(axis=-1, keepdims=True) + sink)
    v = v.reshape(length, -1, system.num_channels)
    v = jnp.repeat(v, heads // v.shape[1], axis=1)
    return jnp.einsum("hts,shp->thp", phi, v).reshape(length, -1)


@pytest.mark.parametrize("name", zoo.slow_unless({"streaming", "path", "multi_query"}, zoo.KERNELS))
def test_equation(name):
    system = zoo.kernel_variant(name, 20)
    u = zoo.tokens(system, 20)
    y, phi = reference.attention(system, u)
    if system.key_transition is None:
        assert reference.error(equation(system, u), y) < 1e-13
    assert reference.error(materialize(system), phi) < 1e-12
    for method in METHODS:
        assert reference.error(compiled_scan(system, u, method=method)[0], y) < 1e-12, method


@pytest.mark.parametrize(
    "method", ["chunked", *(pytest.param(x, marks=SLOW) for x in ("sequential", "materialized"))]
)
def test_gradients_across_blocks(method):
    """Outputs, gradients and the cache, with a past of 30 steps; more than one block of keys."""
    length = 140
    system = zoo.kernel_variant("everything", length)
    u = zoo.tokens(system, length)
    bar = jnp.cos(jnp.arange(length * system.output_width)).reshape(length, -1)
    arrays, rebuild = differentiable((system, u))

    def split(x):
        whole, u = rebuild(x)
        y_1, cache = scan(slice_time(whole, 0, 30), u[:30], method="materialized")
        y_2, cache = scan(slice_time(whole, 30, length), u[30:], cache, method=method)
        loss = jnp.vdot(jnp.concatenate([y_1, y_2]), bar) + jnp.sum(jnp.sin(cache.k))
        return loss + jnp.sum(cache.log_weight), y_2

    def textbook(x):
        whole, u = rebuild(x)
        y = equation(whole, u)
        kept = slice(length - whole.window, None)
        g = whole.transition.log_a[kept]
        since = g.sum(axis=0)[None] - jnp.cumsum(g, axis=0)
        return jnp.vdot(y, bar) + jnp.sum(jnp.sin(whole.k[kept])) + jnp.sum(since), y[30:]

    assert system.window is not None
    assert length // 2 < length - system.window  # no decay of 0 among what the cache keeps
    expected, y = jax.jit(jax.grad(textbook, has_aux=True))(arrays)
    run = jax.jit(jax.grad(split, has_aux=True), compiler_options=COMPILE_FAST)
    got, y_2 = run(arrays)
    assert reference.error(y_2, y) < 1e-12
    for a, b in zip(got, expected, strict=True):
        assert reference.error(a, b) < 1e-11


@pytest.mark.slow
@pytest.mark.parametrize("name", ["path", "wall", "turning"])
def test_keys_that_move_across_chunks(name):
    """Outputs, gradients and the cache, with a past of 30 steps and three chunks."""
    length = 30 + 2 * CHUNK + 10
    system = zoo.kernel_variant(name, length)
    u = zoo.tokens(system, length)
    bar = jnp.cos(jnp.arange(length * system.output_width)).reshape(length, -1)
    arrays, rebuild = differentiable((system, u))

    def split(method, x):
        whole, u = rebuild(x)
        y_1, cache = scan(slice_time(whole, 0, 30), u[:30], method=method)
        y_2, cache = scan(slice_time(whole, 30, length), u[30:], cache, method=method)
        y = jnp.concatenate([y_1, y_2])
        return jnp.vdot(y, bar) + jnp.sum(jnp.sin(cache.k)), (y, cache)

    run = jax.jit(jax.grad(split, 1, has_aux=True), static_argnums=0, compiler_options=COMPILE_FAST)
    (expected, (y, cache)), (got, (y_2, cache_2)) = (
        run(m, arrays) for m in ("sequential", "chunked")
    )
    assert reference.error(y_2, y) < 1e-12
    for a, b in zip(jax.tree.leaves(cache_2), jax.tree.leaves(cache), strict=True):
        assert reference.error(jnp.nan_to_num(a), jnp.nan_to_num(b)) < 1e-12
    for a, b in zip(got, expected, strict=True):
        assert reference.error(a, b) < 1e-11


def test_decoding_with_keys_that_move():
    system = zoo.kernel_variant("wall", 9)
    u = zoo.tokens(system, 9)
    expected, cache = reference.attention(system, u)[0], system.cache(100)
    assert cache.k.shape == (5, 4, zoo.N)  # a decay per query head: a key for each of them
    for t in range(9):
        y, cache = compiled_step(slice_time(system, t, t + 1), u[t], cache)
        assert reference.error(y, expected[t]) < 1e-12


def test_a_not_finite_key_that_moves_stays_in_its_document():
    system = zoo.kernel_variant("path", 150)
    reset = jnp.zeros(150, bool).at[100].set(True)
    system = dataclasses.replace(system, reset=reset, k=system.k.at[70, 1, 0].set(jnp.nan))
    u = zoo.tokens(system, 150)
    y, y_chunked = (compiled_scan(system, u, method=m)[0] for m in ("sequential", "chunked"))
    nan = np.isnan(y).reshape(150, 4, -1)
    assert nan[70:100, 2:].all() and nan.sum() == nan[70:100, 2:].size
    np.testing.assert_array_equal(np.isnan(y_chunked), np.isnan(y))
    assert reference.error(np.nan_to_num(y_chunked), np.nan_to_num(y)) < 1e-12


@SLOW
@pytest.mark.parametrize("name", ["everything", "streaming"])
def test_decoding_holds_no_more_than_is_seen(name):
    """A cache of as many slots as window and first steps, for any number of steps, one program."""
    system = zoo.kernel_variant(name, 20)
    slots = {"everything": 6, "streaming": 3 + 2}[name]
    u = zoo.tokens(system, 20)
    expected = reference.attention(system, u)[0]
    cache = system.cache(100)
    assert cache.k.shape[0] == slots == system.most_slots
    for t in range(20):
        y, cache = compiled_step(slice_time(system, t, t + 1), u[t], cache)
        assert reference.error(y, expected[t]) < 1e-12
    y, cache = compiled_scan(slice_time(system, 0, 15), u[:15], system.cache(100), method="chunked")
    assert reference.error(y, expected[:15]) < 1e-12
    assert cache.k.shape[0] == int(cache.length) == slots
    y, _ = compiled_step(slice_time(system, 15, 16), u[15], cache)
    assert reference.error(y, expected[15]) < 1e-12


@SLOW
def test_first_steps_are_kept_across_blocks():
    """Outputs, cache and gradients: documents that begin in other blocks, a past, and its cut."""
    length, cut, window, first = 400, 170, 40, 3
    system = zoo.kernel_system(length, with_reset=False)
    reset = jnp.zeros(length, bool).at[jnp.array([7, 127, 180])].set(True)
    system = dataclasses.replace(system, window=window, keep_first=first, reset=reset)
    u = zoo.tokens(system, length)
    bar = jnp.cos(jnp.arange(length * system.output_width)).reshape(length, -1)
    arrays, rebuild = differentiable((system, u))

    def split(x):
        whole, u = rebuild(x)
        y_1, cache = scan(slice_time(whole, 0, cut), u[:cut], method="chunked")
        y_2, cache = scan(slice_time(whole, cut, length), u[cut:], cache, method="chunked")
        y = jnp.concatenate([y_1, y_2])
        return jnp.vdot(y, bar) + jnp.sum(jnp.sin(cache.k)), (y, cache)

    def textbook(x):
        whole, u = rebuild(x)
        y = equation(whole, u)
        kept = jnp.concatenate([whole.k[180 : 180 + first], whole.k[length - window :]])
        return jnp.vdot(y, bar) + jnp.sum(jnp.sin(kept)), (y, kept)

    run = jax.jit(jax.grad(split, has_aux=True), compiler_options=COMPILE_FAST)
    got, (y, cache) = run(arrays)
    expected, (y_2, kept) = jax.jit(jax.grad(textbook, has_aux=True))(arrays)
    assert reference.error(y, y_2) < 1e-12
    assert reference.error(cache.k, kept) == 0
    for a, b in zip(got, expected, strict=True):
        assert reference.error(a, b) < 1e-11


def test_a_long_past_keeps_its_precision():
    """In float32 cumulative decays of −40,000 leave no trace in the weights of nearby steps."""
    length, log_a = 8000, np.float32(-5.1)
    q = jnp.zeros((length, 1, 1), jnp.float32)
    system = KernelSystem(q, q, transition=Scalar(jnp.full((1, 1), log_a)), num_channels=1)
    eta = np.cumsum(np.exp(np.float64(log_a) * np.arange(length)))
    found = np.asarray(compiled(log_normalizer)(system))[:, 0]
    assert np.abs(found - np.log(eta)).max() < 1e-6 * abs(log_a) * 16


def test_blocks_outside_the_window_are_not_visited():
    """The range of keys of a block of queries follows window and documents."""
    visited = []
    length, block = 2048, attention.BLOCK
    reset = jnp.zeros(length, bool).at[1024].set(True)
    for window, resets in ((None, None), (100, None), (None, reset)):
        system = dataclasses.replace(
            zoo.kernel_system(length, with_reset=False), window=window, reset=resets
        )
        zero = jnp.zeros((), jnp.int32)
        _, start, _ = attention._visible(system, length, zero, zero)
        begin = np.asarray(start).reshape(-1, block).min(axis=1) // block
        visited.append(sum(i - b + 1 for i, b in enumerate(begin)))
    assert visited == [136, 31, 72]


def test_explain_says_what_the_kernel_has():
    system = zoo.kernel_variant("everything", 300)
    found = explain(system)
    held = jax.tree.leaves(system.cache(300)._replace(first=None, length=None))
    assert found.state_size == system.state_size(500) == sum(x.size for x in held)
    for word in ("window of 100", "decay", "soft cap 2.0", "sink"):
        assert word in found.structure
    streaming = zoo.kernel_variant("streaming", 300)
    assert "the first 2 steps of a document and a window of 3" in explain(streaming).structure
    assert explain(streaming).state_size == streaming.slot_size * 5
    assert found.flops < explain(zoo.kernel_system(300)).flops


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"window": 0}, ValueError, "window of at least 1 step, got 0"),
        ({"soft_cap": 0.0}, ValueError, "soft_cap above 0, got 0.0"),
        ({"keep_first": -1}, ValueError, "keep_first of at least 0 steps, got -1"),
        ({"value_heads": 3}, ValueError, "value_heads to divide the 4 heads of q, got 3"),
        ({"value_heads": 0}, ValueError, "value_heads to divide the 4 heads of q, got 0"),
        ({"value_heads": 2}, ValueError, r"W .*\(8, d\), got \(16, 5\)"),
        ({"sink": jnp.zeros(3)}, ValueError, r"sink .*\(4,\), got \(3,\)"),
        ({"transition": Scalar(jnp.zeros((2, 4)))}, ValueError, "5 or 1"),
        ({"transition": Scalar(jnp.zeros((5, 3)))}, ValueError, r"log_a .*\(T, 4\)"),
        ({"transition": Scalar(jnp.zeros((1, 4)), -jnp.ones((1, 4)))}, TypeError, "without signs"),
        ({"transition": Dense(jnp.zeros((1, 3, zoo.N, zoo.N)))}, ValueError, "array of shape"),
        (
            {"transition": Scalar(jnp.zeros((1, 4))), "log_decay": jnp.zeros((1, 4))},
            ValueError,
            "one decay",
        ),
    ],
)
def test_misuse(more, error, message):
    with pytest.raises(error, match=message):
        dataclasses.replace(zoo.kernel_system(5), **more)


def test_a_cache_without_decays_is_refused():
    system = zoo.kernel_variant("forgetting", 5)
    plain = dataclasses.replace(system, transition=None)
    with pytest.raises(ValueError, match=r"a KVCache with log_weight.*system\.cache"):
        scan(system, zoo.tokens(system, 5), plain.cache(9))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_decay_that_is_no_number_is_gone_after_a_reset(bad: float) -> None:
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(8, 2, 3))) for _ in range(2))
    u = jnp.asarray(rng.normal(size=(8, 4)))
    clean = -np.abs(rng.normal(size=(8, 2)))
    spoilt = clean.copy()
    spoilt[[2, 5], 0] = bad  # in a document; at the first step of one, where it acts on nothing
    reset = jnp.arange(8) == 5

    def system(log_a: np.ndarray) -> KernelSystem:
        transition = Scalar(jnp.asarray(log_a))
        return KernelSystem(q, k, reset=reset, transition=transition, num_channels=2)

    expected = np.array(scan(system(clean), u)[0]).reshape(8, 2, 2)
    expected[2:5, 0] = np.nan  # what reads the keys before step 2, in that head alone
    one, parts = system(spoilt), [(0, 3), (3, 4), (4, 8)]
    for method in ("sequential", "chunked", "materialized"):
        whole = scan(one, u, method=method)[0]
        np.testing.assert_allclose(whole.reshape(8, 2, 2), expected, atol=1e-12)
        pieces, cache = [], one.cache(8)
        for a, b in parts:
            y, cache = scan(slice_time(one, a, b), u[a:b], cache, method=method)
            pieces.append(y)
        found = jnp.concatenate(pieces).reshape(8, 2, 2)
        np.testing.assert_allclose(found, expected, atol=1e-12)
    shown = np.isnan(materialize(one)).any(axis=-1)
    assert (shown == np.isnan(expected[..., 0]).T).all()
