r"""What the parallel engines need around them to give what the sequential one gives.

**Numbers that are not finite.** Step by step, a NaN or ∞ reaches what its step feeds, up to the
next reset. A matrix product multiplies it by zeros as well, and 0 · ∞ is NaN: it would reach
earlier steps and other documents. So the sums over steps are formed of finite numbers (`finite`),
and where an input was not finite the values are those of the sequential engine, which is the
definition (`guarded`). So they are where finite numbers overflow in a sum that the definition does
not form. The sequential run is behind a branch that ordinary inputs never take.

**Forward mode.** A custom backward pass has no forward mode; JAX says so in terms of its own. The
identity `reverse_only` says what to do instead.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.custom_batching
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from dsfjax.engines.in_place import compact

T = TypeVar("T")

RARE = "dsfjax_not_finite"
"""Name of the compiled function in the branch that ordinary inputs never take."""

AT_MOST = "dsfjax_steps_at_most_"
"""Beginning of the name of a compiled function whose loop has as many steps as the data say. The
rest of the name is how many there are at most."""


def guarded(run: Callable[..., T], exact: Callable[..., T], *inputs: Any) -> T:
    """The results of an engine, and where something is not finite those of the definition.

    Args:
        run: The engine, which takes the finite part of what it sums over steps. Its gradients are
            the gradients; outputs that are not finite pass none on.
        exact: The definition, a function of the same arguments and results.
        inputs: Arguments, pytrees of arrays.

    Returns:
        ``run(*inputs)`` or ``exact(*inputs)``.
    """
    results = run(*inputs)
    # The results count as well: finite inputs can overflow in products that the definition does not
    # form.
    return _mended(exact, results, has_others((inputs, results)), inputs)


def finite(tree: T) -> T:
    """NaN and ∞ replaced by 0; a log decay of −∞, which is a decay of 0, stays."""

    def clean(path: Any, x: Array) -> Array:
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return x
        fine = jnp.isfinite(x)
        # The engines take −∞ as a decay of 0. A complex one has a finite phase.
        if _is_log(path):
            fine = fine | (jnp.isneginf(x.real) & jnp.isfinite(x.imag))
        return jax.lax.select(fine, x, jnp.zeros_like(x))

    return jax.tree_util.tree_map_with_path(clean, tree)


def has_others(tree: Any) -> Array:
    """Whether there are numbers that `finite` would replace, ()."""
    sums: dict[int, Array] = {}
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.issubdtype(x.dtype, jnp.inexact) and x.size:
            found = _sums_of_rows(x, _is_log(path))
            # Arrays with as many rows are asked together.
            sums[len(found)] = sums[len(found)] + found if len(found) in sums else found
    totals = [_small_sums(x[None])[0] for x in sums.values()]
    return ~(jnp.stack(totals) < jnp.inf).all()


def _is_log(path: tuple[Any, ...]) -> bool:
    """Whether an array holds log decays, by the name of its field."""
    return bool(path) and str(getattr(path[-1], "name", "")).startswith("log_")


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _mended(exact: Callable[..., T], results: T, broken: Array, inputs: tuple[Any, ...]) -> T:
    leaves, tree = jax.tree.flatten((results, inputs))
    like, of_results = jax.tree.flatten(results)

    # Under vmap a branch on a batch of conditions is a selection between two results, both
    # computed. One condition for the whole batch keeps it a branch; the selection keeps the other
    # sequences of the batch as they are.
    def definition(narrow: list[Array]) -> list[Array]:
        wide = [x.reshape(leaf.shape) for x, leaf in zip(narrow, leaves, strict=True)]
        _, inputs = tree.unflatten(wide)
        both = zip(jax.tree.leaves(exact(*inputs)), wide[: len(like)], strict=True)
        return [compact(jnp.where(broken, *x)) for x in both]

    # A name of its own in the program, so that whoever counts operations can leave it out.
    definition.__name__ = RARE
    narrow = [compact(x) for x in leaves]
    found = jax.lax.cond(
        _anywhere(broken), jax.jit(definition), lambda narrow: narrow[: len(like)], narrow
    )
    found = [x.reshape(leaf.shape) for x, leaf in zip(found, like, strict=True)]
    return of_results.unflatten(found)


@_mended.defjvp
def _mended_jvp(exact: Callable[..., T], primals: Any, tangents: Any) -> tuple[T, T]:
    values = _mended(exact, *primals)

    # The derivative is that of the engine, which has a backward pass of its own; the definition is
    # never differentiated, and keeps nothing for that.
    def pass_on(value: Array, tangent: Array) -> Array:
        if not jnp.issubdtype(value.dtype, jnp.inexact):
            return tangent
        return jax.lax.select(jnp.isfinite(value), tangent, jnp.zeros_like(tangent))

    return values, jax.tree.map(pass_on, values, tangents[0])


def _sums_of_rows(x: Array, is_log: bool) -> Array:
    """Numbers that are below ∞ unless there are some that `finite` would replace, float32 (T,)."""
    x = jax.lax.stop_gradient(x.reshape(x.shape[0] if x.ndim else 1, -1))
    real = _small_sums(x.real).astype("float32")
    # A log decay of −∞ stays: its sum is below ∞, unlike that of +∞ or NaN.
    real = real if is_log else jnp.abs(real)
    if not jnp.iscomplexobj(x):
        return real
    return real + jnp.abs(_small_sums(x.imag).astype("float32"))


def _small_sums(x: Array) -> Array:
    """Sums along rows, (T,) from (T, m), times a number so small that none overflows."""
    # As a product with a vector that takes a quarter of the time of a reduction on a CPU. A NaN or
    # ∞ stays one in a sum.
    return jnp.matmul(x, jnp.full(x.shape[1], 1e-10, x.dtype), precision="highest")


@jax.custom_batching.custom_vmap
def _anywhere(broken: Array) -> Array:
    """The identity; under vmap, whether it is true for any sequence of the batch."""
    return broken


@_anywhere.def_vmap
def _anywhere_in_batch(_: int, batched: list[bool], broken: Array) -> tuple[Array, bool]:
    return _anywhere(broken.any(axis=0) if batched[0] else broken), False


def reverse_only(x: T, method: str) -> T:
    """The identity; forward-mode differentiation raises when it is evaluated.

    Args:
        x: Any pytree.
        method: Name for the message.
    """

    def identity(leaf: Array) -> Array:
        inexact = jnp.issubdtype(leaf.dtype, jnp.inexact)
        return _identity_p.bind(leaf, method=method) if inexact else leaf

    return jax.tree.map(identity, x)


# Two primitives, as reverse mode also pushes tangents forward, abstractly: it then transposes what
# it has found, and a tangent is never evaluated. Forward mode evaluates it, lowers it, or (jacfwd)
# takes it through vmap: each says the sentence below. The identity is a primitive as well, and no
# `custom_jvp`, so that vmap inside of a gradient meets the identity and not its tangent.
_identity_p, _tangent_p = Primitive("dsfjax_reverse_only"), Primitive("dsfjax_tangent")


def _identity_jvp(primals: Any, tangents: Any, *, method: str) -> Any:
    (x,), (tangent,) = primals, tangents
    return x, tangent if type(tangent) is ad.Zero else _tangent_p.bind(tangent, method=method)


def _refuse(*_: Any, method: str) -> Any:
    raise TypeError(
        f'scan: method "{method}" has a backward pass of its own and no forward mode (jvp, jacfwd, '
        'linearize). Use method="sequential", which is differentiated either way; jax.grad, '
        "jax.vjp, jacrev and hessian (forward over reverse) work with every method."
    )


_identity_p.def_impl(lambda x, *, method: x)
_identity_p.def_abstract_eval(lambda x, *, method: x)
mlir.register_lowering(_identity_p, lambda _, x, *, method: [x])
ad.primitive_jvps[_identity_p] = _identity_jvp
batching.primitive_batchers[_identity_p] = lambda args, dims, *, method: (
    _identity_p.bind(*args, method=method),
    dims[0],
)
_tangent_p.def_impl(_refuse)
_tangent_p.def_abstract_eval(lambda x, *, method: x)
mlir.register_lowering(_tangent_p, _refuse)
ad.deflinear2(_tangent_p, lambda cotangent, _, *, method: [cotangent])
batching.primitive_batchers[_tangent_p] = _refuse
