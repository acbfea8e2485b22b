"""The loop over blocks is a scan over them, whatever their axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax.engines.in_place import over_blocks


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("rest", [(), (1,), (1, 3, 1), (0,), (2, 0)])
def test_blocks_are_those_of_a_scan(rest: tuple[int, ...], reverse: bool) -> None:
    x = jnp.arange(6.0 * np.prod(rest, dtype=int)).reshape(6, *rest)

    def run(carry, block):
        return carry + block.sum(), (block * carry, jnp.reshape(carry, (1, 1)))

    def scanned(x):
        blocks = x.reshape(3, 2, *rest)
        carry, (a, b) = jax.lax.scan(run, jnp.ones(()), blocks, reverse=reverse)
        return carry, (a.reshape(x.shape), b.reshape(3, 1))

    found = over_blocks(run, 3, jnp.ones(()), x, reverse=reverse)
    jax.tree.map(np.testing.assert_array_equal, found, scanned(x))
    batch = jnp.stack([x, 2 * x])
    many = jax.vmap(lambda x: over_blocks(run, 3, jnp.ones(()), x, reverse=reverse))(batch)
    jax.tree.map(np.testing.assert_array_equal, many, jax.vmap(scanned)(batch))
