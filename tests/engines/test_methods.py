"""Which method runs which structure, and what misuse says."""

import dataclasses
import inspect
import re

import jax
import jax.numpy as jnp
import pytest

from dsfjax import (
    InnerOutput,
    OuterInput,
    Scalar,
    System,
    explain,
    materialize,
    scan,
    slice_time,
    step,
)
from dsfjax.engines import ENGINES, methods, select
from tests import systems_zoo as zoo

ONE_PER_STRUCTURE = ["scalar", "diagonal_full", "low_rank", "dense"]
SYSTEMS = [zoo.system(name, 3) for name in ONE_PER_STRUCTURE] + [zoo.kernel_system(3)]


def structure(system):
    return type(getattr(system, "A", system))


def test_the_table_in_the_docstring():
    doc = inspect.getdoc(scan) or ""  # without the indentation, which Python 3.13 leaves out
    rows = re.findall(r"^(\w+) +((?:(?:yes|no) *){5})$", doc, re.MULTILINE)
    order = re.search(r"structure of A +(.*)", doc)
    assert order is not None
    columns = order[1].split()
    table = {
        name: tuple(c for c, cell in zip(columns, cells.split(), strict=True) if cell == "yes")
        for name, cells in rows
    }
    assert table == {structure(s).__name__: methods(s) for s in SYSTEMS}


@pytest.mark.parametrize("method", ENGINES)
@pytest.mark.parametrize("system", SYSTEMS, ids=lambda s: structure(s).__name__)
def test_every_pair_runs_or_raises(system, method):
    u, runs = zoo.tokens(system, 3), methods(system)
    if method in runs:
        assert jnp.all(jnp.isfinite(scan(system, u, method=method)[0]))
        return
    with pytest.raises(
        ValueError, match=f"{method}.* does not run {structure(system).__name__}"
    ) as e:
        scan(system, u, method=method)
    assert str(list(runs)) in str(e.value)
    with pytest.raises(ValueError, match="does not run"):
        explain(system, method=method)


def test_chunks_skip_states():
    """Where every state is wanted, low-rank transitions run step by step, and say so."""
    system = zoo.system("low_rank", 3)
    with pytest.raises(ValueError, match="every state is wanted.*checkpointed"):
        scan(system, zoo.tokens(system, 3), method="chunked", return_states=True)


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda s: structure(s).__name__)
def test_auto_is_one_of_the_table(system):
    assert explain(system).method in methods(system)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="others run chunks side by side")
def test_one_state_per_channel_keeps_all_states_only_while_they_are_few():
    A = Scalar(jnp.zeros((1, 1)))
    system = System(A, OuterInput(), InnerOutput(), state_shape=(1, 1, 256))
    assert select(system, 1024)[0].name == "sequential"
    assert select(system, 4096)[0].name == "checkpointed"


def test_unknown_method_names_the_nearest():
    system = SYSTEMS[0]
    with pytest.raises(ValueError, match="unknown method of scan 'chunk'; did you mean 'chunked'"):
        scan(system, zoo.tokens(system, 3), method="chunk")


SCALAR, KERNEL = SYSTEMS[0], SYSTEMS[-1]
U = jnp.zeros((3, zoo.D))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scan(SCALAR, U[:2]), r"expected tokens u of shape \(3, 5\).*got \(2, 5\)"),
        (lambda: scan(SCALAR, U[:, :4]), r"expected tokens u of shape \(3, 5\).*got \(3, 4\)"),
        (lambda: scan(KERNEL, U[:2]), r"expected tokens u of shape \(3, 5\).*got \(2, 5\)"),
        (
            lambda: scan(SCALAR, U, jnp.zeros((2, 3, 5))),
            r"expected a state of shape \(2, 3, 4\), got \(2, 3, 5\)",
        ),
        (
            lambda: scan(SCALAR, U, jnp.zeros((2, 3, 4), complex)),
            r"the system is real, but its initial state is complex128",
        ),
        (
            lambda: scan(SCALAR, U, scan(KERNEL, U)[1]),
            r"expected a state of shape \(2, 3, 4\), got a KVCache",
        ),
        (lambda: scan(KERNEL, U, jnp.zeros(3)), r"expected a KVCache.*got .* of shape \(3,\)"),
        (
            lambda: scan(KERNEL, U, scan(dataclasses.replace(KERNEL, k=U[:, None, :3]), U)[1]),
            r"expected a KVCache.*\(2, 3\).*got \(\(1, 3\)",
        ),
        (lambda: scan(KERNEL, U, return_states=True), r"no finite states"),
        (lambda: step(SCALAR, U[0], None), r"expected the system of one step, got .* length 3"),
        (
            lambda: step(slice_time(SCALAR, 0, 1), U[0, :4], None),
            r"expected tokens u of shape \(1, 5\).*got \(1, 4\)",
        ),
        (
            lambda: scan(
                dataclasses.replace(zoo.system("complex_lti", 1), reset=jnp.array([True])), U
            ),
            r"expected reset of shape \(3,\).*got \(1,\)",
        ),
    ],
)
def test_misuse_says_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_one_step_is_not_constant():
    """The system of one step says so, and is not taken for one that never changes."""
    constant = zoo.system("scalar_lti", 1)
    one = slice_time(constant, 0, 1)
    u = zoo.tokens(constant, 3)
    assert (constant.length, one.length) == (None, 1)
    assert scan(constant, u)[0].shape == (3, constant.output_width)
    with pytest.raises(ValueError, match=r"expected tokens u of shape \(1, 8\).*got \(3, 8\)"):
        scan(one, u)
    with pytest.raises(ValueError, match="expected length 1"):
        materialize(one, length=3)


def test_batched_tokens_are_refused():
    """jaxtyping, under test only, or `scan` itself points at jax.vmap."""
    with pytest.raises((ValueError, TypeError)):
        scan(SCALAR, U[None])
