"""`Precision` says in which dtypes `scan` computes, and nothing else changes."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import (
    DiagonalPlusLowRank,
    InnerOutput,
    OuterInput,
    Precision,
    System,
    scan,
    slice_time,
    step,
)
from tests import systems_zoo as zoo
from tests.engine_checks import cast
from tests.engine_runs import compiled, inputs
from tests.reference_loop import error, run

METHODS = ("sequential", "chunked", "materialized")


def single(name="scalar_summed"):
    return cast(inputs(name, 20), jnp.float32)


def values_and_gradient(system, u, h0, *, precision=None):
    def loss(u, b):
        B = type(system.B)(b, system.B.scale, system.B.W)
        parts = dict(D=system.D, eta=system.eta, reset=system.reset)
        one = type(system)(system.A, B, system.C, **parts, state_shape=system.state_shape)
        y, h = scan(one, u, h0, method="chunked", precision=precision)
        return jnp.sum(y.astype(h.dtype) ** 2) + jnp.sum(h**2)

    runs = [scan(system, u, h0, method=m, precision=precision) for m in METHODS]
    return runs, jax.grad(loss, argnums=(0, 1))(u, system.B.b)


def test_compute_rounds_what_is_multiplied():
    system, u, h0 = single()
    runs, gradients = compiled(values_and_gradient, precision=Precision(compute="bfloat16"))(
        system, u, h0
    )
    exact = run(*cast((system, u, h0), jnp.float64))
    for y, h in runs:
        assert (y.dtype, h.dtype) == (jnp.bfloat16, jnp.float32)
        assert 1e-4 < error(np.asarray(y, np.float64), exact.y) < 2.0**-6
        assert 1e-5 < error(h, exact.h_last) < 2.0**-6
    for x in gradients:
        assert x.dtype == jnp.float32 and jnp.isfinite(x).all() and jnp.any(x != 0)


def test_a_step_rounds_as_the_sequence_does():
    """Decoding under a policy continues what `scan` has begun under it."""
    system, u, h = single()
    policy = Precision(compute="bfloat16")
    y, h_last = compiled(scan, method="sequential", precision=policy)(system, u, h)
    begun, h = compiled(scan, method="sequential", precision=policy)(
        slice_time(system, 0, 18), u[:18], h
    )
    run, exact = compiled(step, precision=policy), h
    for t in (18, 19):
        y_t, h = run(slice_time(system, t, t + 1), u[t], h)
        _, exact = step(slice_time(system, t, t + 1), u[t], exact)
        assert y_t.dtype == jnp.bfloat16 and error(y_t, y[t]) < 2.0**-7
    assert begun.dtype == jnp.bfloat16 and error(h, h_last) < 1e-6
    assert error(exact, h_last) > 1e-5  # what a step without the policy gives


def test_accumulate_widens_states_and_sums():
    system, u, h0 = single()
    runs, _ = compiled(values_and_gradient, precision=Precision(accumulate="float64"))(
        system, u, h0
    )
    exact = run(*cast((system, u, h0), jnp.float64))
    for y, h in runs:
        assert (y.dtype, h.dtype) == (jnp.float32, jnp.float64)
        assert error(h, exact.h_last) < 1e-14
        assert error(y, exact.y) < 1e-7


@pytest.mark.parametrize("matmul", ["highest", "high", "default"])
def test_matmul_reaches_every_product(matmul):
    """Of those engines that have no guard, whose sums are at full precision."""
    system, u, h0 = single("low_rank")
    for method, every in (("sequential", True), ("checkpointed", True), ("chunked", False)):

        def call(u, method=method):
            return scan(system, u, h0, method=method, precision=Precision(matmul=matmul))

        found = re.findall(r"precision=\(Precision\.(\w+),", str(jax.make_jaxpr(call)(u)))
        assert matmul.upper() in found
        assert set(found) == {matmul.upper()} or not every, method


def test_nothing_is_the_policy_that_follows_from_the_inputs():
    system, u, h0 = single()
    for a, b in zip(scan(system, u, h0), scan(system, u, h0, precision=Precision()), strict=True):
        assert jnp.array_equal(a, b) and a.dtype == b.dtype
    assert Precision().products(jnp.bfloat16) == "default"
    assert Precision().products(jnp.float32) == "highest"


def test_kernel_systems_round_too():
    kernel = zoo.kernel_system(6)
    u = zoo.tokens(kernel, 6)
    y, _ = scan(kernel, u, precision=Precision.named("bfloat16"))
    assert y.dtype == jnp.bfloat16
    assert error(np.asarray(y, np.float64), scan(kernel, u)[0]) < 2.0**-5


def test_a_kernel_keeps_its_decays_and_what_moves_its_keys():
    """As a recurrence keeps A: what adds up over the past is not rounded to 8 bits."""
    for name in ("forgetting", "path"):
        kernel = cast(zoo.kernel_variant(name, 6), jnp.float32)
        u = zoo.tokens(kernel, 6).astype(jnp.float32)
        low = cast((kernel.q, kernel.k, kernel.W, u), jnp.bfloat16)
        rounded = dataclasses.replace(kernel, q=low[0], k=low[1], W=low[2])
        run = compiled(scan, precision=Precision.named("bfloat16"))
        y, cache = run(kernel, u)
        assert jnp.array_equal(y, compiled(scan)(rounded, low[3])[0])
        assert y.dtype == jnp.bfloat16 and cache.log_weight.dtype == jnp.float32

        y, cache = compiled(scan, precision=Precision(accumulate="float64"))(kernel, u)
        exact = scan(*cast((kernel, u), jnp.float64))[0]
        assert (y.dtype, cache.k.dtype, cache.log_weight.dtype) == (u.dtype, *[jnp.float64] * 2)
        assert error(y, exact) < 1e-7


def test_misuse_says_what_was_expected():
    with pytest.raises(ValueError, match="unknown compute of Precision 'bfloat6'; did you mean"):
        Precision(compute="bfloat6")
    with pytest.raises(ValueError, match="unknown precision 'fp32'"):
        Precision.named("fp32")
    system, u, _ = single()
    with jax.enable_x64(False), pytest.raises(ValueError, match="JAX with float64.*ENABLE_X64"):
        scan(system, u, precision=Precision(accumulate="float64"))
    assert hash(Precision.named("tf32")) == hash(Precision(matmul="high"))


def test_writing_along_w_is_rounded_by_every_method():
    """In a delta rule W is b, and one array serves as both; only b is rounded."""
    k = jax.random.normal(jax.random.key(0), (6, 1, 4), jnp.float32)
    k = k / jnp.linalg.norm(k, axis=-1, keepdims=True)
    u = jax.random.normal(jax.random.key(1), (6, 3), jnp.float32)

    def states(b, method):
        A = DiagonalPlusLowRank(jnp.zeros((1, 1, 1), jnp.float32), k, k)
        system = System(A, OuterInput(b), InnerOutput(k), state_shape=(1, 4, 3))
        return scan(system, u, method=method, precision=Precision(compute="bfloat16"))[1]

    expected = states(k + 0, "sequential")
    for b in (k, k + 0):
        assert error(states(b, "chunked"), expected) < 1e-6
