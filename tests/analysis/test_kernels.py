"""Impulse responses, receptive fields and attention maps against the written-out kernel."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import Dense, KernelSystem, OuterInput, System, materialize, scan
from dsfjax.analysis import (
    attention_map,
    impulse_response,
    jacobian_norms,
    reach,
    receptive_field,
)
from dsfjax.analysis.phi import each_row, kernel_rows, map_rows, of_head, token_rows
from tests import systems_zoo
from tests.reference_loop import error

L = 9
ON_VALUES = (
    "scalar_groups",
    "scalar_summed",
    "scalar_given",
    "diagonal_per_state",
    "diagonal_full",
    "diagonal_factored",
    "complex_per_state",
    "low_rank",
    "dense",
    "kernel",
)
DENSE_MAPS = ("complex_lti", "dense_maps", "dense_input", "dense_output")


def build(name: str) -> System | KernelSystem:
    if name == "kernel":
        return systems_zoo.kernel_system(L)
    return systems_zoo.system(name, L)


@functools.cache
def kernel(name: str) -> np.ndarray:
    """Φ on values as (H, p or 1, L, L)."""
    phi = np.asarray(jax.jit(functools.partial(materialize, length=L))(build(name)))
    return phi[:, None] if phi.ndim == 3 else phi


@pytest.mark.parametrize("name", ON_VALUES)
def test_rows_are_those_of_the_kernel(name: str) -> None:
    def rows(system: Any) -> Any:
        in_order = each_row("test", system, L, lambda _, row: row, block=4)
        return in_order, map_rows(kernel_rows("test", system, L), L, 4)

    for found in jax.jit(rows)(build(name)):
        got = np.asarray(found).transpose(2, 3, 0, 1)
        expected = kernel(name)
        if got.shape != expected.shape:  # a channel axis of broadcast parts
            expected = np.broadcast_to(expected, got.shape)
        assert error(got, expected) < 1e-13
        assert (np.triu(got, 1) == 0).all()


@pytest.mark.parametrize("name", [*ON_VALUES[:-1], "diagonal_signed"])
def test_a_head_alone_has_its_own_kernel(name: str) -> None:
    expected = kernel(name)
    channels = np.arange(expected.shape[1])[::2]

    @jax.jit
    def alone(system: System) -> tuple[jax.Array, ...]:
        heads = range(system.num_heads)
        found = (of_head("test", system, head, jnp.asarray(channels)) for head in heads)
        return tuple(materialize(one, length=L) for one in found)

    for phi, of_all in zip(alone(build(name)), expected, strict=True):
        assert error(np.asarray(phi).reshape(-1, L, L), of_all[channels]) < 1e-13


@pytest.mark.parametrize("name", ["diagonal_full", "complex_lti", "kernel"])
def test_rows_from_tokens_are_those_of_the_full_kernel(name: str) -> None:
    system = build(name)
    rows = jax.jit(lambda s: map_rows(token_rows(s, L), L, 4))(system)
    full = jax.jit(functools.partial(materialize, full=True, length=L))(system)
    assert error(rows, full) < 1e-13


@pytest.mark.parametrize("name", ["scalar_summed", "complex_lti", "kernel"])
def test_impulse_response(name: str) -> None:
    system = build(name)
    token = jnp.asarray(np.random.default_rng(0).standard_normal(system.token_width))
    full = np.asarray(jax.jit(functools.partial(materialize, full=True, length=L))(system))
    y, h = jax.jit(lambda s, u: impulse_response(s, 3, u, length=L))(system, token)
    assert error(y, full[:, :, 3] @ np.asarray(token)) < 1e-13
    if isinstance(system, KernelSystem):
        assert h is None
    else:
        u = jnp.zeros((L, system.token_width)).at[3].set(token)
        states = jax.jit(functools.partial(scan, return_states=True))(system, u)[2]
        assert error(h, states[..., : system.state_shape[2]]) < 1e-14
        found = np.asarray(h)
        assert (found[:3] == 0).all() and (found[3] != 0).any()


def counted(weights: np.ndarray, share: float) -> np.ndarray:
    """Receptive fields of (…, L, L) by counting back from the present step."""
    found = np.zeros(weights.shape[:-1], int)
    for *lead, t in np.ndindex(*weights.shape[:-1]):
        row, total, r = weights[(*lead, t)], 0.0, 0
        while row.sum() > 0 and total < share * row.sum() * (1 - 1e-12):
            total += row[t - r]
            r += 1
        found[(*lead, t)] = r
    return found


@pytest.mark.parametrize("name", ["scalar_given", "diagonal_full", "kernel"])
@pytest.mark.parametrize("share", [pytest.param(0.5, marks=pytest.mark.slow), 0.9])
def test_receptive_field_counts_back_from_the_present(name: str, share: float) -> None:
    got = np.asarray(jax.jit(functools.partial(receptive_field, share=share))(build(name)))
    expected = counted(np.abs(kernel(name)), share).transpose(2, 0, 1)
    np.testing.assert_array_equal(got.reshape(expected.shape), expected)


def test_receptive_field_of_a_geometric_kernel() -> None:
    """Σ_{i<r} 2^{-i} ≥ 0.9 Σ_{i≤t} 2^{-i}; a share of 1 needs every step."""
    system = systems_zoo.system("scalar_lti", 1)
    halves = dataclasses.replace(
        system,
        A=dataclasses.replace(system.A, log_a=jnp.full((1, 2), -jnp.log(2.0))),  # pyright: ignore[reportArgumentType]
    )
    fields = jax.jit(receptive_field, static_argnames=("share", "length"))
    np.testing.assert_array_equal(
        fields(halves, share=0.9, length=6), np.repeat([[1], [2], [3], [3], [3], [4]], 2, axis=1)
    )
    np.testing.assert_array_equal(
        fields(halves, share=1.0, length=6), np.repeat(np.arange(1, 7)[:, None], 2, axis=1)
    )


def test_an_empty_row_has_no_receptive_field() -> None:
    system = systems_zoo.system("scalar_lti", 1)
    silent = dataclasses.replace(system, B=OuterInput(jnp.zeros((1, 1, systems_zoo.N))))
    found = jax.jit(lambda s: (receptive_field(s, length=3), attention_map(s, length=3)))(silent)
    assert (np.asarray(found[0]) == 0).all()
    assert (np.asarray(found[1].weights) == 0).all()


@pytest.mark.parametrize("name", ["diagonal_full", "kernel"])
@pytest.mark.parametrize("size", [*(pytest.param(x, marks=pytest.mark.slow) for x in (L, 1)), 4])
def test_attention_map_averages_cells(name: str, size: int) -> None:
    weights, edges = jax.jit(functools.partial(attention_map, size=size, block=4))(build(name))
    share = np.sqrt((kernel(name) ** 2).mean(axis=1))
    share = share / share.sum(axis=2, keepdims=True)
    cell = -(-L // size)
    expected_edges = [*range(0, L, cell), L]
    np.testing.assert_array_equal(edges, expected_edges)
    pairs = list(zip(expected_edges[:-1], expected_edges[1:], strict=True))
    expected = [[share[:, a:b, c:d].sum(2).mean(1) for c, d in pairs] for a, b in pairs]
    assert error(weights, np.moveaxis(np.array(expected), 2, 0)) < 1e-13
    np.testing.assert_allclose(np.asarray(weights).sum(axis=2), 1, rtol=1e-13)


def test_jacobian_norms_of_a_nonlinear_function() -> None:
    rng = np.random.default_rng(1)
    system, u = systems_zoo.system("scalar_summed", L), jnp.asarray(rng.standard_normal((L, 5)))

    def f(u: jax.Array) -> jax.Array:
        return jnp.tanh(scan(system, jnp.sin(u), method="sequential")[0])

    expected = np.linalg.norm(np.asarray(jax.jit(jax.jacfwd(f))(u)), axis=(1, 3))
    got = jax.jit(functools.partial(jacobian_norms, f, block=3))(u)
    assert error(got, expected) < 1e-13
    assert error(jax.jit(functools.partial(jacobian_norms, f, block=64))(u), expected) < 1e-13
    np.testing.assert_array_equal(reach(got), counted(expected, 0.9))


def test_probes_estimate_the_squared_norm_without_bias() -> None:
    rng = np.random.default_rng(2)
    mixing = jnp.asarray(np.tril(rng.standard_normal((3, 3))))
    matrix = jnp.asarray(rng.standard_normal((4, 5)))

    def f(u: jax.Array) -> jax.Array:
        return mixing @ u @ matrix.T

    u, count = jnp.zeros((3, 5)), 4000
    exact = np.asarray(jacobian_norms(f, u))
    key = jax.random.key(0)
    estimate = np.asarray(jacobian_norms(f, u, probes=count, key=key, block=count))
    seen = np.tri(3, dtype=bool)
    ratio = (estimate[seen] / exact[seen]) ** 2
    np.testing.assert_allclose(ratio, 1, atol=5 * np.sqrt(2 / count))
    assert (ratio != 1).all()


@pytest.mark.parametrize("name", DENSE_MAPS)
def test_dense_maps_are_sent_to_the_jacobian(name: str) -> None:
    with pytest.raises(ValueError, match="jacobian_norms"):
        receptive_field(build(name), length=L)


def test_misuse_says_what_to_do() -> None:
    system = systems_zoo.system("scalar", L)
    assert not isinstance(system.A, Dense)
    with pytest.raises(ValueError, match=r"share in \(0, 1\], got 0"):
        receptive_field(system, 0.0)
    with pytest.raises(ValueError, match=f"expected a step from 0 to {L - 1}, got {L}"):
        impulse_response(system, L, jnp.ones(5))
    with pytest.raises(ValueError, match="need a key"):
        jacobian_norms(jnp.sin, jnp.ones((2, 2)), probes=3)
    with pytest.raises(ValueError, match=r"got \(2, 2\) to \(2,\)"):
        jacobian_norms(lambda u: u.sum(axis=1), jnp.ones((2, 2)))
