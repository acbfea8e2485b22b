"""Interventions against the paper's matrices, changed by hand and run in NumPy."""

import dataclasses
import doctest
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import (
    DenseInput,
    InnerOutput,
    KernelSystem,
    OuterInput,
    Scalar,
    System,
    ValueSkip,
    to_dense,
)
from dsfjax import analysis as on
from tests import systems_zoo as zoo
from tests.checks import unchecked
from tests.engine_runs import COMPILE_FAST
from tests.reference_loop import error

L, S, HEAD = 9, 3, 1
FAST = ("diagonal_factored",)
MORE = (
    "scalar_summed",
    "scalar",
    "low_rank",
    "diagonal_full",
    "complex_per_state",
    "complex_lti",
    "scalar_given",
)
MAPS = ("dense", "dense_maps", "scalar_ranked")
every = pytest.mark.parametrize("name", zoo.slow_unless(FAST, [*FAST, *MORE, *MAPS]))
CASES = ("write", "removed", "output", "forget", "head")


def numbers(system: System) -> dict[str, np.ndarray]:
    dense: Any = to_dense(system, length=L)
    return {k: np.array(getattr(dense, k).array) for k in "ABCD"}


def run(system: System, m: dict[str, np.ndarray], u: Any, h: Any = None) -> np.ndarray:
    """Outputs by a loop over the paper's matrices."""
    C: Any = system.C
    h = np.zeros(m["A"].shape[1], m["A"].dtype) if h is None else np.asarray(h).reshape(-1)
    y = []
    for t in range(L):
        before, u_t = h, np.asarray(u[t])
        if system.reset is not None and system.reset[t]:
            before = 0 * before
        h = m["A"][t] @ h + m["B"][t] @ u_t
        out = m["C"][t] @ (before if C.before_update else h)
        y.append(out.real * (2 if C.conjugate_pairs else 1) + m["D"][t] @ u_t)
    return np.stack(y)


def of_head(system: System, head: int) -> np.ndarray:
    """Which entries of the flattened state belong to a head."""
    heads, n, p = system.state_shape
    return np.arange(heads * n * p) // (n * p) == head


@every
def test_effects_are_those_of_changed_matrices(name: str) -> None:
    system = zoo.system(name, L)
    u = jnp.asarray(np.random.default_rng(0).standard_normal((L, system.token_width)))
    weights = jnp.asarray(np.random.default_rng(1).standard_normal((system.output_width, 3)))
    last = min(HEAD, system.num_heads - 1)
    mine, plain = of_head(system, last), system.eta is None
    h0 = jnp.asarray(np.random.default_rng(2).standard_normal(system.state_shape), system.dtype)

    # Every change at once, each by a factor that is 1 in the other cases: one program for all.
    def changed(factors: Any) -> Any:
        write, removed, output, forget, head = factors
        new = on.scale_write(system, S, write, head=last, length=L)
        new = on.scale_write(new, S, removed, length=L)
        new = on.scale_gate(new, "output", output, step=S, head=last, length=L)
        new = on.scale_gate(new, "forget", forget, step=S, head=last, length=L)
        return on.scale_head(new, last, head)

    def compute(u: Any, h0: Any) -> Any:
        def one(factors: Any) -> Any:
            return on.effect(system, u, changed(factors), readout=lambda y: y @ weights)

        factors = jnp.where(jnp.eye(5, dtype=bool), jnp.array([-0.5, 0.0, 3.0, 0.25, 0.0]), 1.0)
        w = on.written(system, u)
        start = on.effect(system, u, changed_h0=h0) if plain else None
        return jax.vmap(one)(factors), w, on.response(system, S, -w[S], length=L), start

    found, w, through, start = jax.jit(compute, compiler_options=COMPILE_FAST)(u, h0)

    m = numbers(system)
    before = run(system, m, u)
    B, C, A, D = ({k: v.copy() for k, v in m.items()} for _ in range(4))
    C["C"][S][:, mine] *= 3
    A["A"][S][mine] *= 0.25
    D["C"][:, :, mine] = 0
    # A skip of its own per head goes with the head; one that reads the token or all does not.
    if isinstance(system.D, ValueSkip):
        D["D"].reshape(L, system.num_heads, -1, m["D"].shape[2])[:, last] = 0
    B["B"][S][mine] *= -0.5
    removed = {**m, "B": m["B"] * (np.arange(L) != S)[:, None, None]}
    expected = {
        "write": run(system, B, u),
        "removed": run(system, removed, u),
        "output": run(system, C, u),
        "head": run(system, D, u),
    }
    if plain:  # η is made of the decays too
        expected["forget"] = run(system, A, u)
        for way in start:
            assert error(way, run(system, m, u, h0) - before) < 1e-11
        writes = np.einsum("lij,lj->li", m["B"], np.asarray(u))
        assert error(w.reshape(L, -1), writes) < 1e-13
    for key, y in expected.items():
        for way in found:
            assert error(way[CASES.index(key)], (y - before) @ np.asarray(weights)) < 1e-11, key
    # The skip still reads the token whose write is gone.
    assert error(through, expected["removed"] - before) < 1e-11


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dense", "low_rank"])
def test_a_frozen_transition(name: str) -> None:
    system = zoo.system(name, L)
    m, frozen = numbers(system), on.freeze_decay(system, S)
    row = numbers(dataclasses.replace(system, reset=None))["A"][S]
    at = np.where(np.asarray(system.reset)[:, None, None], 0, row)
    u = jnp.asarray(np.random.default_rng(0).standard_normal((L, system.token_width)))
    expected = run(system, {**m, "A": at}, u) - run(system, m, u)
    for way in on.effect(system, u, frozen):
        assert error(way, expected) < 1e-11


@pytest.mark.slow
@pytest.mark.parametrize("name", ["low_rank", "scalar_summed"])
def test_another_key_and_value(name: str) -> None:
    system: Any = dataclasses.replace(zoo.system(name, L), D=None)
    u = jnp.asarray(np.random.default_rng(0).standard_normal((L, system.token_width)))
    key = jnp.abs(jnp.asarray(np.random.default_rng(1).standard_normal(system.B.b.shape[1:])))
    value = jnp.asarray(np.random.default_rng(2).standard_normal(zoo.H * zoo.P))
    changed, values = on.replace_write(system, u, S, key=key, value=value)
    found = on.effect(system, u, changed, values)
    B: Any = system.B
    by_hand = dataclasses.replace(
        system, B=dataclasses.replace(B.on_values(), b=B.b.at[S].set(key))
    )
    v = (u @ B.W.T).at[S].set(value)
    expected = run(by_hand, numbers(by_hand), v) - run(system, numbers(system), u)
    for way in found:
        assert error(way, expected) < 1e-11


def test_gates_that_are_set_and_decays_of_a_mean() -> None:
    system: Any = zoo.system("diagonal_full", L)
    u = jnp.asarray(np.random.default_rng(0).standard_normal((L, system.token_width)))
    A: Any = system.A
    decay, scale, gate = (np.array(x) for x in (A.decay(), system.B.scale, system.C.gate))
    decay[S, HEAD], scale[:, HEAD], gate[S] = 0.75, 2.0, 1.0
    changed: Any = on.replace_gate(system, "forget", 0.75, step=S, head=HEAD)
    changed = on.replace_gate(changed, "input", 2.0, head=HEAD)
    changed = on.replace_gate(changed, "output", 1.0, step=S)
    np.testing.assert_allclose(changed.A.decay(), decay, rtol=1e-14)
    np.testing.assert_allclose(changed.B.scale, scale)
    np.testing.assert_allclose(changed.C.gate, gate)
    mean: Any = on.freeze_decay(system).A
    np.testing.assert_allclose(mean.log_decay()[0], A.log_decay().mean(axis=0), rtol=1e-14)
    factored: Any = zoo.system("diagonal_factored", L)
    expected = factored.A.log_decay().mean(axis=0)
    np.testing.assert_allclose(on.freeze_decay(factored).A.log_decay()[0], expected, rtol=1e-13)
    assert error(*on.effect(system, u, changed)) < 1e-12


@pytest.mark.slow
def test_a_kernel_system() -> None:
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.standard_normal((L, 2, 3))) for _ in range(2))
    log_a, u = -jnp.asarray(rng.exponential(size=(L, 2))), jnp.asarray(rng.standard_normal((L, 8)))
    system = KernelSystem(q, k, transition=Scalar(log_a), num_channels=4)

    def by_hand(log_a: np.ndarray) -> np.ndarray:
        y = np.zeros((L, 2, 4))
        v = np.asarray(u).reshape(L, 2, 4)
        for h in range(2):
            for t in range(L):
                x = [
                    np.asarray(q)[t, h] @ np.asarray(k)[s, h] + log_a[s + 1 : t + 1, h].sum()
                    for s in range(t + 1)
                ]
                y[t, h] = np.exp(x) @ v[: t + 1, h] / np.exp(x).sum()
        return y

    before = by_hand(np.asarray(log_a))
    without = before * (np.arange(2) != HEAD)[:, None]
    frozen = by_hand(np.broadcast_to(np.asarray(log_a)[S], (L, 2)))
    for changed, y in (
        (on.scale_head(system, HEAD, 0.0), without),
        (on.freeze_decay(system, S), frozen),
    ):
        for way in on.effect(system, u, changed):
            assert error(way, (y - before).reshape(L, -1)) < 1e-12


def test_what_cannot_be_is_refused() -> None:
    system, u = zoo.system("low_rank", L), jnp.zeros((L, zoo.D))
    kernel = KernelSystem(jnp.zeros((L, 2, 3)), jnp.zeros((L, 2, 3)), num_channels=4)
    wrong: Any = kernel
    with pytest.raises(ValueError, match="scale_head: expected a head from 0 to 1, got 2"):
        on.scale_head(system, 2, 0.0)
    with unchecked(), pytest.raises(TypeError, match="scale_gate: expected a System, got Kernel"):
        on.scale_gate(wrong, "input", 0.0)
    with pytest.raises(ValueError, match="freeze_decay: expected a KernelSystem with a transition"):
        on.freeze_decay(kernel)
    with pytest.raises(TypeError, match="freeze_decay: expected a Scalar or Diagonal"):
        on.freeze_decay(system)
    with pytest.raises(TypeError, match="replace_gate: expected an Elementwise"):
        on.replace_gate(system, "forget", 1.0)
    dense = dataclasses.replace(system, B=DenseInput(jnp.zeros((1, 24, zoo.D))), D=None)
    with pytest.raises(TypeError, match="replace_write: expected an OuterInput"):
        on.replace_write(dense, u, 0, value=jnp.zeros(8))
    with pytest.raises(ValueError, match=r"replace_write: expected value of shape \(8,\)"):
        on.replace_write(system, u, 0, value=jnp.zeros(7))
    with pytest.raises(ValueError, match=r"response: expected a change of shape \(2, 3, 4\)"):
        on.response(system, 0, jnp.zeros((1, 3, 4)))


@pytest.mark.slow
def test_the_page_of_the_documentation() -> None:
    page = Path(__file__).parents[2] / "docs" / "interventions.md"
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        done = doctest.testfile(str(page), module_relative=False)
    assert done.attempted > 5 and done.failed == 0


EMA = System(
    Scalar(jnp.log(jnp.full((5, 1), 0.5))), OuterInput(), InnerOutput(), state_shape=(1, 1, 1)
)
AT_A_STEP: dict[str, Any] = {
    "scale_write": lambda step: on.scale_write(EMA, step, 0.0),
    "replace_gate": lambda step: on.replace_gate(EMA, "forget", 0.0, step=step),
    "replace_write": lambda step: on.replace_write(EMA, jnp.ones((5, 1)), step, value=jnp.ones(1)),
    "freeze_decay": lambda step: on.freeze_decay(EMA, step),
    "response": lambda step: on.response(EMA, step, jnp.ones((1, 1, 1))),
    "impulse_response": lambda step: on.impulse_response(EMA, step, jnp.ones(1)),
}


@pytest.mark.parametrize("name", AT_A_STEP)
def test_a_step_that_is_not_there_is_refused(name: str) -> None:
    # Scaling a write is scaling its input gate.
    for step in (-1, 5, 1.5):
        message = rf"{name.replace('scale_write', 'scale_gate')}: expected a step from 0 to 4, got"
        with unchecked(), pytest.raises(ValueError, match=message):
            AT_A_STEP[name](step)
    jax.eval_shape(AT_A_STEP[name], 4)  # a traced step is any


def test_a_decay_is_not_negative_and_a_value_not_cut_to_whole_numbers() -> None:
    with pytest.raises(ValueError, match="scale_gate: expected a factor >= 0 for a decay, got -1"):
        on.scale_gate(EMA, "forget", -1.0)
    with pytest.raises(ValueError, match="replace_gate: expected a value >= 0 for a decay"):
        on.replace_gate(EMA, "forget", -0.5)
    _, values = on.replace_write(EMA, jnp.ones((5, 1), int), 1, value=jnp.array([0.5]))
    assert values.ravel().tolist() == [1, 0.5, 1, 1, 1]
