"""Prefill, step and generate against the full pass; documents packed against documents apart."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import systems
from dsfjax.analysis import state_size
from dsfjax.core import KVCache
from tests.nn.small import VOCAB, compiled, tokens
from tests.reference_loop import error
from tests.unchecked import unchecked

LENGTH = 9
SMALL = {"max_length": 20, "num_layers": 1, "block": "mamba"}
MODELS = [(name, SMALL) for name in systems.names()] + [
    ("s6", {"surroundings": "practice", "block": "mamba", "norm": "rms", "num_layers": 1}),
    ("ssd", {"surroundings": "practice", "head": "untied"}),
    ("linear_attention", {"surroundings": "practice", "block": "transformer"}),
]
IDS = [f"{name}-{own.get('surroundings', 'paper')}" for name, own in MODELS]
every = pytest.mark.parametrize(("name", "own"), MODELS, ids=IDS)
# Those of whom another of the same kind is among the quick ones.
SIMILAR = ("s6-paper", "ssd-paper", "linear_attention-paper", "qlstm_reversed-paper")


@pytest.mark.parametrize(
    ("name", "own"),
    [
        pytest.param(*pair, id=name, marks=pytest.mark.slow if name in SIMILAR else ())
        for name, pair in zip(IDS, MODELS, strict=True)
    ],
)
def test_prefill_and_steps_are_the_full_pass(name: str, own: dict[str, Any]) -> None:
    model, params, apply, _, _ = compiled(name, **own)
    ids = tokens(LENGTH)

    @jax.jit
    def decode(params: Any, ids: Any) -> Any:
        first, state = model.prefill(params, ids[:2], model.init_state(params, LENGTH))
        second, state = model.prefill(params, ids[2:5], state)

        def advance(state: Any, token: Any) -> Any:
            logits, state = model.step(params, token, state)
            return state, logits

        state, rest = jax.lax.scan(advance, state, ids[5:])
        return jnp.concatenate([first, second, rest]), state.position

    logits, position = decode(params, ids)
    assert logits.shape == (LENGTH, VOCAB)
    assert error(logits, apply(params, ids)) < 1e-12
    assert position == LENGTH


@every
def test_state_of_decoding_does_not_grow(name: str, own: dict[str, Any]) -> None:
    model, params, *_ = compiled(name, **own)
    before = jax.eval_shape(lambda p: model.init_state(p, 50), params)
    _, after = jax.eval_shape(model.step, params, jnp.asarray(1), before)
    assert after == before
    carried = [layer.h for layer in before.layers]
    numbers = sum(
        x.k.size + x.v.size if isinstance(x, KVCache) else int(np.prod(x.shape)) for x in carried
    )
    # A summed normaliser is carried too, but it is not a state of the system.
    extra = len(carried) * 2 * 3 if name == "linear_attention" else 0
    assert numbers == state_size(model, 50) + extra


@pytest.mark.parametrize("name", ["softmax_attention", "ssd", "rg_lru"])
def test_generated_tokens_are_the_likeliest_of_the_full_pass(name: str) -> None:
    model, params, apply, *_ = compiled(name, **SMALL)
    prompt = tokens(4)
    generated = jax.jit(model.generate, static_argnums=2)(params, prompt, 5)
    text = jnp.concatenate([prompt, generated])
    logits = np.asarray(apply(params, text))
    assert generated.dtype == prompt.dtype
    assert generated.tolist() == logits[3:-1].argmax(axis=-1).tolist()


def test_sampling_follows_the_temperature() -> None:
    model, params, apply, *_ = compiled("linear_attention", **SMALL)
    prompt = tokens(4)

    @jax.jit
    def draw(keys: Any) -> Any:
        return jax.vmap(lambda k: model.generate(params, prompt, 1, key=k, temperature=0.7))(keys)

    drawn = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))[:, 0]
    expected = np.asarray(jax.nn.softmax(apply(params, prompt)[-1] / 0.7))
    counts = np.bincount(drawn, minlength=VOCAB)
    deviation = (counts - 4000 * expected) / np.sqrt(4000 * expected * (1 - expected))
    assert np.abs(deviation).max() < 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_tokens": 0}, "at least one token of prompt and one to generate, got 4 and 0"),
        ({"num_tokens": 17}, "20 learned positions.*prompt of 4 tokens and 17"),
        ({"num_tokens": 2, "temperature": 1.0}, "temperature 0, or above 0 and a key"),
        ({"num_tokens": 2, "temperature": -1.0}, "temperature 0, or above 0 and a key"),
    ],
)
def test_generation_that_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    model, params, *_ = compiled("linear_attention", **SMALL)
    with pytest.raises(ValueError, match=message):
        model.generate(params, tokens(4), **arguments)


@every
def test_packed_documents_are_documents_apart(name: str, own: dict[str, Any]) -> None:
    model, params, *_ = compiled(name, **own)
    ids = tokens(11)
    # One compiled function at one length: the second document is moved to the front and cut off.
    apply = jax.jit(lambda p, ids, reset: model.apply(p, ids, reset=reset))
    packed = apply(params, ids, (jnp.arange(11) == 0) | (jnp.arange(11) == 4))
    alone = jnp.arange(11) == 0
    first, second = apply(params, ids, alone), apply(params, jnp.roll(ids, -4), alone)
    assert error(packed[:4], first[:4]) < 1e-12
    assert error(packed[4:], second[:7]) < 1e-12
    assert error(packed[4:], first[4:]) > 1e-3


def test_reset_of_the_first_token_alone_changes_only_the_scaled_input() -> None:
    for name in ("softmax_attention", "ssd"):
        model, params, apply, *_ = compiled(name, **SMALL)
        reset = jnp.arange(LENGTH) == 0
        marked = jax.jit(lambda p, i, m=model, r=reset: m.apply(p, i, reset=r))(params, tokens(9))
        assert error(marked, apply(params, tokens(9))) < 1e-13


def test_positions_beyond_the_learned_ones_show() -> None:
    model, params, _, prefill, _ = compiled("linear_attention", **SMALL)
    with pytest.raises(ValueError, match="20 learned positions .* sequence of 21 tokens"):
        model.apply(params, tokens(21))
    state = model.init_state(params, 30)
    _, state = prefill(params, tokens(15), state)
    logits, _ = prefill(params, tokens(15), state)
    assert np.isnan(logits[5:]).all()


def test_batches_come_from_vmap() -> None:
    model, params, apply, *_ = compiled("ssd", **SMALL)
    with (
        unchecked(),
        pytest.raises(ValueError, match=r"one sequence of token ids \(L,\), got \(2, 9\)"),
    ):
        model.features(params, jnp.zeros((2, 9), int))
    ids = jnp.stack([tokens(LENGTH, seed) for seed in range(3)])
    batch = jax.vmap(apply, (None, 0))(params, ids)
    assert error(batch, jnp.stack([apply(params, x) for x in ids])) < 1e-13


def test_generate_is_compiled_once() -> None:
    """Other parameters, prompts, keys and temperatures run the same program."""
    model, params, *_ = compiled("ssd", **SMALL)
    prompt, other_prompt = tokens(4), tokens(4) + 1
    programs = []
    model.generate(params, prompt, 3, key=jax.random.key(1), temperature=0.5)

    def heard(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if "backend_compile" in event:
            programs.append(event)

    other = jax.tree.map(lambda x: x + 1, params)
    key = jax.random.key(2)
    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        model.generate(other, other_prompt, 3, key=key, temperature=0.7)
        assert not programs
        model.generate(params, prompt, 4, key=key, temperature=0.7)
        assert programs  # another length is another program: the listener hears it
    finally:
        jax.monitoring.clear_event_listeners()
