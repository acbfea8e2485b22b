"""Values and gradients of every method from one program each, and what is wrong with them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dsfjax import System, explain, scan
from tests import reference_loop as reference
from tests import systems_zoo as zoo
from tests.engine_runs import COMPILE_FAST, differentiable, methods, names_of_leaves

# Normwise errors of values and of gradients, by the dtype of the tokens.
BOUNDS = {"float64": (1e-12, 1e-9), "float32": (2e-6, 1e-5), "bfloat16": (1e-2, 2e-2)}


class Outcome(NamedTuple):
    """What a method gives; ``gradients`` to the leaves that `differentiable` lists."""

    y: Array
    h_last: Array
    gradients: list[Array]


def pull_back(
    system: System,
    u: Array,
    h0: Array,
    bar: tuple[Array, Array],
    *,
    method: str,
    reverse: bool = False,
) -> Outcome:
    """Outputs, and gradients to system, tokens and initial state from cotangents of (y, h_last)."""
    arrays, rebuild = differentiable((system, u, h0))
    (y, h_last), pull = jax.vjp(lambda x: scan(*rebuild(x), method=method, reverse=reverse), arrays)
    return Outcome(y, h_last, pull(bar)[0])


compiled_pull_back = jax.jit(
    pull_back, static_argnames=("method", "reverse"), compiler_options=COMPILE_FAST
)


def cotangents(system: System, u: Array, h0: Array) -> tuple[Array, Array]:
    """Cotangents of (y, h_last), all entries different."""
    y_bar = np.cos(np.arange(len(u) * system.output_width)).reshape(len(u), -1)
    h_bar = np.sin(1 + np.arange(h0.size)).reshape(h0.shape)
    return jnp.asarray(y_bar.astype(u.dtype)), jnp.asarray(h_bar.astype(h0.dtype))


def cast(tree: Any, dtype: Any) -> Any:
    """Real leaves to ``dtype``, complex ones to complex128 for float64 and complex64 otherwise."""
    width = np.complex128 if np.dtype(dtype) == np.float64 else np.complex64

    def convert(x: Array) -> Array:
        if jnp.issubdtype(x.dtype, jnp.complexfloating):
            return x.astype(width)
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(convert, tree)


def chunk_of(name: str) -> int:
    """Steps per chunk of a long sequence, where the structure has chunks; else 1."""
    system = zoo.system(name, 512)
    if "chunked" not in methods(system):
        return 1
    return explain(system, method="chunked", length=512).chunk or 1


def cut_length(name: str) -> int:
    """A length of at least 65 that leaves one step after whole chunks."""
    chunk = chunk_of(name)
    return 1 + chunk * max(1, 64 // chunk)


def wrong(
    case: str,
    system: System,
    u: Array,
    h0: Array,
    bar: tuple[Array, Array] | None = None,
    *,
    weight: Any = 1.0,
    among: tuple[str, ...] | None = None,
) -> list[str]:
    """What the methods get wrong, one line each; the bounds are those of the dtype of ``u``.

    Args:
        case: What is special, for the message.
        system: Any finite system.
        u: Tokens.
        h0: Initial state.
        bar: Cotangents of (y, h_last).
        weight: Multiplies y before the comparison, where steps differ by orders of magnitude.
        among: Methods, by default all that run the structure.

    Returns:
        Deviations of values from the loop in float64 and of gradients from those of the sequential
        engine in float64.
    """
    bar = cotangents(system, u, h0) if bar is None else bar
    value_bound, gradient_bound = BOUNDS[u.dtype.name]
    wide = cast((system, u, h0), np.float64)
    expected = reference.run(*wide)
    exact = compiled_pull_back(*wide, cast(bar, np.float64), method="sequential")
    paths, found = names_of_leaves((system, u, h0)), []
    for method in among or methods(system):
        got = cast(compiled_pull_back(system, u, h0, bar, method=method), np.float64)
        checks = [
            ("y", np.asarray(got.y) * weight, expected.y * weight, value_bound),
            ("h_last", got.h_last, expected.h_last, value_bound),
        ]
        for path, x, y in zip(paths, got.gradients, exact.gradients, strict=True):
            checks.append((f"gradient to {path}", x, y, gradient_bound))
        for what, x, y, bound in checks:
            with np.errstate(invalid="ignore"):  # ∞ − ∞ is a finding, too
                error = reference.error(x, y)
            if not error < bound:
                bad = np.sum(~np.isfinite(x))
                found.append(f"{case}: {method}, {what}: {error:.1e}, {bad} of {np.size(x)} bad")
    return found


def report(found: list[str]) -> None:
    """Fail with everything that was found."""
    assert not found, "\n" + "\n".join(found)
