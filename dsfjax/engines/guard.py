r"""What the parallel engines need around them to behave as the sequential one does.

**NaN.** Step by step, a NaN reaches the outputs from its step on, until a reset. A matrix product
multiplies it by zeros, and 0 · NaN is NaN: it would reach earlier steps and other documents. So
steps that contain one are run as zeros, and what they reach is set to NaN afterwards.

**Forward mode.** A custom backward pass has no forward mode; JAX says so in terms of its own. The
identity `reverse_only` says what to do instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from dsfjax.core.pytree import map_time, time_leaves
from dsfjax.engines.recurrence import Recurrence

T = TypeVar("T")


def guarded(
    run: Callable[[Recurrence, Array], tuple[Array, Array]], problem: Recurrence, h0: Array
) -> tuple[Array, Array]:
    """Run an engine that would spread NaN, and put them where they belong."""
    problem, h0, nan = without_nan(problem, h0)
    out, h_last = run(problem, h0)
    out = jnp.where(nan.reshape(-1, *[1] * (out.ndim - 1)), jnp.nan, out)
    return out, jnp.where(nan[-1], jnp.nan, h_last)


def without_nan(problem: Recurrence, h0: Array) -> tuple[Recurrence, Array, Array]:
    """Replace NaN by 0, and say which outputs it reaches.

    Args:
        problem: Recurrence of L steps.
        h0: State before the first.

    Returns:
        The recurrence and state without NaN, and a mask (L,) of the steps that a NaN reaches:
        all steps after it, and itself, up to the next reset.
    """
    length = problem.length
    bad = jnp.zeros(length, bool)
    for leaf in time_leaves(dataclasses.replace(problem, reset=None)):
        if leaf.size:
            bad = bad | _has_nan(leaf)
    clean = map_time(
        lambda leaf: jnp.where(jnp.isnan(leaf), 0, leaf), dataclasses.replace(problem, reset=None)
    )
    bad_start = _has_nan(h0[None])[0]
    step = jnp.arange(length)
    last_bad = jax.lax.cummax(jnp.where(bad, step, -1 - length))
    last_bad = jnp.where((last_bad < 0) & bad_start, -1, last_bad)
    last_reset = jnp.full(length, -1)
    if problem.reset is not None:
        last_reset = jax.lax.cummax(jnp.where(problem.reset, step, -1))
    clean = dataclasses.replace(clean, reset=problem.reset)
    return clean, jnp.where(jnp.isnan(h0), 0, h0), last_bad >= last_reset


def _has_nan(x: Array) -> Array:
    """Whether each entry of the first axis contains a NaN."""
    # The sum is NaN if a term is; as a product it costs a quarter of a reduction on a CPU. So it is
    # for infinities of both signs, whose outputs would be NaN as soon as they meet.
    x = jax.lax.stop_gradient(x.reshape(x.shape[0], -1))
    parts = (x.real, x.imag) if jnp.iscomplexobj(x) else (x,)
    totals = [part @ jnp.ones(part.shape[1], part.dtype) for part in parts]
    return jnp.isnan(sum(totals[1:], totals[0]))


def reverse_only(x: T, method: str) -> T:
    """The identity; forward-mode differentiation raises when it is evaluated.

    Args:
        x: Any pytree.
        method: Name for the message.
    """

    def identity(leaf: Array) -> Array:
        return _identity(leaf, method) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf

    return jax.tree.map(identity, x)


_tangent_p = Primitive("dsfjax_reverse_only")


def _identity_of(method: str) -> Any:
    @jax.custom_jvp
    def identity(x: Array) -> Array:
        return x

    @identity.defjvp
    def _jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
        return primals[0], _tangent_p.bind(tangents[0], method=method)

    return identity


_IDENTITIES: dict[str, Any] = {}


def _identity(x: Array, method: str) -> Array:
    if method not in _IDENTITIES:
        _IDENTITIES[method] = _identity_of(method)
    return _IDENTITIES[method](x)


def _refuse(*_: Any, method: str) -> Any:
    raise TypeError(
        f'scan: method "{method}" has a backward pass of its own and no forward mode (jvp, jacfwd, '
        'linearize). Use method="sequential", which is differentiated either way; jax.grad, '
        "jax.vjp, jacrev and hessian (forward over reverse) work with every method."
    )


_tangent_p.def_impl(_refuse)
_tangent_p.def_abstract_eval(lambda x, *, method: x)
mlir.register_lowering(_tangent_p, _refuse)
ad.deflinear2(_tangent_p, lambda cotangent, _, *, method: [cotangent])
batching.primitive_batchers[_tangent_p] = lambda args, dims, *, method: (
    _tangent_p.bind(*args, method=method),
    dims[0],
)
