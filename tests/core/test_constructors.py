"""Shapes that do not fit raise while tracing, and say what was expected and what came."""

import jax
import jax.numpy as jnp
import pytest

from dsfjax import (
    Dense,
    DenseInput,
    DenseOutput,
    Diagonal,
    DiagonalPlusLowRank,
    Factored,
    GivenNormalizer,
    InnerOutput,
    KernelSystem,
    OuterInput,
    Scalar,
    SummedNormalizer,
    System,
    TokenSkip,
    ValueSkip,
)
from dsfjax.core import DenseSkip

SHAPE = (4, 3, 2)  # heads, state expansion, channels
L = 5


def zeros(*shape):
    return jnp.zeros(shape)


def system(A=None, B=None, C=None, D=None, eta=None, reset=None):
    A = Scalar(zeros(L, 4)) if A is None else A
    B = OuterInput(zeros(L, 2, 3)) if B is None else B
    C = InnerOutput(zeros(L, 4, 3)) if C is None else C
    return System(A, B, C, D, eta, reset, state_shape=SHAPE)


MISFITS = {
    "scalar rank": (
        lambda: Scalar(zeros(L)),
        r"Scalar: expected log_a of shape \(T, H\), got \(5,\)",
    ),
    "scalar heads": (
        lambda: system(Scalar(zeros(L, 3))),
        r"Scalar: expected log_a of shape \(T, 4\), got \(5, 3\)",
    ),
    "diagonal rank": (
        lambda: Diagonal(zeros(L, 4, 3)),
        r"Diagonal: expected log_a of shape \(T, H, n or 1, p or 1\), got \(5, 4, 3\)",
    ),
    "diagonal states": (
        lambda: system(Diagonal(zeros(L, 4, 2, 1))),
        r"Diagonal: expected log_a of shape \(T, 4, 3 or 1, 2 or 1\), got \(5, 4, 2, 1\)",
    ),
    "factored step": (
        lambda: Factored(zeros(4, 2), zeros(4, 3, 2)),
        r"expected step .*\(T, H, p\)",
    ),
    "factored heads": (
        lambda: Diagonal.factored(zeros(L, 4, 2), zeros(3, 3, 2)),
        r"Factored: expected rate \(no time axis\) of shape \(4, n, p\), got \(3, 3, 2\)",
    ),
    "factored channels": (
        lambda: system(Diagonal.factored(zeros(L, 4, 7), zeros(4, 3, 1))),
        r"Diagonal: expected log_a",
    ),
    "low rank factors": (
        lambda: DiagonalPlusLowRank(zeros(L, 4, 3), zeros(L, 4, 3, 1), zeros(L, 4, 3, 2)),
        r"expected w and z of shape the same \(n, r\)",
    ),
    "low rank states": (
        lambda: system(DiagonalPlusLowRank(zeros(L, 4, 2), *2 * [zeros(L, 4, 2, 1)])),
        r"expected w of shape \(T, G, 3, r\) with G dividing 4, got \(5, 4, 2, 1\)",
    ),
    "low rank decay": (
        lambda: system(DiagonalPlusLowRank(zeros(L, 4, 2), *2 * [zeros(L, 4, 3, 1)])),
        r"expected log_a of shape \(T, 4, 3 or 1\), got \(5, 4, 2\)",
    ),
    "dense rank": (lambda: Dense(zeros(3, 3)), r"Dense: expected array .* got \(3, 3\)"),
    "dense states": (
        lambda: system(Dense(zeros(L, 4, 2, 2))),
        r"Dense: expected array of shape \(T, 4, 3, 3\) or \(T, 3, 3\), got \(5, 4, 2, 2\)",
    ),
    "b groups": (
        lambda: system(B=OuterInput(zeros(L, 3, 3))),
        r"OuterInput: expected b of shape \(T, G, 3\) with G dividing 4, got \(5, 3, 3\)",
    ),
    "b missing": (lambda: system(B=OuterInput()), r"b is None, which means .* n = 1.*has n = 3"),
    "scale": (
        lambda: system(B=OuterInput(zeros(L, 1, 3), zeros(L, 4, 3))),
        r"OuterInput: expected scale of shape \(T, 4, 2 or 1\), got \(5, 4, 3\)",
    ),
    "value map": (
        lambda: system(B=OuterInput(zeros(L, 1, 3), None, zeros(7, 5))),
        r"expected W \(no time axis\) of shape \(8, d\), got \(7, 5\)",
    ),
    "dense input": (
        lambda: system(B=DenseInput(zeros(L, 23, 5))),
        r"DenseInput: expected array of shape \(T, 24, d\), got \(5, 23, 5\)",
    ),
    "c": (
        lambda: system(C=InnerOutput(zeros(L, 4, 2))),
        r"InnerOutput: expected c of shape \(T, G, 3\) with G dividing 4, got \(5, 4, 2\)",
    ),
    "gate": (
        lambda: system(C=InnerOutput(zeros(L, 4, 3), zeros(L, 8))),
        r"InnerOutput: expected gate of shape \(T, 4, 2 or 1\), got \(5, 8\)",
    ),
    "dense output": (
        lambda: system(C=DenseOutput(zeros(L, 5, 23))),
        r"DenseOutput: expected array of shape \(T, d_out, 24\), got \(5, 5, 23\)",
    ),
    "token skip": (
        lambda: system(D=TokenSkip(zeros(1, 7))),
        r"TokenSkip: expected d of shape \(T, 8\).*got \(1, 7\)",
    ),
    "token skip with a value map": (
        lambda: system(B=OuterInput(zeros(1, 1, 3), None, zeros(8, 5)), D=TokenSkip(zeros(1, 8))),
        r"TokenSkip: .*tokens of width 5. Use DenseSkip",
    ),
    "value skip": (
        lambda: system(D=ValueSkip(zeros(1, 4, 3))),
        r"ValueSkip: expected d of shape \(T, 4, 2 or 1\), got \(1, 4, 3\)",
    ),
    "value skip of a dense input": (
        lambda: system(B=DenseInput(zeros(1, 24, 8)), D=ValueSkip(zeros(1, 4, 2))),
        r"ValueSkip: needs an OuterInput",
    ),
    "dense skip": (
        lambda: system(D=DenseSkip(zeros(1, 8, 7))),
        r"DenseSkip: expected array of shape \(T, 8, 8\), got \(1, 8, 7\)",
    ),
    "given normaliser": (
        lambda: system(eta=GivenNormalizer(zeros(L, 2))),
        r"GivenNormalizer: expected log_eta of shape \(T, 4\), got \(5, 2\)",
    ),
    "summed normaliser of channels": (
        lambda: system(Diagonal(zeros(L, 4, 1, 2)), eta=SummedNormalizer()),
        r"SummedNormalizer: .*must not vary over the value channels",
    ),
    "summed normaliser of a complex system": (
        lambda: system(Scalar(jnp.zeros((L, 4), complex)), eta=SummedNormalizer()),
        r"SummedNormalizer: needs .* real",
    ),
    "normaliser of a dense output": (
        lambda: system(C=DenseOutput(zeros(1, 8, 24)), eta=GivenNormalizer(zeros(L, 4))),
        r"a normaliser needs an InnerOutput",
    ),
    "lengths": (
        lambda: system(Scalar(zeros(6, 4))),
        r"different numbers of steps \[5, 6\]",
    ),
    "reset dtype": (
        lambda: system(reset=jnp.zeros(L, int)),
        r"expected reset of shape \(L,\) and dtype bool, got int64\[5\]",
    ),
    "reset constant in time": (
        lambda: system(reset=jnp.zeros(1, bool)),
        r"System: expected reset of shape \(5,\), one per token, got \(1,\)",
    ),
    "reset rank": (
        lambda: system(reset=jnp.zeros((L, 1), bool)),
        r"expected reset of shape \(L,\) and dtype bool, got bool\[5, 1\]",
    ),
    "keys": (
        lambda: KernelSystem(zeros(L, 4, 3), zeros(L, 3, 3), num_channels=2),
        r"KernelSystem: expected k of shape \(5, G, 3\) with G dividing 4, got \(5, 3, 3\)",
    ),
    "kernel value map": (
        lambda: KernelSystem(zeros(L, 4, 3), zeros(L, 4, 3), zeros(7, 5), num_channels=2),
        r"expected W \(no time axis\) of shape \(8, d\), got \(7, 5\)",
    ),
    "kernel reset": (
        lambda: KernelSystem(
            zeros(L, 4, 3), zeros(L, 4, 3), None, jnp.zeros(4, bool), num_channels=2
        ),
        r"expected reset of shape \(5,\) and dtype bool, got bool\[4\]",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_misfits_raise_while_tracing(case):
    build, message = MISFITS[case]
    with pytest.raises(ValueError, match=message):
        build()
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: jax.tree.leaves(build()))


def test_parts_of_the_wrong_kind():
    with pytest.raises(TypeError):
        system(A=OuterInput())


def test_widths_and_sizes():
    s = system(B=OuterInput(zeros(L, 1, 3), None, zeros(8, 7)))
    assert (s.length, s.num_states, s.token_width, s.output_width) == (5, 24, 7, 8)
    assert s.carried_shape == (4, 3, 2)
    assert not s.is_complex
    summed = system(eta=SummedNormalizer())
    assert (summed.carried_shape, summed.num_states) == ((4, 3, 3), 24)


def test_dtype_is_that_of_the_state():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), system())
    assert half.dtype == jnp.float32
    assert system().dtype == jnp.float64
    assert system(Scalar(jnp.zeros((L, 4), jnp.complex64))).dtype == jnp.complex128
