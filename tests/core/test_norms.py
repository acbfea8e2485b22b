"""RMS and layer norm against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from dsfjax.core.norms import layer_norm, rms_norm
from dsfjax.nn.pieces import norm


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(1.0, size=shape)


def test_definitions() -> None:
    x, weight, bias = draw(3, 4, 5), draw(5), draw(5) - 2
    square = (x**2).mean(axis=-1, keepdims=True)
    centred = x - x.mean(axis=-1, keepdims=True)
    plain = x / np.sqrt(square + 0.1)
    x, w, b = (jnp.asarray(v) for v in (x, weight, bias))
    for found, value in (
        (rms_norm(x, w, 0.1), plain * weight),
        (rms_norm(x, w, 0.1, plus_one=True), plain * (1 + weight)),
        (rms_norm(x, None, 0.1), plain),
        (
            layer_norm(x, w, b, 0.1),
            centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 0.1) * weight + bias,
        ),
    ):
        np.testing.assert_allclose(found, value, rtol=1e-13)


def test_weights_of_heads() -> None:
    x, weight, bias = (jnp.asarray(draw(*shape)) for shape in ((3, 4, 5), (4, 5), (4, 5)))
    for i in range(4):
        found = rms_norm(x, weight, 0.1)[:, i]
        np.testing.assert_allclose(found, rms_norm(x[:, i], weight[i], 0.1), rtol=1e-13)
        found = layer_norm(x, weight, bias, 0.1)[:, i]
        np.testing.assert_allclose(found, layer_norm(x[:, i], weight[i], bias[i], 0.1), rtol=1e-13)


def test_gradients() -> None:
    x, w, b = (jnp.asarray(v) for v in (draw(3, 4, 5), draw(5), draw(5)))
    check_grads(jax.jit(lambda x, w: rms_norm(x, w, 0.1)), (x, w), order=2)
    check_grads(jax.jit(lambda x, w, b: layer_norm(x, w, b, 0.1)), (x, w, b), order=2)
    zeros = jnp.zeros((2, 5))
    assert np.isfinite(jax.grad(lambda x: layer_norm(x, w, b, 1e-5).sum())(zeros)).all()


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_modules_are_those_of_flax(kind: str, dtype: str) -> None:
    """Values, gradients and dtypes, in a batch, with the same names of parameters."""
    ours, size = norm(kind, 5, rngs=nnx.Rngs(0)), 5
    make = nnx.LayerNorm if kind == "layer" else nnx.RMSNorm
    theirs = make(
        size, epsilon=1e-5, use_fast_variance=False, param_dtype=jnp.float64, rngs=nnx.Rngs(0)
    )
    state = jax.tree.map(lambda v: jnp.asarray(draw(*v.shape)), nnx.state(theirs))
    nnx.update(ours, state)
    nnx.update(theirs, state)
    x = jnp.asarray(draw(2, 3, size)).astype(dtype)

    def of(module):
        graph, state = nnx.split(module)

        def loss(state, x):
            y = jax.vmap(nnx.merge(graph, state))(x)
            return jnp.sin(y.astype("float64")).sum(), y

        return jax.grad(loss, (0, 1), has_aux=True)(state, x)

    with jax.numpy_dtype_promotion("standard"):
        both = of(ours), of(theirs)
    for found, expected in zip(*map(jax.tree.leaves, both), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(
            np.asarray(found, "float64"), np.asarray(expected, "float64"), rtol=1e-12, atol=1e-14
        )
