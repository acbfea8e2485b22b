"""NaN and ∞, and sums that overflow: every method gives the values of the definition."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from dsfjax import Diagonal, InnerOutput, KernelSystem, OuterInput, Scalar, System, scan
from dsfjax.engines.guard import has_others
from tests import reference_loop as reference
from tests import systems_zoo as zoo
from tests.engine_checks import cut_length, report
from tests.engine_runs import COMPILE_FAST, inputs, methods, run_all

FAST = ("scalar",)
SLOW = (
    "low_rank",
    "diagonal_full",
    "diagonal_per_state",
    "diagonal_factored",
    "diagonal_gated",
    "scalar_groups",
    "scalar_summed_decay",
    "complex_per_state",
    "dense_maps",
    "dense",
)
NAMES = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
VALUES = (np.nan, np.inf, -np.inf)


def poisoned(tree: Any, length: int, rng: np.random.Generator) -> list[Any]:
    """Copies of a tree with NaN, ∞ or −∞ in one entry of one array that varies in time."""
    leaves, structure = jax.tree.flatten(tree)
    copies = []
    for i, leaf in enumerate(leaves):
        if leaf.shape[0] != length or leaf.dtype == bool:
            continue
        filled = np.array(leaf)
        place = rng.integers(filled.size // 3, filled.size // 2)
        filled.flat[place] = VALUES[len(copies) % 3]
        copies.append(structure.unflatten([*leaves[:i], jnp.asarray(filled), *leaves[i + 1 :]]))
    return copies


def differences(case: str, got: Any, expected: Any) -> list[str]:
    """Entries that are not finite in one and not the same in the other, and wrong finite ones."""
    found = []
    for what, x, y in zip(("y", "h_last"), got, expected, strict=True):
        x, y = np.asarray(x), np.asarray(y)
        fine = np.isfinite(y)
        same = np.where(fine, np.isfinite(x), (x == y) | (np.isnan(x) & np.isnan(y)))
        if not same.all():
            found.append(f"{case}, {what}: {(~same).sum()} of {x.size} entries, {x[~same][:3]}")
        elif fine.any() and not reference.error(x[fine], y[fine]) < 1e-12:
            found.append(f"{case}, {what}: finite entries are wrong")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_one_entry_reaches_what_its_step_feeds(name):
    """In tokens, maps, decays and initial state: what the loop says, ∞ as ∞ and NaN as NaN."""
    length, rng, found = cut_length(name), np.random.default_rng(0), []
    system, u, h0 = inputs(name, length)
    reset = np.zeros(length, bool)
    reset[[length // 4, length - 4]] = True
    system = dataclasses.replace(system, reset=jnp.asarray(reset))
    cases = [(bad, u, h0) for bad in poisoned(system, length, rng)]
    cases += [(system, bad, h0) for bad in poisoned(u, length, rng)]
    cases.append((system, u, h0.at[-1, -1, 0].set(np.inf)))
    for i, case in enumerate(cases):
        results = run_all(*case)
        with np.errstate(all="ignore"):
            loop = reference.run(*case)
        kinds = [
            np.isnan(y) == np.isnan(x) for x, y in zip(loop, results["sequential"], strict=False)
        ]
        # In complex numbers NumPy and XLA differ in which products with ∞ are NaN.
        if not system.is_complex and not all(kind.all() for kind in kinds):
            found.append(f"case {i}: sequential and the loop are NaN at different entries")
        for method in methods(system):
            found += differences(f"case {i}, {method}", results[method], results["sequential"])
    report(found)


def in_batch(system: System, u: Array) -> Array:
    return jax.vmap(lambda u: scan(system, u, method="chunked")[0])(u)


def test_one_sequence_of_a_batch_leaves_the_others_as_they_are():
    """Bit for bit; and ordinary inputs never pay for the sequential run, which is in a branch."""
    system, u, _ = inputs("scalar", 65)
    good = jnp.stack([u, 2 * u])
    run = jax.jit(in_batch, compiler_options=COMPILE_FAST)
    bad = run(system, good.at[0, 7, 0].set(jnp.inf))
    assert not np.isfinite(bad[0]).all()
    np.testing.assert_array_equal(bad[1], run(system, good)[1])
    assert str(jax.make_jaxpr(in_batch)(system, good)).count("cond[") == 1


def test_large_numbers_whose_sums_do_not_overflow():
    """Rows of ±2e38 in float32, with b = 1e-30: no check and no sum of an engine overflows."""
    signs = jnp.where(jnp.arange(65 * 8).reshape(65, 8) % 3 == 0, 1.0, -1.0)
    u = (2e38 * signs).astype(jnp.float32)
    b, c = (jnp.full((1, 1, 2), x, jnp.float32) for x in (1e-30, 1.0))
    A = Scalar(jnp.full((1, 2), -0.1, jnp.float32))
    system = System(A, OuterInput(b), InnerOutput(c), state_shape=(2, 2, 4))
    results = run_all(system, u)
    for method, (y, _) in results.items():
        assert reference.error(y, results["sequential"][0]) < 2e-6, method


def test_finite_tokens_whose_sum_overflows():
    """The second step overflows; by the definition what comes after a decay of 0 is NaN."""
    log_a = jnp.array([0.0, 0.0, -jnp.inf, 0.0], jnp.float32)[:, None]
    u = jnp.array([3e38, 3e38, 1.0, 1.0], jnp.float32)[:, None]
    ones = jnp.ones((1, 1, 2), jnp.float32)
    system = System(Scalar(log_a), OuterInput(ones), InnerOutput(ones / 2), state_shape=(1, 2, 1))
    for method, (y, _) in run_all(system, u).items():
        # The step that is cut off multiplies ∞ by 0, in the definition as well.
        expected = np.float32([3e38, np.inf, np.nan, np.nan])  # pyright: ignore[reportArgumentType]
        np.testing.assert_array_equal(y[:, 0], expected, err_msg=method)


_attention = jax.jit(
    lambda system, u: {m: scan(system, u, method=m)[0] for m in ("sequential", "chunked", "auto")},
    compiler_options=COMPILE_FAST,
)


def attention(system: KernelSystem, u: Any) -> np.ndarray:
    """Outputs (L, H, p) by the definition, where unseen tokens are left out and not weighted 0."""
    u, q, k = (np.asarray(x) for x in (u, system.q, system.k))
    v = (u @ np.asarray(system.W).T).reshape(len(u), system.num_heads, -1)
    document, y = np.cumsum(np.asarray(system.reset)), np.zeros_like(v)
    for t in range(len(u)):
        seen = np.flatnonzero(document[: t + 1] == document[t])
        for h in range(system.num_heads):
            scores = k[seen, h // (system.num_heads // k.shape[1])] @ q[t, h]
            weight = np.exp(scores - scores.max())
            y[t, h] = (weight / weight.sum()) @ v[seen, h]
    return y.reshape(len(u), -1)


@pytest.mark.parametrize("value", VALUES)
def test_attention_keeps_heads_channels_and_documents_apart(value):
    length = 300  # more than one block of keys
    system = zoo.kernel_system(length)
    u, found = zoo.tokens(system, length), []
    reset = jnp.zeros(length, bool).at[jnp.array([0, 100, 250])].set(True)
    system = dataclasses.replace(system, reset=reset)
    cases = {
        "a query": (dataclasses.replace(system, q=system.q.at[120, 1, 0].set(value)), u),
        "a key": (dataclasses.replace(system, k=system.k.at[120, 1, 0].set(value)), u),
        "a token": (system, u.at[120, 0].set(value)),
    }
    for case, arguments in cases.items():
        with np.errstate(all="ignore"):
            expected = attention(*arguments)
        for method, y in _attention(*arguments).items():
            kind = [
                np.isnan(x) * 1 + np.isposinf(x) * 2 + np.isneginf(x) * 3 for x in (y, expected)
            ]
            fine = np.isfinite(expected)
            if (kind[0] != kind[1]).any() or not reference.error(y[fine], expected[fine]) < 1e-12:
                found.append(f"{value} in {case}, {method}: {(kind[0] != kind[1]).sum()} entries")
    report(found)


@pytest.mark.parametrize(
    ("log_a", "x", "expected"),
    [
        (-1.0, 1.0, False),
        (-np.inf, 1.0, False),  # a decay of 0
        (-np.inf, np.inf, True),
        (np.inf, 1.0, True),
        (np.nan, 1.0, True),
        (complex(-np.inf, 1.0), 1.0, False),
        (complex(-1.0, np.nan), 1.0, True),
        (complex(-1.0, np.inf), 1.0, True),
        (-1.0, -np.inf, True),
        (-1.0, np.nan, True),
        (-1.0, 1j * np.inf, True),
        (-1.0, np.finfo("float32").max, False),  # and sums of it
    ],
)
def test_what_the_guard_looks_for(log_a: complex, x: complex, expected: bool) -> None:
    """It finds a single number, next to arrays that have as many rows and arrays that do not."""
    decays = np.full((4, 2, 3), -0.5, np.result_type(log_a))
    decays[2, 1, 1] = log_a
    values = np.full((4, 5), 0.5 if expected else x, np.result_type("float32", x))
    values[1, 3] = x
    others = jnp.ones((7, 2)), jnp.arange(3), jnp.zeros((0, 4)), jnp.float32(2)
    transition = Diagonal(jnp.asarray(decays[..., None]))
    assert has_others((transition, jnp.asarray(values), others)) == expected
