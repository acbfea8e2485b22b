"""Products along the rows of activations, with gradients that are fast on CPUs as well.

Two gradients that JAX takes by itself are slow there:

* That of weights, W̄ = Σ xᵀ ȳ over all tokens of all sequences. After `jax.vmap` this is a product
  that sums over two axes. XLA merges them by copies in transposed order, in each of which it
  computes again, with a stride from number to number, whatever makes x or ȳ. `projected` merges the
  axes before the product, which then reads both in order.
* That of one number per row, such as the β of a delta rule next to its values: the sum of a product
  over the row, which with jax 0.10 takes five times as long as the product of two vectors.
"""

from __future__ import annotations

import math
from functools import partial, reduce
from operator import add
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.extend.core.primitives import dot_general_p
from jax.interpreters import ad, batching, mlir
from jaxtyping import Inexact

from dsfjax._util.varying import vary_alike


def inner(x: Inexact[Array, "*rows p"], y: Inexact[Array, "*rows p"]) -> Inexact[Array, "*rows 1"]:
    """The sum of x y over the last axis, which is kept; not conjugated.

    Example:
        >>> inner(jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0]])).tolist()
        [[11.0]]
    """
    return jnp.einsum("...p,...p->...", x, y, precision="highest")[..., None]


def scaled_rows(x: Inexact[Array, "*rows p"], by: Array) -> Array:
    """Rows x times one number each, (…, 1), or times whatever else broadcasts to them.

    Example:
        >>> scaled_rows(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[2.0], [0.5]])).tolist()
        [[2.0, 4.0], [1.5, 2.0]]
    """
    each = by.shape == (*x.shape[:-1], 1) and x.shape[-1] > 1
    return _scaled_rows(x, by) if each else x * by


@jax.custom_jvp
def _scaled_rows(x: Array, by: Array) -> Array:
    return x * by


@partial(_scaled_rows.defjvp, symbolic_zeros=True)
def _scaled_rows_jvp(primals: Any, tangents: Any) -> tuple[Array, Any]:
    (x, by), (dx, d_by) = primals, tangents
    y, terms = _scaled_rows(x, by), []
    if not isinstance(dx, SymbolicZero):
        terms.append(dx * by)
    if not isinstance(d_by, SymbolicZero):
        # The transpose of this product, and not of one that broadcasts, is one of two vectors.
        terms.append(jnp.einsum("...p,...->...p", x, d_by[..., 0], precision="highest"))
    return y, reduce(add, terms)


def projected(
    x: Inexact[Array, "*rows d"],
    W: Inexact[Array, "d e"] | Inexact[Array, "e d"],
    *,
    axis: int = 0,
    precision: Any = None,
    sums: Any = None,
) -> Inexact[Array, "*rows e"]:
    """The product of rows with weights, x W, or x Wᵀ for axis 1.

    Args:
        x: Rows; `jax.vmap` over sequences gives them an axis more.
        W: Weights.
        axis: The axis of W that is summed over.
        precision: Precision of the product, as in `jax.lax.dot_general`.
        sums: The dtype in which sums are formed and the result is given; by default that of x, W.

    Example:
        >>> projected(jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0]]), axis=1).tolist()
        [[11.0]]
    """
    how = {
        "dimension_numbers": _last_of(x, axis),
        "precision": precision,
        "preferred_element_type": None if sums is None else np.dtype(sums),
    }
    # Elsewhere XLA merges the axes without a copy, and whatever looks for products by the name that
    # JAX gives them, such as a policy of `jax.checkpoint`, finds this one.
    if jax.default_backend() != "cpu":
        return lax.dot_general(x, W, **how)
    return _projected_p.bind(*vary_alike((x, W)), **how)


def dot_general(x: Array, W: Array, axes: Any, precision: Any = None, **how: Any) -> Array:
    """`projected`, as `flax.nnx.Linear` takes it in the place of `jax.lax.dot_general`."""
    sums, sharding = how.pop("preferred_element_type", None), how.pop("out_sharding", None)
    if axes != _last_of(x, 0) or sharding is not None:
        raise ValueError(
            "dot_general: expected the last axis of x and the first of W, and no out_sharding, got "
            f"{axes} and {sharding}. Use jax.lax.dot_general."
        )
    return projected(x, W, precision=precision, sums=sums)


def _last_of(x: Any, axis: int) -> Any:
    """The dimension numbers of a product over the last axis of x and an axis of W."""
    return ((x.ndim - 1,), (axis,)), ((), ())


_projected_p = Primitive("dsfjax_projected")  # with the parameters of JAX's dot_general


def _cotangent_of_rows(dy: Array, x: Any, W: Array, dimension_numbers: Any, **how: Any) -> Array:
    ((_, (axis,)), _) = dimension_numbers
    dx = _projected_p.bind(dy, W, dimension_numbers=_last_of(dy, 1 - axis), **how)
    return dx.astype(x.aval.dtype)


def _cotangent_of_weights(dy: Array, x: Array, W: Any, dimension_numbers: Any, **how: Any) -> Array:
    if any(axis is not None for v in (x, dy) for axis in jax.typeof(v).sharding.spec):
        # With an axis over devices as a part of the type, merged axes would have no type.
        how |= {"dimension_numbers": dimension_numbers, "out_sharding": None}
        transpose = ad.primitive_transposes[dot_general_p]
        return transpose(dy, x, ad.UndefinedPrimal(W.aval), **how)[1]
    ((_, (axis,)), _) = dimension_numbers
    x, dy = (v.reshape(math.prod(v.shape[:-1]), v.shape[-1]) for v in (x, dy))
    rows = (x, dy) if axis == 0 else (dy, x)
    return lax.dot_general(*rows, (((0,), (0,)), ((), ())), **how).astype(W.aval.dtype)


def _of_batch(operands: Any, axes: Any, dimension_numbers: Any, **how: Any) -> tuple[Array, int]:
    (x, W), (of_x, of_W) = operands, axes
    if of_W is not None:
        product = partial(lax.dot_general, dimension_numbers=dimension_numbers, **how)
        return jax.vmap(product, in_axes=(of_x, of_W))(x, W), 0
    ((_, (axis,)), _) = dimension_numbers
    x = jnp.moveaxis(x, of_x, 0)
    return _projected_p.bind(x, W, dimension_numbers=_last_of(x, axis), **how), 0


_projected_p.def_impl(lax.dot_general)
_projected_p.def_abstract_eval(
    lambda x, W, **how: dot_general_p.abstract_eval(x, W, **how, out_sharding=None)[0]
)
mlir.register_lowering(_projected_p, mlir.lower_fun(lax.dot_general, multiple_results=False))
ad.defbilinear(_projected_p, _cotangent_of_rows, _cotangent_of_weights)
batching.primitive_batchers[_projected_p] = _of_batch
