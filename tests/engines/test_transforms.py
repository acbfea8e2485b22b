"""jit, vmap, checkpoint and forward mode over `scan`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import scan
from tests import reference_loop as reference
from tests import systems_zoo as zoo
from tests.checks import unchecked
from tests.engine_runs import COMPILE_FAST, differentiable, inputs, methods, run_all

SOME = ["scalar_summed", "diagonal_factored", "complex_per_state", "low_rank", "dense"]


@pytest.mark.parametrize("name", zoo.slow_unless(["scalar_summed"], zoo.MAIN))
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
    names = methods(system, states=options.get("return_states", False))
    return {method: scan(system, u, h0, method=method, **options) for method in names}


def test_vmap_over_tokens_of_one_system():
    system, _, _ = inputs("scalar", 9)
    tokens = jnp.stack([zoo.tokens(system, 9, seed) for seed in range(3)])
    y, _ = jax.jit(jax.vmap(scan, in_axes=(None, 0)))(system, tokens)
    for i in range(3):
        assert reference.error(y[i], reference.run(system, tokens[i]).y) < 1e-12


@pytest.mark.parametrize("name", zoo.slow_unless(["scalar_summed"], SOME))
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


@pytest.mark.parametrize("name", zoo.slow_unless([], ["diagonal_factored", "scalar_summed"]))
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


FORWARD = {
    "jvp": lambda f, x: jax.jvp(f, (x,), (x,)),
    "jvp in jit": lambda f, x: jax.jit(lambda x: jax.jvp(f, (x,), (x,)))(x),
    "jvp in vmap": lambda f, x: jax.vmap(lambda x: jax.jvp(f, (x,), (x,)))(x[None]),
    "jacfwd": lambda f, x: jax.jacfwd(f)(x),
    "jacfwd in jit": lambda f, x: jax.jit(jax.jacfwd(f))(x),
    "jacfwd in vmap": lambda f, x: jax.vmap(jax.jacfwd(f))(x[None]),
    "jacfwd of a checkpoint": lambda f, x: jax.jacfwd(jax.checkpoint(f))(x),
    "forward over forward": lambda f, x: jax.jacfwd(jax.jacfwd(f))(x),
    "linearize": lambda f, x: jax.linearize(f, x)[1](x),
}


@pytest.mark.parametrize("way", FORWARD)
def test_forward_mode_says_which_method_has_one(way):
    for system in (zoo.system("scalar_no_reset", 3), zoo.kernel_system(3)):
        u = zoo.tokens(system, 3)
        with pytest.raises(TypeError, match='"chunked" has a backward pass.*method="sequential"'):
            FORWARD[way](lambda u: scan(system, u, method="chunked")[0].sum(), u)  # noqa: B023


def test_every_order_of_reverse_mode_works_beside_it():
    """Gradients inside and around vmap, of checkpoints, and forward over reverse."""
    system, u, _ = inputs("scalar_no_reset", 3)

    def f(u, method="chunked"):
        return jnp.sum(scan(system, u, method=method)[0] ** 3)

    expected = jax.grad(lambda u: f(u, "sequential"))(u)

    @jax.jit
    def ways(u):
        return [
            jax.vmap(jax.grad(f))(u[None])[0],
            jax.grad(lambda u: jnp.sum(jax.vmap(f)(u)))(u[None])[0],
            jax.vmap(jax.grad(jax.checkpoint(f)))(u[None])[0],
        ], jax.hessian(f)(u)

    gradients, hessian = ways(u)
    for x in gradients:
        assert reference.error(x, expected) < 1e-12
    exact = jax.jacfwd(jax.grad(lambda u: f(u, "sequential")))(u)
    assert reference.error(hessian, exact) < 1e-12


def test_attention_step_by_step_has_a_forward_mode():
    system = zoo.kernel_system(4)
    u = zoo.tokens(system, 4)
    forward = jax.jacfwd(lambda u: scan(system, u, method="sequential")[0])(u)
    reverse = jax.jacrev(lambda u: scan(system, u, method="chunked")[0])(u)
    assert reference.error(forward, reverse) < 1e-12


def test_export_with_a_symbolic_length():
    from jax import export

    system, _, _ = inputs("scalar_lti", 1)
    (T,) = export.symbolic_shape("T")
    shape = jax.ShapeDtypeStruct((T, system.token_width), jnp.float64)
    u = zoo.tokens(system, 5)
    with unchecked():  # a symbol is no int
        program = export.export(jax.jit(lambda u: scan(system, u)[0]))(shape)
    assert reference.error(program.call(u), reference.run(system, u).y) < 1e-12
    with (
        unchecked(),
        pytest.raises(ValueError, match='got the symbolic length T.*method="sequential"'),
    ):
        export.export(jax.jit(lambda u: scan(system, u, method="chunked")[0]))(shape)


def test_repeatable_bit_for_bit():
    system, u, h0 = inputs("scalar", 65)
    first, second = (run_all(system, u, h0) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)
