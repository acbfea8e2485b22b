"""Layers of several architectures: in turn, next to each other, and what a report sees of them."""

import dataclasses

import jax
import numpy as np
import pytest

from dsfjax import aspects, engines, nn, tasks
from dsfjax.nn import ModelConfig, pattern
from dsfjax.report.examine import examine
from tests.nn.small import config, tokens
from tests.reference_loop import error

HYBRID = config("linear_attention+softmax_attention&ssd", num_layers=2)
LENGTH = 4


def test_patterns_have_one_form() -> None:
    assert pattern.canonical("ssd*2 + ssd+s6 & rg_lru") == "3xssd+s6&rg_lru"
    assert ModelConfig("ssd*1+s6+ssd+s6", vocab_size=8, num_layers=4).mixer == "ssd+s6+ssd+s6"
    made = ModelConfig("ssd*2+softmax_attention", vocab_size=8, num_layers=4)
    assert made.layers == (("ssd",), ("ssd",), ("softmax_attention",), ("ssd",))
    assert made == dataclasses.replace(made, mixer="2xssd+softmax_attention")
    assert HYBRID.num_systems == 3
    assert dataclasses.replace(HYBRID, bidirectional=True).num_systems == 6


@pytest.mark.parametrize(
    ("mixer", "own", "message"),
    [
        ("ssd+", {}, "expected a name, or a pattern"),
        *[
            (wrong, {}, r"a whole number before a layer \(3xssd\) or after it \(ssd\*3\)")
            for wrong in (
                *("ssd*0", "ssd*3*2", "ssd**2", "ssd*-1", "ssd*1.5", "ssd x 3", "3xssd*2"),
                *("-1xssd", "2x3xssd", "ssd&2xs6"),
            )
        ],
        ("ssd+sdd", {}, "unknown mixer 'sdd'; did you mean 'ssd'"),
        ("ssd*3+s6", {}, "expected num_layers >= 4, one for every layer of the pattern 3xssd.s6"),
        ("ssd+s6", {"options": (("dt_ranc", 2),)}, "no option 'dt_ranc'; did you mean 'dt_rank'"),
        ("ssd+s6", {"options": (("rg_lru.c", 2),)}, "unknown mixer of this model 'rg_lru'"),
    ],
)
def test_patterns_that_make_no_sense(mixer: str, own: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(mixer, vocab_size=8, **own)


def test_options_are_for_those_that_have_them() -> None:
    made = ModelConfig(
        "ssd+s6",
        vocab_size=8,
        options=(("dt_rank", 2), ("s6.init", "authors"), ("ssd.num_groups", 1)),
    )
    ssd, s6 = (nn.architecture(made, name) for name in ("ssd", "s6"))
    a, b = (arch.init(jax.random.key(0)) for arch in (ssd, s6))
    assert b.W_dt_down.shape[0] == 2  # type: ignore[attr-defined]
    assert not (a.A_log == 0).all()  # type: ignore[attr-defined]


def test_a_hybrid_is_its_systems_and_decodes() -> None:
    model = nn.build(HYBRID)
    params, ids = jax.jit(model.init)(jax.random.key(0)), tokens(LENGTH)

    @jax.jit
    def run(params):
        logits = model.apply(params, ids)
        systems = model.systems(params, ids)
        outputs = [engines.scan(system, u)[0] for system, u in systems]

        def step(state, token):
            logits, state = model.step(params, token, state)
            return state, logits

        _, steps = jax.lax.scan(step, model.init_state(params, LENGTH), ids)
        gradient = jax.grad(lambda p: (model.apply(p, ids) ** 2).sum())(params)
        return logits, outputs, steps, gradient, params["blocks"]

    logits, outputs, steps, gradient, blocks = run(params)
    assert error(steps, logits) < 1e-13
    assert [len(y) for y in outputs] == [LENGTH] * 3
    assert {"mixer", "mixer_1"} <= blocks["block_1"].keys()
    assert "mixer_1" not in blocks["block_0"]
    jax.tree.map(lambda g: np.testing.assert_array_less(0, np.abs(g).max()), gradient)


@pytest.mark.slow
def test_a_report_says_which_layer_it_speaks_of() -> None:
    task = tasks.get("mqar", vocab_size=16, seq_len=8, num_kv_pairs=2)
    model = nn.build(dataclasses.replace(HYBRID, vocab_size=16))
    params = jax.jit(model.init)(jax.random.key(0))
    looks = (aspects.EIGENVALUES, aspects.STATE_USE)
    found = examine(model, params, task, count=2, looks=looks)
    assert [i for i, _ in aspects.numbered(found["eigenvalues"])] == [1, 2, 3]
    alone = dataclasses.replace(HYBRID, vocab_size=16, mixer="linear_attention", num_layers=1)
    first = {**params, "blocks": {"block_0": params["blocks"]["block_0"]}}
    (expected,) = examine(nn.build(alone), first, task, count=2, looks=looks)["eigenvalues"]
    np.testing.assert_allclose(found["eigenvalues"][0].moduli, expected.moduli)
    # Softmax attention has no states of which some could be unused.
    assert 2 not in [i for i, _ in aspects.numbered(found["state_use"])] or (
        found["state_use"][1].use is None
    )
