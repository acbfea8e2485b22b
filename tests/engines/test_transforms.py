"""jit, vmap, checkpoint and forward mode over `scan`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import scan
from tests import reference_loop as reference
from tests import systems_zoo as zoo
from tests.engine_runs import COMPILE_FAST, differentiable, inputs, methods, run_all

SOME = ["scalar_summed", "diagonal_factored", "complex_per_state", "low_rank", "dense"]


@pytest.mark.parametrize("name", zoo.slow_unless(["scalar_summed", "low_rank"], zoo.MAIN))
def test_vmap_is_a_loop(name):
    """Over systems, tokens and states at once."""
    systems = [zoo.system(name, 9, seed) for seed in range(3)]
    tokens = [zoo.tokens(system, 9, seed) for seed, system in enumerate(systems)]
    states = [zoo.state(system, seed) for seed, system in enumerate(systems)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *systems)
    run = jax.jit(jax.vmap(run_methods), compiler_options=COMPILE_FAST)
    out = run(stacked, jnp.stack(tokens), jnp.stack(states))
    for i, (system, u, h0) in enumerate(zip(systems, tokens, states, strict=True)):
        expected = reference.run(system, u, h0)
        for method, (y, h_last) in out.items():
            assert reference.error(y[i], expected.y) < 1e-12, method
            assert reference.error(h_last[i], expected.h_last) < 1e-12, method


def run_methods(system, u, h0, **options):
    return {method: scan(system, u, h0, method=method, **options) for method in methods(system)}


def test_vmap_over_tokens_of_one_system():
    system, _, _ = inputs("scalar", 9)
    tokens = jnp.stack([zoo.tokens(system, 9, seed) for seed in range(3)])
    y, _ = jax.jit(jax.vmap(scan, in_axes=(None, 0)))(system, tokens)
    for i in range(3):
        assert reference.error(y[i], reference.run(system, tokens[i]).y) < 1e-12


@pytest.mark.parametrize("name", zoo.slow_unless(["scalar_summed", "low_rank"], SOME))
def test_other_values_are_no_second_trace(name):
    traces = 0

    @jax.jit
    def run(system, u):
        nonlocal traces
        traces += 1
        return scan(system, u)[0]

    for seed in range(3):
        system = zoo.system(name, 5, seed)
        u = zoo.tokens(system, 5, seed)
        assert reference.error(run(system, u), reference.run(system, u).y) < 1e-12
    assert traces == 1


@pytest.mark.parametrize(
    "name", ["diagonal_factored", pytest.param("scalar_summed", marks=pytest.mark.slow)]
)
def test_without_jit(name):
    """The functions also run operation by operation."""
    system, u, h0 = inputs(name, 3)
    expected = reference.run(system, u, h0)
    with jax.disable_jit():
        for method in methods(system):
            assert reference.error(scan(system, u, h0, method=method)[0], expected.y) < 1e-12


@pytest.mark.parametrize("name", SOME)
def test_pytrees_are_equal_over_methods(name):
    system, u, h0 = inputs(name, 5)
    out = jax.eval_shape(lambda *x: run_methods(*x, return_states=True), system, u, h0)
    shapes = {
        method: jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)
        for method, tree in out.items()
    }
    assert all(x == shapes["sequential"] for x in shapes.values())


def test_forward_over_reverse():
    """Hessian–vector products, through sequential."""
    system, u, _ = inputs("scalar_groups", 5)
    arrays, rebuild = differentiable((system, u))

    def loss(x):
        return jnp.sum(jnp.sin(scan(*rebuild(x), method="sequential")[0]))

    def along(x):
        return sum(jnp.vdot(a, b) for a, b in zip(jax.grad(loss)(x), direction, strict=True))

    direction = [jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape) for x in arrays]
    forward = jax.jit(lambda x: jax.jvp(jax.grad(loss), (x,), (direction,))[1])(arrays)
    for a, b in zip(forward, jax.jit(jax.grad(along))(arrays), strict=True):
        assert reference.error(a, b) < 1e-10


def test_repeatable_bit_for_bit():
    system, u, h0 = inputs("scalar", 65)
    first, second = (run_all(system, u, h0) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)
