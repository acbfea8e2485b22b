"""Every architecture in small, with parameters away from their initial zeros and ones."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from dsfjax import scan, systems

D_MODEL = 8
SIZES = {"d_state": 3, "num_heads": 2, "dt_rank": 2}


class Case(NamedTuple):
    """An architecture with parameters; ``run(params, u) -> y`` is compiled once per length."""

    arch: systems.Architecture
    params: Any
    run: Any


def build(name: str, **own: Any) -> systems.Architecture:
    """The architecture ``name`` with two heads of 4 channels and 3 states, where it has those."""
    sizes = {word: size for word, size in SIZES.items() if word in systems.options(name)}
    return systems.get(name, d_model=D_MODEL, **{**sizes, **own})


def perturbed(arch: systems.Architecture, seed: int = 0) -> Any:
    """Initial parameters plus noise, so that no bias is 0 and no decay is shared."""
    rng = np.random.default_rng(seed)
    params = arch.init(jax.random.key(seed))
    return jax.tree.map(lambda x: x + jnp.asarray(0.3 * rng.standard_normal(x.shape)), params)


def tokens(length: int, seed: int = 7) -> Array:
    """Random tokens (L, d)."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal((length, D_MODEL)))


@functools.cache
def case(name: str) -> Case:
    arch = build(name)

    def run(params: Any, u: Array) -> Array:
        return scan(*runnable(arch, params, u))[0]

    return Case(arch, perturbed(arch), jax.jit(run))


def piece(
    arch: Any, params: Any, u: Array, before: Any = None, *, continued: bool = False, **given: Any
) -> tuple[Any, Array, Any]:
    """The System of some tokens of a sequence, its tokens, and what they leave next to its state.

    ``before`` is the pair of the state and of what was left next to it. The System is the textbook
    one on ``u``, or the one on values where none is.
    """
    h, past = (None, None) if before is None else before
    if arch.reads_state:
        system, u = arch.system_and_tokens(params, u, h=h, continued=continued, **given)
        return system, u, None
    system = arch.system(params, u, continued=continued, past=past, **given)
    read = arch.read(params, u, continued=continued, reset=given.get("reset"))
    return system, u, arch.advance(params, read, past=past, **given)[1]


def runnable(arch: Any, params: Any, u: Array, **given: Any) -> tuple[Any, Array]:
    """The System of a whole sequence, and the tokens to run it on."""
    return piece(arch, params, u, **given)[:2]


def as_numpy(params: Any) -> Any:
    """The same NamedTuple with NumPy arrays."""
    return type(params)(*(None if x is None else np.asarray(x) for x in params))


def cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)
