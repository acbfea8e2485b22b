"""vmap, checkpoint and repetition of gradients through every method."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import System, scan
from tests import reference_loop as reference
from tests import systems_zoo as zoo
from tests.engine_checks import (
    compiled_pull_back,
    cotangents,
    cut_length,
    pull_back,
    report,
)
from tests.engine_runs import COMPILE_FAST, differentiable, inputs, methods, names_of_leaves

FAST = ("scalar",)
SLOW = (
    "low_rank",
    "diagonal_factored",
    "scalar_summed",
    "diagonal_per_state",
    "diagonal_full",
    "diagonal_gated",
    "complex_per_state",
    "complex_lti",
    "dense_maps",
    "dense",
)
MARKED = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
ALL = (0, 0, 0)
# What is batched: systems, tokens, initial states.
PARTS = [
    *((name, ALL) for name in FAST),
    *(pytest.param(name, ALL, marks=pytest.mark.slow) for name in SLOW),
    *(
        pytest.param(name, axes, marks=pytest.mark.slow)
        for name in FAST + SLOW
        for axes in ((None, 0, None), (None, None, 0), (0, None, None))
    ),
]


@pytest.mark.parametrize(("name", "axes"), PARTS)
def test_vmap_is_a_loop(name, axes):
    length, batch = cut_length(name), 3
    systems = [zoo.system(name, length, seed) for seed in range(batch)]
    tokens = [zoo.tokens(systems[0], length, seed) for seed in range(batch)]
    states = [zoo.state(systems[0], seed) for seed in range(batch)]
    parts = zip((systems, tokens, states), axes, strict=True)
    examples = [part if axis == 0 else part[:1] * batch for part, axis in parts]
    stacked = [
        jax.tree.map(lambda *x: jnp.stack(x), *part) if axis == 0 else part[0]
        for part, axis in zip(examples, axes, strict=True)
    ]
    bar, found = cotangents(systems[0], tokens[0], states[0]), []
    loop = [
        compiled_pull_back(*example, bar, method="sequential")
        for example in zip(*examples, strict=True)
    ]
    what = ["y", "h_last", *names_of_leaves((systems[0], tokens[0], states[0]))]
    for method in methods(systems[0]):
        batched = jax.vmap(partial(pull_back, method=method), in_axes=(*axes, None))
        out = jax.jit(batched, compiler_options=COMPILE_FAST)(*stacked, bar)
        for i, one in enumerate(loop):
            pairs = zip(jax.tree.leaves(out), jax.tree.leaves(one), strict=True)
            for part, (x, y) in zip(what, pairs, strict=True):
                if not (error := reference.error(x[i], y)) < 1e-9:
                    found.append(f"{method}, example {i}, {part}: {error:.1e}")
    report(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", MARKED)
def test_checkpoint(name):
    """Recomputing everything in the backward pass gives the same gradients."""
    system, u, h0 = inputs(name, cut_length(name))
    bar = cotangents(system, u, h0)
    exact = compiled_pull_back(system, u, h0, bar, method="sequential").gradients
    arrays, rebuild = differentiable((system, u, h0))

    @partial(jax.jit, static_argnames="method", compiler_options=COMPILE_FAST)
    def gradients(x: list[jax.Array], *, method: str) -> list[jax.Array]:
        run = jax.checkpoint(lambda x: scan(*rebuild(x), method=method))
        return jax.vjp(run, x)[1](bar)[0]

    for method in methods(system):
        if method != "sequential":
            for x, y in zip(gradients(arrays, method=method), exact, strict=True):
                assert reference.error(x, y) < 1e-9, method


@pytest.mark.slow
@pytest.mark.parametrize("name", MARKED)
def test_repeatable_bit_for_bit(name):
    """Values and gradients of two runs."""
    system, u, h0 = inputs(name, cut_length(name))
    bar = cotangents(system, u, h0)
    for method in methods(system):
        first, second = (compiled_pull_back(system, u, h0, bar, method=method) for _ in range(2))
        jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("name", MARKED)
def test_other_values_are_no_second_program(name):
    length, sizes = cut_length(name), []
    for seed in range(2):
        system: System = zoo.system(name, length, seed)
        u, h0 = zoo.tokens(system, length, seed), zoo.state(system, seed)
        for method in methods(system):
            compiled_pull_back(system, u, h0, cotangents(system, u, h0), method=method)
        sizes.append(compiled_pull_back._cache_size())  # type: ignore[attr-defined]
    assert sizes[0] == sizes[1]
