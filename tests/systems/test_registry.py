"""Architectures by name: what is known, what is refused, and how users add their own."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

from dsfjax import systems
from dsfjax.systems import registry
from dsfjax.systems.architecture import with_value_map
from dsfjax.systems.contract import check
from dsfjax.systems.ssd import ssd
from dsfjax.training.presets import PAPER_MIXERS
from tests.architectures import CARRY_MORE
from tests.checks import unchecked

PAPER = systems.names()[:8]


def test_names_begin_with_those_of_the_paper() -> None:
    assert PAPER == (
        "softmax_attention",
        "linear_attention",
        "normalized_attention",
        "s6",
        "ssd",
        "qlstm",
        "qlstm_reversed",
        "rg_lru",
    )
    assert PAPER == PAPER_MIXERS


def test_names_beyond_the_paper() -> None:
    known = (
        "sliding_window_attention forgetting_attention lru s4 s4d s5 lstm gru slstm min_gru "
        "min_lstm mamba3 retnet lightning gla hgrn2 gsa mlstm rwkv4 rwkv6 rwkv7 deltanet "
        "gated_deltanet deltaproduct kda gdn2 comba momentum_delta mesa_net based rebased performer"
    )
    assert systems.names()[8:] == tuple(known.split())


@pytest.mark.parametrize("name", systems.names()[8:])
def test_functions_fit_together(name: str) -> None:
    """Built-in ones are not checked when they are made, so here."""
    check(name, systems.get(name, d_model=64), 64)
    assert isinstance(systems.PRACTICE[name], systems.Surrounding)


@pytest.mark.parametrize("name", PAPER)
def test_options_are_the_keywords_of_the_builder(name: str) -> None:
    words = systems.options(name)
    assert words[0] == "d_model" and "init" in words
    assert ("num_heads" in words) == (name not in ("s6", "qlstm", "qlstm_reversed"))
    assert ("d_state" in words) == (name not in ("qlstm", "qlstm_reversed", "rg_lru"))


def test_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'linear_atention'; did you mean 'linear_attention'\?"):
        systems.get("linear_atention", d_model=4)
    with pytest.raises(ValueError, match="did you mean 'rg_lru'"):
        systems.options("rglru")


@pytest.mark.parametrize(
    ("name", "word"), [("qlstm", "d_state"), ("rg_lru", "d_state"), ("s6", "num_heads")]
)
def test_state_and_heads_are_refused_where_there_are_none(name: str, word: str) -> None:
    with pytest.raises(TypeError, match=f"{name} has no option '{word}'.* Known: d_model"):
        systems.get(name, d_model=8, **{word: 2})


def test_misspelt_option_gives_the_nearest() -> None:
    with pytest.raises(TypeError, match="no option 'num_head'; did you mean 'num_heads'"):
        systems.get("ssd", d_model=8, num_head=2)


@pytest.mark.parametrize(
    "name", [name for name in systems.names() if "num_heads" in systems.options(name)]
)
def test_heads_must_divide(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}: d_(model|inner) = 12 .* 5; .* it is 4\."):
        systems.get(name, d_model=12, num_heads=5)


def test_groups_must_divide_the_heads() -> None:
    with pytest.raises(ValueError, match="num_heads = 4 is not divisible by 3"):
        systems.get("ssd", d_model=8, num_heads=4, num_groups=3)


@pytest.mark.parametrize("name", ["softmax_attention", "forgetting_attention"])
def test_rotation_needs_pairs_and_a_base(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}: expected an even d_state .* got d_state = 3"):
        systems.get(name, d_model=8, d_state=3, rope_base=10_000.0)
    with pytest.raises(ValueError, match=rf"{name}: expected rope_base > 0, got -1"):
        systems.get(name, d_model=8, d_state=4, rope_base=-1.0)
    with pytest.raises(ValueError, match="num_heads = 4 is not divisible by 3"):
        systems.get(name, d_model=8, d_state=4, num_heads=4, num_groups=3)


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("kda", {"lower_bound": -5}),
        ("hgrn2", {"lower_bound": 0}),
        ("lru", {"r_min": 0, "r_max": 1}),
        ("sliding_window_attention", {"keep_first": 0}),
        ("performer", {"features_seed": 0}),
        ("s6", {"scalar": False}),
    ],
)
def test_only_sizes_have_to_be_positive(name: str, own: dict[str, Any]) -> None:
    with unchecked():
        assert systems.get(name, d_model=8, **own).init(jax.random.key(0))


@pytest.mark.parametrize(
    ("name", "own", "message"),
    [
        ("ssd", {"d_model": 0}, "ssd: expected d_model >= 1, got 0"),
        ("ssd", {"d_state": -1}, "ssd: expected d_state >= 1, got -1"),
        ("ssd", {"d_inner": 0}, "ssd: expected d_inner >= 1, got 0"),
        ("sliding_window_attention", {"window": 0}, "expected window >= 1, got 0"),
        ("lru", {"max_phase": -1.0}, "lru: expected max_phase > 0, in radians, got -1.0"),
        ("lru", {"max_phase": 0.0}, "lru: expected max_phase > 0"),
        ("lru", {"r_min": 0.9, "r_max": 0.5}, "got r_min = 0.9 and r_max = 0.5"),
        ("lru", {"r_max": 1.5}, "lru: expected 0 <= r_min <= r_max <= 1"),
        ("lru", {"r_min": -0.1}, "lru: expected 0 <= r_min <= r_max <= 1"),
        ("mlstm", {"soft_cap": 0.0}, "mlstm: expected soft_cap above 0, got 0.0"),
        ("mlstm", {"soft_cap": -15.0}, "mlstm: expected soft_cap above 0, got -15.0"),
    ],
)
def test_numbers_out_of_range(name: str, own: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        systems.get(name, **{"d_model": 8, **own})


def test_first_steps_that_are_kept_are_not_negative() -> None:
    arch = systems.get("sliding_window_attention", d_model=8, keep_first=-1)
    with pytest.raises(ValueError, match="expected keep_first of at least 0 steps, got -1"):
        jax.eval_shape(lambda: arch.system(arch.init(jax.random.key(0)), jnp.ones((3, 8))))


def test_unknown_choices_are_named() -> None:
    with (
        unchecked(),
        pytest.raises(ValueError, match="normalizer .*'softplsu'; did you mean 'softplus'"),
    ):
        systems.get("normalized_attention", d_model=8, normalizer="softplsu")
    with unchecked(), pytest.raises(ValueError, match="feature_map .*'elu'; did you mean 'elu1'"):
        systems.get("normalized_attention", d_model=8, feature_map="elu")
    with unchecked(), pytest.raises(ValueError, match="init 'author'; did you mean 'authors'"):
        systems.get("qlstm", d_model=8, init="author").init(jax.random.key(0))


def test_value_bias_cannot_enter_a_value_map() -> None:
    arch = systems.get("linear_attention", d_model=8, d_state=2, bias=True)
    params = arch.init(jax.random.key(0))
    with pytest.raises(
        ValueError, match=r"values that are linear.*Run assemble\(params, signals\) on values"
    ):
        arch.system(params, jnp.ones((3, 8)))


def test_register(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    def fast_ssd(*, d_model: int, rate: float = 2.0) -> systems.Architecture:
        arch = ssd(d_model=d_model, d_state=2)
        return arch._replace(
            init=lambda key: arch.init(key)._replace(A_log=jnp.full(1, jnp.log(rate)))
        )

    systems.register("fast_ssd", fast_ssd)
    assert systems.names()[-1] == "fast_ssd"
    assert systems.options("fast_ssd") == ("d_model", "rate")
    params = systems.get("fast_ssd", d_model=4, rate=3.0).init(jax.random.key(0))
    assert float(jnp.exp(params.A_log[0])) == pytest.approx(3)
    systems.register("fast_ssd", fast_ssd)  # as when a notebook's cell runs twice
    with pytest.raises(ValueError, match=r"'fast_ssd' is taken by .*\.fast_ssd; use another name"):
        systems.register("fast_ssd", ssd)


WRONG = {
    "an Architecture, got int": lambda arch: 3,
    "init to return a NamedTuple, got list": lambda arch: arch._replace(init=lambda key: []),
    r"a NamedTuple with a field v, the values, got \('x',\)": lambda arch: arch._replace(
        signals=lambda params, u: NamedTuple("Signals", [("x", jax.Array)])(u)
    ),
    "assemble to return a System or a KernelSystem, got Signals": lambda arch: arch._replace(
        assemble=lambda params, signals, reset: signals
    ),
    r"reset=None\), with the starts of documents, got one for which got an unexpected keyword": (
        lambda arch: arch._replace(assemble=lambda params, signals: arch.assemble(params, signals))
    ),
    "assemble to pass reset on to the System": lambda arch: arch._replace(
        assemble=lambda params, signals, reset: arch.assemble(params, signals)
    ),
    r"without W, got W of shape \(64, 64\)\. Return W from value_map": lambda arch: arch._replace(
        assemble=lambda params, signals, reset: with_value_map(
            arch.assemble(params, signals, reset=reset), arch.value_map(params)
        )
    ),
    "the 65 values of a step .* one that reads 64": lambda arch: arch._replace(
        signals=lambda params, u: arch.signals(params, u)._replace(v=jnp.zeros((len(u), 65)))
    ),
    r"value_map to return W of shape \(64, 64\), so that v = W u, got \(64, 3\)": (
        lambda arch: arch._replace(value_map=lambda params: jnp.zeros((64, 3)))
    ),
    "labels of the structure of params": lambda arch: arch._replace(labels=lambda params: "decay"),
}


@pytest.mark.parametrize("message", WRONG)
def test_functions_that_do_not_fit_are_refused(message: str) -> None:
    with unchecked(), pytest.raises((TypeError, ValueError), match=f"'mine': expected .*{message}"):
        systems.register("mine", lambda *, d_model: WRONG[message](ssd(d_model=d_model)))
    assert "mine" not in systems.names()


def test_options_without_a_default_are_checked_when_they_are_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    def narrow(*, d_model: int, width: int) -> systems.Architecture:
        arch = ssd(d_model=d_model, d_inner=width)
        return arch._replace(value_map=lambda params: None)

    systems.register("narrow", narrow)
    with pytest.raises(ValueError, match=r"value_map to return W of shape \(4, 8\), .* got None"):
        systems.get("narrow", d_model=8, width=4)
    with pytest.raises(TypeError, match="a function with a keyword d_model"):
        systems.register("none", lambda width: ssd(d_model=width))


def test_registration_of_another_test_is_gone() -> None:
    assert "fast_ssd" not in systems.names()


def test_which_carry_more_than_the_state_or_read_it() -> None:
    made = {name: systems.get(name, d_model=64) for name in systems.names()}
    found = [name for name, x in made.items() if x.past is not None or x.reads_state]
    assert sorted(found) == sorted(CARRY_MORE)
