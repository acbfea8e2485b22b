"""The small pieces around a recurrence, against their formulas."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import erf

from dsfjax.nn import GLU, MLP, CausalConv
from dsfjax.nn.pieces import dropout, linear, norm
from tests.reference_loop import error

LENGTH, CHANNELS, WIDTH = 9, 5, 4


def numbers(*shape: int) -> Any:
    return jax.random.normal(jax.random.key(sum(shape)), shape)


def convolve(conv: CausalConv, x: Any, past: Any, starts: Any = ()) -> np.ndarray:
    """y_t = b + Σ_j w_j x_{t−W+1+j}, without what lies before the start of t's document."""
    kernel, bias = np.asarray(conv.kernel[...]), np.asarray(conv.bias[...])
    x = np.concatenate([past, x])
    y = np.zeros((len(x) - len(past), x.shape[1]))
    for t in range(len(y)):
        first = max([0, *(len(past) + s for s in starts if s <= t)])
        y[t] = bias
        for j in range(len(kernel)):
            s = len(past) + t - len(kernel) + 1 + j
            if s >= first:
                y[t] += kernel[j] * x[s]
    return y


@pytest.fixture(scope="module")
def conv() -> CausalConv:
    return CausalConv(WIDTH, CHANNELS, rngs=nnx.Rngs(0))


def test_convolution_is_causal_and_depthwise(conv: CausalConv) -> None:
    x = numbers(LENGTH, CHANNELS)
    y, tail = conv(x)
    assert error(y, convolve(conv, x, np.zeros((0, CHANNELS)))) < 1e-15
    assert (tail == x[-3:]).all()


def test_convolution_continues_from_a_tail(conv: CausalConv) -> None:
    x, past = numbers(LENGTH, CHANNELS), numbers(3, CHANNELS)
    y, _ = conv(x, past)
    assert error(y, convolve(conv, x, np.asarray(past))) < 1e-15


@pytest.mark.parametrize("starts", [(0,), (2,), (0, 1, 2), (4, 7), (8,)])
def test_convolution_does_not_reach_into_the_document_before(
    conv: CausalConv, starts: tuple[int, ...]
) -> None:
    x, past = numbers(LENGTH, CHANNELS), numbers(3, CHANNELS)
    reset = jnp.zeros(LENGTH, bool).at[jnp.array(starts)].set(True)
    y, tail = conv(x, past, reset=reset)
    assert error(y, convolve(conv, x, np.asarray(past), starts)) < 1e-15
    inside = LENGTH - max(starts)
    expected = np.where(np.arange(3)[:, None] >= 3 - inside, x[-3:], 0)
    assert (np.asarray(tail) == expected).all()


def test_convolution_step_by_step(conv: CausalConv) -> None:
    x = numbers(LENGTH, CHANNELS)
    tail, outputs = None, []
    for t in range(LENGTH):
        y, tail = conv(x[t : t + 1], tail)
        outputs.append(y)
    assert error(jnp.concatenate(outputs), conv(x)[0]) < 1e-15


def test_convolution_of_one_tap_is_a_scale() -> None:
    conv, x = CausalConv(1, CHANNELS, rngs=nnx.Rngs(0)), numbers(LENGTH, CHANNELS)
    y, tail = conv(x)
    assert error(y, conv.bias[...] + conv.kernel[...] * x) < 1e-15
    assert tail.shape == (0, CHANNELS)


def test_convolution_starts_uniform() -> None:
    conv = CausalConv(4, 2000, rngs=nnx.Rngs(0))
    for values in (np.asarray(conv.kernel[...]), np.asarray(conv.bias[...])):
        assert np.abs(values).max() <= 0.5
        assert np.abs(values).mean() == pytest.approx(0.25, rel=0.05)
        assert values.mean() == pytest.approx(0, abs=0.03)


def test_mlp_is_two_maps_and_an_exact_gelu() -> None:
    mlp: Any = MLP(4, 3, init="published", depth=0, rngs=nnx.Rngs(0))
    x = numbers(6, 4)
    W1, W2 = (np.asarray(layer.kernel[...]) for layer in (mlp.fc1, mlp.fc2))
    assert W1.shape == (4, 12)
    mlp.fc1.bias[...] = b1 = numbers(12)
    mlp.fc2.bias[...] = b2 = numbers(4)
    hidden = np.asarray(x) @ W1 + np.asarray(b1)
    hidden = 0.5 * hidden * (1 + erf(hidden / math.sqrt(2)))
    assert error(mlp(x), hidden @ W2 + np.asarray(b2)) < 1e-14


def test_glu_gates_its_first_half_by_the_second() -> None:
    glu, x = GLU(4, 3, rngs=nnx.Rngs(0)), numbers(6, 4)
    a, b = np.split(np.asarray(x) @ np.asarray(glu.linear.kernel[...]), 2, axis=1)
    assert error(glu(x), a / (1 + np.exp(-b))) < 1e-14


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norms(kind: str) -> None:
    x = np.asarray(numbers(6, 8)) * 3 + 2
    centred = x - x.mean(axis=1, keepdims=True) if kind == "layer" else x
    expected = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
    assert error(norm(kind, 8, rngs=nnx.Rngs(0))(jnp.asarray(x)), expected) < 1e-14


@pytest.mark.parametrize(
    ("init", "depth", "std"),
    [("published", 0, 0.1), ("published", 3, 0.1), ("authors", 0, 0.02), ("authors", 2, 0.01)],
)
def test_linear_maps_start_normal(init: str, depth: int, std: float) -> None:
    layer = linear(100, 80, rngs=nnx.Rngs(0), init=init, depth=depth)
    kernel = np.asarray(layer.kernel[...])
    assert kernel.std() == pytest.approx(std, rel=0.03)
    assert kernel.mean() == pytest.approx(0, abs=5 * std / math.sqrt(kernel.size))
    assert layer.bias is not None and (layer.bias[...] == 0).all()


def test_dropout_zeroes_a_fraction_and_keeps_the_mean() -> None:
    x = jnp.full((200, 100), 2.0)
    y = np.asarray(dropout(x, 0.25, jax.random.key(0)))
    assert set(np.unique(y)) == {0.0, 2.0 / 0.75}
    assert (y == 0).mean() == pytest.approx(0.25, abs=0.02)
    assert dropout(x, 0.25, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x
