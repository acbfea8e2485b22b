"""Counts on jaxprs against numbers by hand, and against XLA's own where it has no loops."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax.analysis import count_operations
from dsfjax.engines.guard import AT_MOST

F4 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
X, Y, V = F4((6, 4)), F4((4, 5)), F4((10,))


def custom(x: Any) -> Any:
    """A product with a backward rule of its own, inside jit and remat."""

    @jax.custom_vjp
    def f(x: Any) -> Any:
        return x * x

    f.defvjp(lambda x: (x * x, x), lambda x, g: (2 * x * g,))
    return jax.checkpoint(jax.jit(f))(x)


def loop(x: Any) -> Any:
    """Seven steps of one product of 4×4 matrices and one sum of 16."""

    def body(c: Any, _: None) -> tuple[Any, Any]:
        return c @ c, c.sum()

    return jax.lax.scan(body, x, None, length=7)


Case = tuple[Callable[..., Any], tuple[Any, ...], tuple[int, int, int]]
BY_HAND: dict[str, Case] = {
    # 2·6·5·4 operations; 24 + 20 numbers read and 30 written
    "product": (lambda x, y: x @ y, (X, Y), (240, 0, 4 * 74)),
    "batch of products": (
        lambda x, y: jnp.einsum("bij,bjk->bik", x, y),
        (F4((3, 6, 4)), F4((3, 4, 5))),
        (720, 0, 4 * 3 * 74),
    ),
    "fused": (lambda x: jnp.exp(2 * x + 1), (V,), (20, 10, 80)),
    "used twice, stored once": (lambda x: (2 * x) @ (2 * x), (F4((4, 4)),), (160, 0, 64 * 7)),
    "read in place by a reduction": (lambda x: (x * x).sum(), (V,), (19, 0, 44)),
    "view": (lambda x: x[:4] + x[4:8], (V,), (4, 0, 48)),
    "transpose of an operand": (lambda x, y: x @ y.T, (X, F4((5, 4))), (240, 0, 4 * 74)),
    "not needed": (lambda x: (jnp.exp(x), x + 1)[1], (V,), (10, 0, 80)),
    "convolution": (
        lambda x, k: jax.lax.conv_general_dilated(x, k, (1,), "VALID"),
        (F4((1, 3, 9)), F4((5, 3, 2))),
        (2 * 5 * 8 * 3 * 2, 0, 4 * (27 + 30 + 40)),
    ),
    "rows of a table": (
        lambda x, i: x.at[i].get(mode="promise_in_bounds"),
        (F4((1000, 4)), jax.ShapeDtypeStruct((3,), jnp.int32)),
        (9, 0, 2 * 48),  # indices are brought into range
    ),
    "update in place": (
        lambda x, y: jax.lax.dynamic_update_slice(x, y, (0, 0)),
        (F4((1000, 4)), F4((2, 4))),
        (0, 0, 2 * 32),
    ),
    "loop": (loop, (F4((4, 4)),), (7 * (128 + 15), 0, 7 * 4 * (48 + 17))),
    "loop in a loop": (
        lambda x: jax.lax.scan(lambda c, _: loop(c), x, None, length=3),
        (F4((4, 4)),),
        (3 * 7 * (128 + 15), 0, 3 * 7 * 4 * (48 + 17)),
    ),
    "not needed in a loop": (lambda x: loop(x)[0], (F4((4, 4)),), (7 * 128, 0, 7 * 4 * 48)),
    "not needed of a call": (
        lambda x: jax.jit(lambda x: (jnp.exp(x), x + 1))(x)[1],
        (V,),
        (10, 0, 80),
    ),
    "of constants alone": (
        lambda x: jnp.exp(jnp.ones((4, 4), "f4") @ jnp.ones((4, 4), "f4")) @ x,
        (F4((4, 4)),),
        (128, 0, 4 * 48),  # only the last product, which reads what the compiler has found
    ),
    "branches": (
        lambda x, y: jax.lax.cond(x[0, 0] > 0, lambda: x @ y, lambda: x[:, :1] + y[:1]),
        (X, Y),
        (240 + 2, 0, 4 * 74 + 4 + 4),  # the larger one; the choice is compared and converted
    ),
    "custom rule": (custom, (V,), (10, 0, 80)),
    "gradient of a custom rule": (
        lambda x: jax.grad(lambda x: custom(x).sum())(x),
        (V,),
        (20, 0, 80),
    ),
    "complex": (lambda x: x * x, (jax.ShapeDtypeStruct((10,), jnp.complex64),), (60, 0, 160)),
    "complex product": (
        lambda x: x @ x,
        (jax.ShapeDtypeStruct((4, 4), jnp.complex64),),
        (8 * 64, 0, 8 * 48),
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name: str) -> None:
    f, args, expected = BY_HAND[name]
    found = count_operations(f, *args)
    assert found.notes == ()
    assert found[:3] == expected


def test_backward_pass_of_a_product_is_two_more() -> None:
    def loss(x: Any, y: Any) -> Any:
        return (x @ y).sum()

    assert count_operations(jax.grad(loss, argnums=(0, 1)), X, Y).flops == 2 * 240
    assert count_operations(jax.value_and_grad(loss, argnums=(0, 1)), X, Y).flops == 3 * 240 + 29


def test_loop_bodies_once() -> None:
    once, all_steps = (
        count_operations(loop, F4((4, 4)), loop_bodies_once=flag) for flag in (True, False)
    )
    assert all_steps[:3] == tuple(7 * x for x in once[:3])


def test_what_is_left_out_is_said() -> None:
    unknown = count_operations(jnp.linalg.eigh, F4((4, 4)))
    assert any(note.startswith("eigh is not known") for note in unknown.notes)
    until = count_operations(
        lambda x: jax.lax.while_loop(lambda x: x[0] < 9, lambda x: 2 * x, x), V
    )
    assert until.notes == ("while: its number of steps is not static, counted as one",)

    def loop(x: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda x: x[0] < 9, lambda x: 2 * x, x)

    loop.__name__ = f"{AT_MOST}7"  # a loop may say how many steps it has at most
    most = count_operations(jax.jit(loop), V)
    assert most.notes == () and most.flops == 7 * until.flops
    assert until.flops == 11  # one test and one doubling
    inner = count_operations(lambda x: jax.lax.map(jnp.linalg.eigh, x), F4((2, 4, 4)))
    assert any("eigh" in note for note in inner.notes)


def test_nothing_is_allocated() -> None:
    x = F4((1_000_000, 1_000_000))
    assert count_operations(lambda x: x @ x, x).flops == 2 * 10**18


ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu, tanh": jax.nn.gelu,
    "silu": jax.nn.silu,
    "log of a sum": lambda x: jax.nn.logsumexp(x, axis=0),
    "norm": lambda x: x * jax.lax.rsqrt(jnp.square(x - 1).mean(-1, keepdims=True)),
    "power": lambda x: x**7,
    "choice": lambda x: jnp.where(x > 0, jnp.sqrt(jnp.abs(x)), jnp.maximum(x, -1)),
    "softmax": jax.nn.softmax,
    "erf_inv": jax.lax.erf_inv,
    "lgamma": jax.lax.lgamma,
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_arithmetic_is_that_of_xla(name: str) -> None:
    f, x = ELEMENTWISE[name], jnp.ones((64, 64), jnp.float32)
    found = count_operations(f, x)
    cost: Any = jax.jit(f).lower(x).compile().cost_analysis()
    np.testing.assert_allclose(found.flops, cost.get("flops", 0), rtol=0.05, atol=70)
    np.testing.assert_allclose(found.transcendentals, cost.get("transcendentals", 0), rtol=0.05)


def test_a_linear_system_is_solved_once() -> None:
    """A factorisation, 2n³/3, and two triangular solves of n² each for every right-hand side."""
    n, sides = 24, 3
    found = count_operations(jnp.linalg.solve, jnp.zeros((n, n)), jnp.zeros((n, sides)))
    assert found.notes == ()
    expected = 2 * n**3 / 3 + 2 * n**2 * sides
    assert expected <= found.flops < 1.1 * expected
