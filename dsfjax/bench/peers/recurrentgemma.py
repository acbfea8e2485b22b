"""recurrentgemma: the linear scan of Griffin, in JAX.

References:
    De et al. (2024), arXiv:2402.19427.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jax import Array

from dsfjax.bench.peers.importing import load_alone


def linear_scan() -> Callable[[Mapping[str, Array]], Array]:
    """`linear_scan` as the package chooses it for this device."""
    run = load_alone("recurrentgemma.jax.scan").linear_scan
    return lambda s: run(s["x"], jnp.exp(s["log_a"]))[0]
