"""All methods of a system in one compiled program; shared, so that equal shapes compile once."""

import dataclasses
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax import System, scan, step
from dsfjax.engines import Engine, Method, Recurrence
from dsfjax.engines import methods as methods_of
from tests import systems_zoo as zoo

# Hundreds of tiny programs: here the compiler is what costs.
COMPILE_FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


compiled_scan = jax.jit(
    scan,
    static_argnames=("method", "reverse", "return_states"),
    compiler_options=COMPILE_FAST,
)


@lru_cache(maxsize=128)  # the same function is the same program in every test
def compiled(f: Callable[..., Any], **static: Any) -> Callable[..., Any]:
    """``f`` as one program, much faster than many operations that are compiled one by one."""
    return jax.jit(partial(f, **static), compiler_options=COMPILE_FAST)


compiled_step = compiled(step)


@dataclasses.dataclass(frozen=True)
class Altered(Engine):
    """An engine with something wrong: ``alter(run, recurrence, h0)`` in place of ``run``."""

    name = "altered"
    of: Engine
    alter: Callable[..., tuple[Array, Array]]

    def run(self, recurrence: Recurrence, h0: Array) -> tuple[Array, Array]:
        return self.alter(self.of.run, recurrence, h0)


def methods(system: System, *, states: bool | Literal["some"] = False) -> tuple[Method, ...]:
    return methods_of(system, states=states)  # type: ignore[return-value]


def _run_all(system: System, u: Array, h0: Array | None = None, *, reverse=False, states=False):
    return {
        method: scan(system, u, h0, method=method, reverse=reverse, return_states=states)
        for method in methods(system, states=states)
    }


run_all = jax.jit(_run_all, static_argnames=("reverse", "states"), compiler_options=COMPILE_FAST)


def inputs(name: str, length: int) -> tuple[System, Array, Array]:
    """System, tokens and initial state."""
    system = zoo.system(name, length)
    return system, zoo.tokens(system, length), zoo.state(system)


def differentiable(tree: Any) -> tuple[list[Array], Callable[[list[Array]], Any]]:
    """The real and complex leaves, and a function that puts others in their place."""
    leaves, structure = jax.tree.flatten(tree)
    places = [i for i, x in enumerate(leaves) if jnp.issubdtype(x.dtype, jnp.inexact)]

    def rebuild(arrays: list[Array]) -> Any:
        new = list(leaves)
        for i, x in zip(places, arrays, strict=True):
            new[i] = x
        return jax.tree.unflatten(structure, new)

    return [leaves[i] for i in places], rebuild


def names_of_leaves(tree: Any) -> list[str]:
    """Paths of what `differentiable` gives, for messages."""
    return [
        jax.tree_util.keystr(path)
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(x.dtype, jnp.inexact)
    ]
