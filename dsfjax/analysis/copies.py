"""One step of many copies of a system, each with a state and a token of its own."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from dsfjax.core import InnerOutput, System
from dsfjax.engines import step


def step_of_copies(
    system_t: System, tokens: Float[Array, "M d"], h: Inexact[Array, "M H n p"]
) -> tuple[Float[Array, "M d_out"], Inexact[Array, "M H n p"]]:
    """`dsfjax.step` of every copy of a system of one step: outputs and states.

    Numerics:
        Every copy reads with a c of its own. Inner products of one c with the states of all copies
        would be one product of matrices, for which XLA transposes the states (512 copies of 16 × 64
        numbers, 2 CPU cores: 0.27 s for 512 steps, and 0.09 s like this).
    """
    C = system_t.C
    if not isinstance(C, InnerOutput) or C.c is None:
        return jax.vmap(partial(step, system_t))(tokens, h)  # type: ignore[return-value]

    def advance(c: Array, u: Array, h: Array) -> tuple[Array, Array]:
        reads = dataclasses.replace(C, c=c)
        return step(dataclasses.replace(system_t, C=reads), u, h)  # type: ignore[return-value]

    return jax.vmap(advance)(jnp.broadcast_to(C.c, (len(h), *C.c.shape)), tokens, h)
