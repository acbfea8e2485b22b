"""What every primitive of JAX costs: its arithmetic, and how it touches memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dsfjax._util.versions import at_least


def size(aval: Any) -> int:
    """Elements of an abstract array."""
    return math.prod(aval.shape)


def nbytes(aval: Any) -> int:
    """Bytes of an abstract array; 0 for tokens and keys, which hold no numbers."""
    dtype = getattr(aval, "dtype", None)
    if dtype is None or jnp.issubdtype(dtype, jax.dtypes.extended):
        return 0
    return size(aval) * jnp.dtype(dtype).itemsize


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


CALLS = _names(
    "jit pjit closed_call core_call custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr "
    "custom_vmap_call remat2 checkpoint"
)
ELEMENTWISE = _names(
    "add add_any sub mul div rem max min neg sign abs floor ceil round select_n clamp and or xor "
    "not eq ne lt le gt ge convert_element_type is_finite square integer_pow nextafter conj "
    "one_minus_square reduce_precision shift_left shift_right_logical shift_right_arithmetic "
    "population_count clz"
)
TRANSCENDENTAL = _names(
    "exp exp2 log log1p expm1 tanh logistic sin cos tan asin acos atan sinh cosh asinh acosh atanh "
    "sqrt rsqrt cbrt pow atan2 erf erfc erf_inv lgamma digamma"
)
# Functions that XLA writes out: their arithmetic and their transcendental functions, in float32.
EXPANDED = {
    "acos": (3, 2),
    "acosh": (7, 4),
    "asin": (5, 2),
    "asinh": (11, 3),
    "atanh": (6, 2),
    "cosh": (3, 2),
    "digamma": (73, 3),
    "erf_inv": (37, 2),
    "erfc": (60, 1),
    "exp2": (1, 1),
    "lgamma": (353, 0) if at_least("jaxlib", 0, 12) else (52, 4),
    "logistic": (3, 1),
    "one_minus_square": (2, 0),
    "sinh": (10, 3),
}
# The same numbers in the same order.
RELABELLED = _names("reshape squeeze expand_dims")
# A view of what is stored (matrix products read any order of axes), else part of an expression.
VIEWS = RELABELLED | _names("slice dynamic_slice split stop_gradient transpose dsfjax_block")
# Moved or relabelled without arithmetic.
MOVES = VIEWS | _names(
    "copy broadcast_in_dim concatenate stack unstack pad rev iota real imag complex "
    "bitcast_convert_type device_put sharding_constraint optimization_barrier name "
    "dsfjax_reverse_only dsfjax_tangent"
)
REDUCTIONS = _names(
    "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin"
)
# Name and place of the operand that holds the changes.
UPDATES = {
    "dynamic_update_slice": 1,
    "dsfjax_put": 1,
    "scatter": 2,
    "scatter-add": 2,
    "scatter-mul": 2,
    "scatter-min": 2,
    "scatter-max": 2,
}
PRODUCTS = _names("dot_general dsfjax_projected")
OPAQUE = PRODUCTS | _names(
    "conv_general_dilated cumsum cumprod cummax cummin cumlogsumexp sort "
    "triangular_solve lu lu_pivots_to_permutation threefry2x32"
)


def loop_sizes(params: Mapping[str, Any]) -> tuple[int, int]:
    """How many constants and how many carried values a scan has, by its parameters."""
    if "num_consts" in params:  # jax before 0.12
        return params["num_consts"], params["num_carry"]
    constants, carry, _ = params["ft_in"].unpack()
    return len(constants), len(carry)


def flops(eqn: Any) -> int:
    """Arithmetic operations on real numbers of one equation, transcendental functions apart."""
    name, params = eqn.primitive.name, eqn.params
    out = eqn.outvars[0].aval
    first = eqn.invars[0].aval if eqn.invars else out
    is_complex = jnp.issubdtype(getattr(first, "dtype", jnp.float32), jnp.complexfloating)
    if name in PRODUCTS:
        (contracted, _), _ = params["dimension_numbers"]
        depth = math.prod(first.shape[i] for i in contracted)
        return (8 if is_complex else 2) * size(out) * depth
    if name == "conv_general_dilated":
        kernel = eqn.invars[1].aval
        features = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        return (8 if is_complex else 2) * size(out) * size(kernel) // features
    if name in REDUCTIONS or name in ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"):
        return (2 if is_complex else 1) * max(size(first) - (name in REDUCTIONS) * size(out), 0)
    if name in ("scatter-add", "scatter-mul", "scatter-min", "scatter-max"):
        return size(eqn.invars[2].aval)
    if name == "sort":
        length = first.shape[params["dimension"]]
        return size(first) * max(1, math.ceil(math.log2(max(length, 2))))
    if name == "lu":
        return 2 * size(first) * first.shape[-1] // 3
    if name == "triangular_solve":
        return size(eqn.invars[1].aval) * first.shape[-1]
    if name == "integer_pow":
        power = abs(params["y"])
        return size(out) * max(power.bit_length() + power.bit_count() - 2, 0)
    if name in EXPANDED:
        return EXPANDED[name][0] * size(out)
    if name in ELEMENTWISE:
        return size(out) * ((6 if name in ("mul", "div", "square") else 2) if is_complex else 1)
    return 0
