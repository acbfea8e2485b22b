"""Products along rows have the values and the gradients of the plain ones, in every transformation.

The plain ones are those of `jax.numpy`, with the derivatives that JAX finds for them.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import Array
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dsfjax.core.rows import dot_general, inner, projected, scaled_rows
from dsfjax.nn.pieces import linear
from tests.draw import Draw

B, L, D, E = 4, 6, 3, 5
CLOSE = partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12)


def arrays(dtype: Any = jnp.float64) -> tuple[Array, ...]:
    g = Draw("rows", L, 0)
    draw = g.complex if jnp.issubdtype(dtype, jnp.complexfloating) else g.normal
    return tuple(draw(*shape).astype(dtype) for shape in ((B, L, D), (D, E), (B, L, E)))


def both(run: Any) -> None:
    """``run(product)`` is the same with ours, of W and of Wᵀ, and with the plain product."""
    plain = run(jnp.matmul)
    for product in (projected, lambda x, W: projected(x, W.T, axis=1)):
        jax.tree.map(CLOSE, *(jax.tree.map(np.asarray, v) for v in (run(product), plain)))


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.complex128])
def test_projected_is_the_product(dtype: Any) -> None:
    x, W, dy = arrays(dtype)

    def pulled(f: Any) -> Any:
        y, pull = jax.vjp(f, x, W)
        return y, pull(dy)

    both(lambda f: f(x[0], W))  # eager
    both(lambda f: pulled(jax.vmap(f, (0, None))))
    both(lambda f: pulled(f))
    # Another batch around it, of x, of W, and of both, on other axes than the first.
    moved = jnp.moveaxis(jnp.stack([x, 2 * x]), 0, 2)
    both(lambda f: jax.vmap(jax.vmap(f, (0, None)), (2, None), 1)(moved, W))
    both(lambda f: jax.vmap(f, (None, 1))(x[0], jnp.stack([W, 2 * W], axis=1)))
    both(lambda f: jax.vmap(f, (0, 0))(x[:2], jnp.stack([W, 2 * W])))
    # One gradient per sequence, forward mode, and a derivative of a derivative.
    both(lambda f: jax.vmap(lambda x, dy: jax.vjp(f, x, W)[1](dy))(x, dy))
    both(lambda f: jax.jvp(jax.jit(f), (x, W), (2 * x, W + 1)))

    def curved(f: Any, W: Array) -> Array:
        return jnp.sum(jnp.abs(jax.vmap(f, (0, None))(x, W)) ** 3)

    if dtype == jnp.float64:
        both(lambda f: jax.hessian(partial(curved, f))(W))
        both(lambda f: jax.grad(jax.checkpoint(partial(curved, f)))(W))


def test_sums_are_wider_than_what_they_sum() -> None:
    x, W, dy = arrays(jnp.bfloat16)

    def run(f: Any) -> Any:
        y, pull = jax.vjp(jax.vmap(f, (0, None)), x, W)
        return y, *pull(dy.astype(jnp.float32))

    ours = run(partial(projected, sums=jnp.float32))
    plain = run(partial(jnp.matmul, preferred_element_type=jnp.float32))
    assert [v.dtype for v in ours] == [jnp.float32, jnp.bfloat16, jnp.bfloat16]
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_allclose(a.astype("float32"), b.astype("float32"), rtol=2**-7)


def test_gradient_of_weights_is_a_product_over_one_axis() -> None:
    """Over two, XLA would copy both operands in another order."""
    x, W, dy = arrays()

    def pull(x: Array, W: Array, dy: Array) -> Array:
        return jax.vjp(lambda W: jax.vmap(projected, (0, None))(x, W), W)[1](dy)[0]

    products = [e for e in jax.make_jaxpr(pull)(x, W, dy).eqns if e.primitive.name == "dot_general"]
    assert [e.params["dimension_numbers"][0] for e in products] == [((0,), (0,))]


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [PartitionSpec("data"), PartitionSpec(None, "data")])
def test_sequences_and_steps_over_devices(axis_type: Any, spec: PartitionSpec) -> None:
    """Here over one device, on which the types say as much; test_sharding.py has four."""
    mesh, whole = jax.make_mesh((1,), ("data",), axis_types=(axis_type,)), PartitionSpec()
    specs = spec, whole, spec
    operands = [
        jax.device_put(v, NamedSharding(mesh, s)) for v, s in zip(arrays(), specs, strict=True)
    ]

    def pulled(f: Any, x: Array, W: Array, dy: Array) -> Any:
        y, pull = jax.vjp(f, x, W)
        return y, *pull(dy)

    both(lambda f: jax.jit(partial(pulled, f))(*operands))
    both(lambda f: jax.jit(partial(pulled, jax.vmap(f, (0, None))))(*operands))

    def over(f: Any, check_vma: bool) -> Any:
        def local(x: Array, W: Array, dy: Array) -> Any:
            y, dx, dW = pulled(f, x, W, dy)
            return y, dx, dW if check_vma else jax.lax.psum(dW, "data")

        out = spec, spec, whole
        run = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=out, check_vma=check_vma)
        return jax.jit(run)(*operands)

    for check_vma in (True, False):
        both(lambda f, check_vma=check_vma: over(f, check_vma))


def test_rows_and_weights_may_be_empty() -> None:
    x, W, dy = arrays()
    both(lambda f: jax.vjp(jax.vmap(f, (0, None)), x[..., :0], W[:0])[1](dy))


def test_linear_maps_of_models_take_it() -> None:
    layer = linear(D, E, rngs=nnx.Rngs(0))
    jaxpr = jax.make_jaxpr(jax.vmap(layer))(arrays()[0])
    assert "dsfjax_projected" in str(jaxpr)
    x = jnp.ones((2, D))
    for axes, how in ((((0,), (0,)), {}), (((1,), (0,)), {"out_sharding": "any"})):
        with pytest.raises(ValueError, match="last axis of x"):
            dot_general(x, jnp.ones((D, E)), (axes, ((), ())), **how)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.complex128])
def test_scaled_rows_and_inner_products(dtype: Any) -> None:
    x, _, y = arrays(dtype)
    y = jnp.concatenate([y, y], axis=-1)[..., :D]

    def run(scale: Any, product: Any) -> Any:
        def of(x: Array, y: Array) -> Array:
            return scale(x, product(x, y))

        out, pull = jax.vjp(of, x, y)
        again = jax.vjp(lambda x: jax.vjp(of, x, y)[1](y), x)[1](pull(y))
        one = jax.vmap(scale, (0, None))(x, product(x, y)[0])  # numbers that all sequences share
        return out, pull(y), again, jax.jvp(of, (x, y), (y, x)), one

    ours = run(scaled_rows, inner)
    plain = run(jnp.multiply, lambda x, y: jnp.sum(x * y, axis=-1, keepdims=True))
    jax.tree.map(CLOSE, *(jax.tree.map(np.asarray, v) for v in (ours, plain)))
    # What has other shapes is multiplied as it is.
    for by in (x[..., :1, :1], x[:1], x):
        CLOSE(scaled_rows(x, by), x * by)
