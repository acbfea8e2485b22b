"""Blocks of an array against slices, with every transformation of JAX."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dsfjax.engines.slices import block, put

X = jnp.arange(2 * 6 * 6 * 3, dtype=float).reshape(2, 6, 6, 3) ** 1.5
VALUE = -jnp.arange(2 * 2 * 6 * 3, dtype=float).reshape(2, 2, 6, 3)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_block_and_its_place(axis: int) -> None:
    x, value = X[0], jnp.moveaxis(VALUE[0], 0, axis)
    expected = jnp.moveaxis(x, axis, 0)
    found = jax.jit(block, static_argnums=(2, 3))(x, 2, 2, axis)
    np.testing.assert_array_equal(jnp.moveaxis(found, axis, 0), expected[4:6])
    changed = np.array(expected)
    changed[2:4] = VALUE[0]
    found = jax.jit(put, static_argnums=3)(x, value, 1, axis)
    np.testing.assert_array_equal(jnp.moveaxis(found, axis, 0), changed)


@pytest.mark.parametrize("in_axes", [(0, None), (1, None), (2, None), (-1, None), (0, 0)])
def test_batches_of_blocks(in_axes: tuple[int, int | None]) -> None:
    """Any axis may be that of the batch, and every member may have an index of its own."""
    index = jnp.array([1, 0, 2, 1, 0, 2])[: X.shape[in_axes[0]]] if in_axes[1] == 0 else 1

    def take(x, i):
        return block(x, i, 1, axis=1)

    found = jax.vmap(take, in_axes=in_axes)(X, index)
    members = jnp.moveaxis(X, in_axes[0], 0)
    each = [take(x, i) for x, i in zip(members, jnp.broadcast_to(index, len(members)), strict=True)]
    np.testing.assert_array_equal(found, jnp.stack(each))


@pytest.mark.parametrize("in_axes", [(0, 0, None), (None, 0, None), (0, None, None), (0, 0, 0)])
def test_batches_of_places(in_axes: tuple[int | None, ...]) -> None:
    arguments: list[Any] = [X, VALUE, jnp.array([2, 0])]
    arguments = [v[1] if a is None else v for v, a in zip(arguments, in_axes, strict=True)]
    found = jax.vmap(put, in_axes=in_axes)(*arguments)
    for j, one in enumerate(found):
        mine = [v if a is None else v[j] for v, a in zip(arguments, in_axes, strict=True)]
        np.testing.assert_array_equal(one, put(*mine))


def test_a_batch_is_one_axis_more_and_no_gather() -> None:
    def run(x, value, i):
        return put(x, block(x, i, 2) * value, i)

    batched = jax.vmap(jax.vmap(run, in_axes=(1, 1, None), out_axes=1), in_axes=(0, 0, None))
    np.testing.assert_array_equal(batched(X, VALUE, 1)[1, :, 4], run(X[1, :, 4], VALUE[1, :, 4], 1))
    program = jax.jit(batched).lower(X, VALUE, 1).as_text()
    assert "dynamic_update_slice" in program
    assert "gather" not in program and "scatter" not in program


def test_derivatives() -> None:
    """Forward, backward and twice, of a loop that reads and writes; in a batch as well."""

    def loop(x, start):
        def body(i, carry):
            h, outs = carry
            h = jnp.sin(h) * block(x, i, 2).sum(axis=0)
            return h, put(outs, jnp.stack([h, h * h]), i)

        h, outs = jax.lax.fori_loop(0, 3, body, (start, put(jnp.zeros_like(x), x[:2], 1)))
        return h, outs

    def plain(x, start):
        outs = []
        for i in range(3):
            start = jnp.sin(start) * x[2 * i : 2 * i + 2].sum(axis=0)
            outs += [start, start * start]
        return start, jnp.stack(outs)

    arguments = X[..., 0] / 2000, jnp.linspace(0.1, 2.0, 12).reshape(2, 6)
    check_grads(jax.vmap(loop), arguments, order=2, modes=("fwd", "rev"))

    def total(run):
        def of(*arguments):
            h, outs = jax.vmap(run)(*arguments)
            return (jnp.cos(h).sum() + (outs**2).sum()) / 10

        return of

    for derivative in (jax.grad, jax.hessian):
        both = [derivative(total(run), (0, 1))(*arguments) for run in (loop, plain)]
        for found, expected in zip(*map(jax.tree.leaves, both), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_integers_and_constants_have_no_derivative() -> None:
    whole = jnp.arange(6)

    def run(x):
        return x * block(whole, 1, 2)[0].astype(float) + block(jnp.ones(4), 1, 2)[0], put(
            whole, whole[:2], 1
        )

    (y, count), (dy, d_count) = jax.jvp(run, (3.0,), (1.0,))
    assert (y, dy) == (7.0, 2.0)
    assert count.tolist() == [0, 1, 0, 1, 4, 5] and d_count.dtype == jax.dtypes.float0
    assert jax.grad(lambda x: run(x)[0])(3.0) == 2.0


def test_a_place_in_what_all_members_share_on_an_explicit_mesh() -> None:
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        value = jax.device_put(VALUE[:, :, 0], jax.NamedSharding(mesh, jax.P("x")))
        whole = jnp.zeros((6, 3))
        found = jax.jit(jax.vmap(lambda value: put(whole, value, 1)))(value)
        assert jax.typeof(found).sharding.spec[0] == "x"
        np.testing.assert_array_equal(found[:, 2:4], value)
