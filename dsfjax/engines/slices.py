"""Blocks of an array, taken out and put back in place, also under `jax.vmap`.

They are `jax.lax.dynamic_slice` and `dynamic_update_slice` along one axis. Batched, JAX makes a
gather and a scatter of these, as each sequence might have an index of its own. On CPUs XLA then
computes index vectors, asks whether they are within the array and selects between the block and
what was there: more kernels to compile, and one more read of what is written. In a loop over blocks
all sequences have one index, so here a batch adds an axis and changes nothing else.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Primitive
from jax.extend.core.primitives import dynamic_slice_p, dynamic_update_slice_p
from jax.interpreters import ad, batching, mlir

from dsfjax._util.varying import vary_alike


def block(x: Array, i: Array | int, size: int, axis: int = 0) -> Array:
    """The i-th block of ``size`` entries of an axis, which has to be there.

    Example:
        >>> block(jnp.arange(6), 1, 2).tolist()
        [2, 3]
    """
    return _block_p.bind(*vary_alike((x, _index(i))), size=size, axis=axis)


def put(x: Array, value: Array, i: Array | int, axis: int = 0) -> Array:
    """The array with ``value`` in the place of its i-th block of that size.

    Example:
        >>> put(jnp.arange(6), jnp.array([7, 8]), 1).tolist()
        [0, 1, 7, 8, 4, 5]
    """
    return _put_p.bind(*vary_alike((x, value, _index(i))), axis=axis)


def _index(i: Array | int) -> Array:
    return jnp.asarray(i, jnp.int32) if isinstance(i, int) else i


def _block(x: Array, i: Array, *, size: int, axis: int) -> Array:
    return lax.dynamic_slice(x, _starts(x, i * size, axis), _sizes(x, size, axis), **_POSITIVE)


def _put(x: Array, value: Array, i: Array, *, axis: int) -> Array:
    start = i * value.shape[axis]
    return lax.dynamic_update_slice(x, value, _starts(x, start, axis), **_POSITIVE)


# To ask whether an index counts from the end would be a kernel of its own.
_POSITIVE: dict[str, Any] = {"allow_negative_indices": False}


def _starts(x: Any, start: Any, axis: int) -> list[Any]:
    return [start if i == axis else jnp.zeros_like(start) for i in range(x.ndim)]


def _sizes(x: Any, size: int, axis: int) -> tuple[int, ...]:
    return (*x.shape[:axis], size, *x.shape[axis + 1 :])


_block_p, _put_p = Primitive("dsfjax_block"), Primitive("dsfjax_put")
_block_p.def_impl(_block)
_put_p.def_impl(_put)


@_block_p.def_abstract_eval
def _type_of_block(x: Any, i: Any, *, size: int, axis: int) -> Any:
    sizes = _sizes(x, size, axis)
    return dynamic_slice_p.abstract_eval(x, *[i] * x.ndim, slice_sizes=sizes)[0]


@_put_p.def_abstract_eval
def _type_of_put(x: Any, value: Any, i: Any, *, axis: int) -> Any:
    return dynamic_update_slice_p.abstract_eval(x, value, *[i] * x.ndim)[0]


mlir.register_lowering(_block_p, mlir.lower_fun(_block, multiple_results=False))
mlir.register_lowering(_put_p, mlir.lower_fun(_put, multiple_results=False))


# Both are linear in all but the index.
ad.defjvp(_block_p, lambda dx, _, i, **how: _block_p.bind(dx, i, **how), None)


def _put_jvp(primals: Any, tangents: Any, **how: Any) -> tuple[Array, Any]:
    (x, value, i), (dx, d_value, _) = primals, tangents
    y = _put_p.bind(x, value, i, **how)
    if type(dx) is ad.Zero and type(d_value) is ad.Zero:
        return y, ad.Zero(jax.typeof(y).to_tangent_aval())
    # In one, as each by itself would be a sum over the whole array.
    return y, put(ad.instantiate_zeros(dx), ad.instantiate_zeros(d_value), i, **how)


def _block_transpose(dy: Any, x: Any, i: Array, *, size: int, axis: int) -> list[Any]:
    if type(dy) is ad.Zero:
        return [None, None]
    zeros = ad.instantiate_zeros(ad.Zero(x.aval))
    return [put(zeros, dy, i, axis), None]


def _put_transpose(dy: Any, x: Any, value: Any, i: Array, *, axis: int) -> list[Any]:
    if type(dy) is ad.Zero:
        return [None, None, None]
    of_x, of_value = (isinstance(v, ad.UndefinedPrimal) for v in (x, value))
    like = value.aval if of_value else jax.typeof(value)
    dx = put(dy, ad.instantiate_zeros(ad.Zero(like)), i, axis) if of_x else None
    return [dx, block(dy, i, like.shape[axis], axis) if of_value else None, None]


ad.primitive_jvps[_put_p] = _put_jvp
ad.primitive_transposes[_block_p] = _block_transpose
ad.primitive_transposes[_put_p] = _put_transpose


def _block_of_batch(operands: Any, axes: Any, *, size: int, axis: int) -> tuple[Array, int]:
    (x, i), (of_x, of_i) = operands, axes
    if of_i is not None:  # an index of its own for every member
        each = jax.vmap(lambda x, i: _block(x, i, size=size, axis=axis), in_axes=axes)
        return each(x, i), 0
    return _block_p.bind(x, i, size=size, axis=axis + (of_x <= axis)), of_x


def _put_of_batch(batch: Any, operands: Any, axes: Any, *, axis: int) -> tuple[Array, int | None]:
    (x, value, i), (of_x, of_value, of_i) = operands, axes
    if of_x is of_value is of_i is None:
        return _put_p.bind(x, value, i, axis=axis), None
    if of_i is not None:
        each = jax.vmap(lambda x, v, i: _put(x, v, i, axis=axis), in_axes=axes)
        return each(x, value, i), 0
    # What all members share gets an axis over which it is cut, on an explicit mesh, as the others.
    mesh_axis = batch.explicit_mesh_axis
    x, value = (
        batching.bdim_at_front(v, of_v, batch.size, mesh_axis)
        for v, of_v in ((x, of_x), (value, of_value))
    )
    return _put_p.bind(x, value, i, axis=axis + 1), 0


batching.primitive_batchers[_block_p] = _block_of_batch
batching.fancy_primitive_batchers[_put_p] = _put_of_batch
