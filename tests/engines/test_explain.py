"""What `explain` says is what `scan` does, and what XLA counts."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from dsfjax import InnerOutput, OuterInput, Scalar, System, explain, scan
from tests import systems_zoo as zoo


def ssd(length: int, heads: int, n: int, p: int) -> System:
    ones = jnp.ones((length, 1, n), jnp.float32)
    log_a = jnp.full((length, heads), -0.1, jnp.float32)
    return System(Scalar(log_a), OuterInput(ones), InnerOutput(ones), state_shape=(heads, n, p))


@pytest.mark.parametrize(("heads", "n", "p"), [(4, 32, 32), (2, 64, 64), (8, 16, 32)])
def test_flops_of_chunks(heads, n, p):
    """Within a factor of 2 of XLA's count; XLA counts a loop's body once, so one chunk."""
    system = ssd(64, heads, n, p)
    u = jnp.ones((64, heads * p), jnp.float32)
    run = jax.jit(lambda system, u: scan(system, u, method="chunked"))
    analysis = run.lower(system, u).compile().cost_analysis()
    assert analysis is not None
    assert 0.5 < explain(system, method="chunked").flops / analysis["flops"] < 2


def test_the_decays_of_every_chunk_are_counted_where_they_vary():
    """Their exponents are c² sums of c numbers, per chunk and head."""
    varying = ssd(64, 2, 16, 16)
    constant = dataclasses.replace(varying, A=Scalar(jnp.full((1, 2), -0.1, jnp.float32)))
    found, once = (explain(system, method="chunked").flops for system in (varying, constant))
    assert found - once == 2 * 2 * 2 * 32**3  # chunks of 32 steps


def test_flops_grow_linearly_in_chunks_and_with_the_square_when_materialized():
    short, long = ssd(256, 2, 16, 16), ssd(1024, 2, 16, 16)
    assert explain(long, method="chunked").flops == 4 * explain(short, method="chunked").flops
    ratio = explain(long, method="materialized").flops / explain(short, method="materialized").flops
    assert 15 < ratio <= 16  # and what the state adds, once per step


def test_bytes_are_those_of_the_arrays():
    system = ssd(128, 2, 16, 8)
    arrays = sum(x.nbytes for x in jax.tree.leaves(system))
    assert explain(system).bytes == arrays + 2 * 128 * 16 * 4


@pytest.mark.parametrize(
    ("name", "structure", "method", "chunk", "states"),
    [
        ("scalar", "scalar decay per head", "chunked", 32, 24),
        ("scalar_constant", "scalar decay per head, constant in time", "chunked", 32, 24),
        ("diagonal_per_state", "diagonal, per state", "chunked", 32, 24),
        ("diagonal_full", "diagonal, full", "chunked", 16, 24),
        ("diagonal_factored", "diagonal, full, factored as step × rate", "chunked", 16, 24),
        ("diagonal_gated", "diagonal, per channel", "sequential", None, 4),
        ("complex_per_state", "complex diagonal, per state", "chunked", 32, 24),
        ("dense_maps", "diagonal, full", "chunked", 16, 24),
        ("low_rank", "diagonal plus rank 2", "chunked", 16, 24),
        ("dense", "dense", "checkpointed", 64, 24),
    ],
)
def test_structures(name, structure, method, chunk, states):
    e = explain(zoo.system(name, 100))
    assert (e.structure, e.method, e.chunk, e.state_size) == (structure, method, chunk, states)
    assert e.length == 100


def test_the_text_has_the_reason_and_the_numbers():
    e = explain(zoo.system("scalar", 100))
    text = str(e)
    assert e.reason == "a scalar decay turns chunks into matrix products"
    for part in (e.reason, e.structure, "N = 24", "in chunks of 32", "L = 100", "state float64"):
        assert part in text
    assert "sequential: given" in str(explain(zoo.system("scalar", 100), method="sequential"))


def test_precision_follows_the_inputs():
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), ssd(64, 1, 4, 4))
    assert "default (bfloat16 inputs)" in explain(low).precision
    assert "highest" in explain(ssd(64, 1, 4, 4)).precision


def test_abstract_arrays_will_do():
    abstract = jax.eval_shape(lambda: ssd(64, 2, 4, 4))
    assert explain(abstract).flops == explain(ssd(64, 2, 4, 4)).flops


def test_kernel_system():
    e = explain(zoo.kernel_system(1000))
    assert (e.method, e.chunk) == ("chunked", 128)
    assert "no finite state" in e.structure
    assert explain(zoo.kernel_system(100)).method == "materialized"


def test_a_constant_system_needs_a_length():
    e = explain(zoo.system("complex_lti", 1), length=2048)
    assert e.length == 2048
    assert e.flops == 2 * explain(zoo.system("complex_lti", 1), length=1024).flops
