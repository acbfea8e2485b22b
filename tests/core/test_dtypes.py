"""Dtypes are promoted or refused, by name, and never cut down in silence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import (
    InnerOutput,
    KernelSystem,
    OuterInput,
    Scalar,
    SummedNormalizer,
    System,
    TokenSkip,
    rescale,
    reset_from_lengths,
    reset_from_segment_ids,
    scan,
    separable_system,
    step,
    summarize,
    systems,
)

ONE = jnp.ones((1, 1, 1))
EMA = System(
    Scalar(jnp.log(jnp.array([[0.5]]))), OuterInput(), InnerOutput(), state_shape=(1, 1, 1)
)
WHOLE = (jnp.int32, jnp.uint8, jnp.bool_)


@pytest.mark.parametrize("dtype", WHOLE)
def test_whole_tokens_are_real_numbers(dtype):
    u = jnp.ones((4, 1), dtype)
    y, h = scan(EMA, u)
    assert (y.dtype, y[:, 0].tolist()) == (jnp.float64, [1.0, 1.5, 1.75, 1.875])
    assert step(EMA, u[0], h)[0].tolist() == [1.9375]
    assert summarize(EMA, u).Q.tolist() == h.tolist()


def test_whole_tokens_of_an_architecture():
    arch = systems.get("qlstm", d_model=2)
    params, u = arch.init(jax.random.key(0)), jnp.ones((3, 2), jnp.int32)
    run = jax.jit(lambda u: scan(arch.system(params, u), u)[0])
    np.testing.assert_array_equal(run(u), run(u.astype(jnp.float64)))


def test_whole_numbers_in_a_system():
    """Decays and keys are then scaled without being cut down to whole numbers."""
    A = Scalar(jnp.array([[-1], [-1]]))
    system = System(A, OuterInput(jnp.ones((1, 1, 1), int)), InnerOutput(), state_shape=(1, 1, 1))
    assert rescale(system, jnp.array([0.5, 0.75])).A.log_a[:, 0].tolist() == [-0.5, -0.75]  # pyright: ignore[reportAttributeAccessIssue]
    kernel = KernelSystem(jnp.ones((2, 1, 1), int), jnp.ones((2, 1, 1)), num_channels=1)
    assert kernel.q.dtype == jnp.float64


COMPLEX = jnp.ones((4, 1), jnp.complex128)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: scan(EMA, COMPLEX),
            "scan: expected tokens u of real numbers, got dtype complex128",
        ),
        (lambda: step(EMA, COMPLEX[0], None), "step: expected tokens u"),
        (lambda: summarize(EMA, COMPLEX), "summarize: expected tokens u"),
        (
            lambda: System(
                EMA.A, OuterInput(scale=ONE.astype(complex)), InnerOutput(), state_shape=(1, 1, 1)
            ),
            r"System: expected B \(scale.* of real numbers",
        ),
        (
            lambda: System(
                EMA.A,
                OuterInput(),
                InnerOutput(),
                TokenSkip(ONE[0].astype(complex)),
                state_shape=(1, 1, 1),
            ),
            r"System: expected D \(.* of real numbers",
        ),
        (
            lambda: KernelSystem(ONE.astype(complex), ONE, num_channels=1),
            "KernelSystem: expected q",
        ),
        (lambda: reset_from_lengths(jnp.array([2.0]), 4), "expected lengths of integers"),
        (lambda: reset_from_segment_ids(jnp.array([2.0])), "expected segment_ids of integers"),
    ],
)
def test_what_would_lose_a_part_is_refused(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_short_integers_do_not_wrap():
    lengths = jnp.array([200, 100], jnp.uint8)
    assert jnp.flatnonzero(reset_from_lengths(lengths, 400)).tolist() == [0, 200, 300]
    ids = jnp.array([44, 44, 45], jnp.uint8)  # 300 modulo 256 is 44
    assert reset_from_segment_ids(ids, 300).tolist() == [True, False, True]


def test_a_number_in_a_normaliser_widens_nothing() -> None:
    x = jnp.ones((3, 1, 2), jnp.float32)
    for eta in (SummedNormalizer(1.0, epsilon=1e-6), SummedNormalizer(jnp.float32(1), bonus=0.5)):
        system = separable_system(x, x, eta, num_channels=1)
        assert system.dtype == jnp.float32
        y, h = scan(system, jnp.ones((3, 1), jnp.float32))
        assert y.dtype == h.dtype == jnp.float32
    wide = separable_system(x, x, SummedNormalizer(jnp.ones((1, 1), jnp.float64)), num_channels=1)
    assert wide.dtype == jnp.float64  # an array says what it is
