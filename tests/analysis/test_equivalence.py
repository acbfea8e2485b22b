"""Equivalence of systems, and the changes of coordinates of arXiv:2405.15731."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import (
    Diagonal,
    InnerOutput,
    KernelSystem,
    OuterInput,
    Scalar,
    System,
    TokenSkip,
    ValueSkip,
    materialize,
    pad_state,
    rescale,
    scan,
    to_dense,
)
from dsfjax.analysis import equivalent, find_coordinates, normalized
from dsfjax.analysis.equivalence import Equivalence
from dsfjax.core import truncate_kernel
from tests import systems_zoo
from tests.reference_loop import error

L = 7
compare: Any = jax.jit(equivalent)
run: Any = jax.jit(scan, static_argnames="return_states")
full_kernel: Any = jax.jit(functools.partial(materialize, full=True))


@pytest.mark.parametrize("name", ["scalar_summed", "kernel"])
def test_a_system_is_equivalent_to_its_dense_form_and_to_no_other(name: str) -> None:
    if name == "kernel":
        a = systems_zoo.kernel_system(L)
        b: Any = truncate_kernel(a, 2)
        full = np.asarray(full_kernel(b))
    else:
        a, b = systems_zoo.system(name, L), systems_zoo.system(name, L, seed=1)
        assert bool(compare(a, to_dense(a)).equal)
        full = np.asarray(full_kernel(b))
    found: Equivalence = compare(a, b)
    expected = np.asarray(full_kernel(a))
    difference = np.abs(expected - full)
    assert not bool(found.equal)
    np.testing.assert_allclose(found.kernel, difference.max() / np.abs(expected).max(), rtol=1e-10)
    assert tuple(found.at) == np.unravel_index(np.argmax(difference), difference.shape)
    u = systems_zoo.tokens(a, L)
    y = run(a, u)[0]
    wanted = np.abs(y - run(b, u)[0]).max() / np.abs(y).max()
    np.testing.assert_allclose(compare(a, b, u).outputs, wanted, rtol=1e-10)


def test_tolerance_decides() -> None:
    a = systems_zoo.system("scalar_no_reset", L)
    assert isinstance(a.B, OuterInput) and a.B.W is not None
    W = a.B.W.at[0, 0].multiply(1 + 1e-5)
    b = dataclasses.replace(a, B=dataclasses.replace(a.B, W=W))
    found = compare(a, b)
    assert 1e-7 < float(found.kernel) < 1e-4 and not bool(found.equal)
    assert bool(jax.jit(lambda a, b: equivalent(a, b, tolerance=1e-4))(a, b).equal)


def test_constant_systems_take_a_length_and_lengths_must_fit() -> None:
    a = systems_zoo.system("scalar_lti", 1)
    longer = rescale(a, jnp.zeros(L))
    assert bool(compare(a, longer).equal)
    assert bool(jax.jit(lambda a: equivalent(a, a, length=3))(a).equal)
    with pytest.raises(ValueError, match=f"expected length {L}"):
        equivalent(a, longer, length=3)
    with pytest.raises(ValueError, match=r"\(5, 8\) and \(4, 4\)"):
        equivalent(systems_zoo.system("scalar_no_reset", L), systems_zoo.system("complex_pairs", L))


def state_of(system: System, u: Any) -> np.ndarray:
    states = run(system, u, return_states=True)[2]
    return np.asarray(states[..., : system.state_shape[2]]).reshape(u.shape[0], -1)


def check(a: System, b: System, log_t: Any, u: Any = None) -> None:
    """T is found, rescale with it gives the outputs of b, and its states but for their order."""
    found = find_coordinates(a, b)
    assert found and found.log_t is not None and found.order is not None, found.reason
    np.testing.assert_allclose(found.log_t, log_t, rtol=0, atol=1e-10)
    u = systems_zoo.tokens(a, L) if u is None else u
    moved = rescale(a, found.log_t)
    assert error(run(moved, u)[0], run(b, u)[0]) < 1e-12
    assert error(state_of(moved, u)[:, found.order], state_of(b, u)) < 1e-12
    back = find_coordinates(b, a)
    if a.state_shape == b.state_shape:
        assert back.log_t is not None
        np.testing.assert_allclose(back.log_t, -np.asarray(log_t), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "name", ["scalar_groups", "scalar_extremes", "diagonal_full", "complex_per_state"]
)
def test_a_change_of_coordinates_is_found_again(name: str) -> None:
    system = systems_zoo.system(name, L)
    log_t = np.random.default_rng(0).standard_normal((L, system.state_shape[0]))
    check(system, rescale(system, jnp.asarray(log_t)), log_t)


@pytest.mark.parametrize("name", ["scalar_summed", "scalar_given"])
def test_the_papers_form_of_attention_is_the_unnormalised_one(name: str) -> None:
    """Lemma 1: T_t = 1/η_t."""
    a = dataclasses.replace(systems_zoo.system(name, L), reset=None, D=None)
    u = systems_zoo.tokens(a, L)
    eta = run(dataclasses.replace(a, eta=None), u)[0] / run(a, u)[0]
    check(a, jax.jit(normalized)(a), -np.log(eta.reshape(L, 2, -1)[..., 0]))


def ssd(seed: int = 0, heads: int = 4) -> System:
    """e^{−Δ_t a} per head, B = Δ_t b_t ⊗ v_t, skip on the value: the token is the value."""
    rng = np.random.default_rng(seed)
    delta = jnp.asarray(rng.uniform(0.1, 1.0, (L, heads)))
    rate = jnp.asarray(rng.uniform(0.5, 2.0, (1, heads)))
    return System(
        Scalar(-delta * rate),
        OuterInput(jnp.asarray(rng.standard_normal((L, 1, 3))), delta[:, :, None]),
        InnerOutput(jnp.asarray(rng.standard_normal((L, 1, 3)))),
        ValueSkip(jnp.asarray(rng.standard_normal((1, heads, 1)))),
        state_shape=(heads, 3, 4 // heads),
    )


def attention_of(system: System) -> System:
    """The same Φ without decay: keys and queries carry e^{± Σ Δ a}, no normaliser."""
    assert isinstance(system.A, Scalar)
    log_a = np.asarray(system.A.log_a)
    total = np.cumsum(np.where(np.arange(L)[:, None] == 0, 0, log_a), axis=0)
    b, c = np.asarray(system.B.b), np.asarray(system.C.c)  # type: ignore[union-attr]
    heads = log_a.shape[1]
    keys, queries = (np.repeat(x, heads, axis=1) for x in (b, c))
    return System(
        Scalar(jnp.zeros((1, heads))),
        OuterInput(jnp.asarray(keys * np.exp(-total)[..., None]), system.B.scale),  # type: ignore[union-attr]
        InnerOutput(jnp.asarray(queries * np.exp(total)[..., None])),
        system.D,
        state_shape=system.state_shape,
    )


def test_attention_is_ssd_in_coordinates_of_its_decays() -> None:
    b = ssd(heads=2)
    a = attention_of(b)
    log_a = np.asarray(b.A.log_a)  # type: ignore[union-attr]
    check(a, b, np.cumsum(np.where(np.arange(L)[:, None] == 0, 0, log_a), axis=0))
    assert bool(compare(a, b).equal)


def test_s6_with_equal_rates_is_ssd_with_one_head_per_channel() -> None:
    b = ssd(heads=4)
    delta = b.B.scale.swapaxes(1, 2)  # type: ignore[union-attr]
    rate = (b.A.log_a / b.B.scale[..., 0])[0]  # type: ignore[union-attr]
    a = System(
        Diagonal.factored(delta, jnp.broadcast_to(rate, (1, 3, 4))),
        OuterInput(b.B.b, delta),  # type: ignore[union-attr]
        InnerOutput(b.C.c),  # type: ignore[union-attr]
        TokenSkip(b.D.d[..., 0]),  # type: ignore[union-attr]
        state_shape=(1, 3, 4),
    )
    check(a, b, np.zeros((L, 1)))
    check(b, a, np.zeros((L, 4)))
    unequal = dataclasses.replace(
        a,
        A=Diagonal.factored(delta, a.A.log_a.rate * jnp.array([[[1.0], [1.0], [1.1]]])),  # type: ignore[union-attr]
    )
    found = find_coordinates(unequal, b)
    assert not found and found.log_t is None and found.order is None
    assert "transitions Λ_t differ first at step 1" in found.reason
    assert "no T_t of any kind exists" in found.reason


def test_a_value_map_may_share_its_scale_with_the_input() -> None:
    a = systems_zoo.system("scalar_no_reset", L)
    assert isinstance(a.B, OuterInput) and a.B.W is not None and a.B.scale is not None
    signs = jnp.asarray([1.0, -1.0] * 4).reshape(2, 4)
    b = dataclasses.replace(
        a,
        B=OuterInput(a.B.b, a.B.scale * 2 * signs[None], a.B.W * signs.reshape(-1, 1) / 2),
    )
    check(a, b, np.zeros((L, 2)))


def test_steps_without_input_take_t_from_the_output_or_the_decay() -> None:
    a = systems_zoo.system("scalar_no_reset", L)
    assert isinstance(a.B, OuterInput) and isinstance(a.C, InnerOutput)
    assert a.B.b is not None and a.C.c is not None
    a = dataclasses.replace(
        a,
        B=dataclasses.replace(a.B, b=a.B.b.at[2:5].set(0)),
        C=dataclasses.replace(a.C, c=a.C.c.at[4].set(0)),
    )
    log_t = np.random.default_rng(0).standard_normal((L, 2))
    check(a, rescale(a, jnp.asarray(log_t)), log_t)


def test_reasons() -> None:
    a = systems_zoo.system("scalar_no_reset", L)
    assert isinstance(a.B, OuterInput) and a.B.W is not None and a.B.scale is not None
    assert isinstance(a.C, InnerOutput) and a.C.gate is not None
    assert a.B.b is not None and isinstance(a.A, Scalar)

    def reason(b: Any) -> str:
        found = find_coordinates(a, b)
        assert not found
        return found.reason

    assert "no finite state" in reason(systems_zoo.kernel_system(L))
    assert "pad_state embeds n = 3 in 5" in reason(pad_state(a, 5))
    assert "resets differ" in reason(dataclasses.replace(a, reset=jnp.arange(L) == 3))
    other = dataclasses.replace(a.B, W=a.B.W.at[5].add(1.0))
    assert "not parallel in row 5" in reason(dataclasses.replace(a, B=other))
    assert "widths" in reason(systems_zoo.system("diagonal_gated", L))
    turned = dataclasses.replace(a.B, b=a.B.b.at[3].multiply(jnp.array([[1.0, 2.0, 1.0]])))
    assert "inputs B_t differ first at step 3" in reason(dataclasses.replace(a, B=turned))
    flipped = dataclasses.replace(a.B, scale=a.B.scale.at[4].multiply(-1))
    assert "negative at step 4" in reason(dataclasses.replace(a, B=flipped))
    louder = dataclasses.replace(a.C, gate=a.C.gate.at[2].multiply(2.0))
    assert "outputs C_t differ first at step 2" in reason(dataclasses.replace(a, C=louder))
    skip = dataclasses.replace(a, D=ValueSkip(jnp.ones((1, 2, 1))))
    assert "skips D_t differ" in reason(skip)
    faster = Scalar(a.A.log_a.at[3].add(-1.0))
    assert "transitions Λ_t differ first at step 3" in reason(dataclasses.replace(a, A=faster))
    per_channel = jnp.exp(jnp.arange(4.0))[None, None]
    uneven = dataclasses.replace(
        a,
        B=dataclasses.replace(a.B, scale=a.B.scale * per_channel),
        C=dataclasses.replace(a.C, gate=a.C.gate / per_channel),
    )
    assert "one head per channel" in reason(uneven) and "Φ is the same" in reason(uneven)


def test_other_structures_and_traced_arrays_are_refused() -> None:
    a = systems_zoo.system("scalar_no_reset", L)
    with pytest.raises(TypeError, match="got Dense, OuterInput, InnerOutput. .* equivalent"):
        find_coordinates(a, systems_zoo.system("dense", L))
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda a: find_coordinates(a, a).log_t)(a)
    with pytest.raises(ValueError, match=f"expected length {L}"):
        find_coordinates(a, a, length=3)
    assert isinstance(systems_zoo.kernel_system(L), KernelSystem)
