"""Prefill, step and generate against the full pass; documents packed against documents apart."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import systems
from dsfjax.analysis import state_size
from dsfjax.core import KVCache
from tests.architectures import PAPER
from tests.checks import unchecked
from tests.nn.small import VOCAB, compiled, tokens
from tests.reference_loop import error

LENGTH = 9
SMALL = {"max_length": 20, "num_layers": 1, "block": "mamba"}
MODELS = [(name, SMALL) for name in systems.names()] + [
    ("s6", {"surroundings": "practice", "block": "mamba", "norm": "rms", "num_layers": 1}),
    ("ssd", {"surroundings": "practice", "head": "untied"}),
    ("linear_attention", {"surroundings": "practice", "block": "transformer"}),
    # Signals and gate read the token before.
    ("rwkv7", {"surroundings": "practice", "num_layers": 1}),
    # No learned positions: those of the tokens turn queries and keys.
    (
        "softmax_attention",
        {
            "surroundings": "practice",
            "d_state": 4,
            "options": (("num_groups", 1), ("qk_norm", True), ("rope_base", 50.0)),
        },
    ),
]
IDS = [f"{name}-{own.get('surroundings', 'paper')}" for name, own in MODELS]
# Those of whom another of the same kind is among the quick ones.
SIMILAR = ("s6-paper", "ssd-paper", "linear_attention-paper", "qlstm_reversed-paper")


def slow_if(slow: Callable[[str, str], bool]) -> Any:
    """All models, slow where a predicate of architecture and id says so."""
    return pytest.mark.parametrize(
        ("name", "own"),
        [
            pytest.param(*pair, id=id, marks=pytest.mark.slow if slow(pair[0], id) else ())
            for id, pair in zip(IDS, MODELS, strict=True)
        ],
    )


every = slow_if(lambda name, _: name not in PAPER)
kinds = slow_if(lambda name, id: name not in PAPER or id in SIMILAR)


@kinds
def test_prefill_and_steps_are_the_full_pass(name: str, own: dict[str, Any]) -> None:
    """Of a whole sequence, and of one that is padded on the left, by any start in one program."""
    model, params, apply, _, _ = compiled(name, **own)
    ids = tokens(LENGTH)

    @jax.jit
    def decode(params: Any, ids: Any, start: Any) -> Any:
        state = model.init_state(params, LENGTH)
        first, state = model.prefill(params, ids[:2], state, start=start)
        second, state = model.prefill(params, ids[2:5], state, start=start - 2)

        def advance(state: Any, token: Any) -> Any:
            logits, state = model.step(params, token, state)
            return state, logits

        state, rest = jax.lax.scan(advance, state, ids[5:])
        return jnp.concatenate([first, second, rest]), state.position

    logits, position = decode(params, ids, -1)  # no token: nothing starts anew
    assert logits.shape == (LENGTH, VOCAB)
    assert error(logits, apply(params, ids)) < 1e-12
    assert position == LENGTH
    for start in (1, 4):  # in the first piece, and in the second after one of padding alone
        # Whatever the padding is, ids that are none included, which embed as NaN.
        padded, position = decode(params, ids.at[:start].set(-1), start)
        own_ids = jnp.roll(ids, -start)
        expected = decode(params, own_ids, 0)[0][: LENGTH - start]
        assert error(padded[start:], expected) < 1e-12
        assert error(logits[start:], expected) > 1e-3
        assert position == LENGTH - start


@every
def test_state_of_decoding_does_not_grow(name: str, own: dict[str, Any]) -> None:
    model, params, *_ = compiled(name, **own)
    before = jax.eval_shape(lambda p: model.init_state(p, 50), params)
    _, after = jax.eval_shape(model.step, params, jnp.asarray(1), before)
    assert after == before
    carried = [layer.h for layer in before.layers]
    numbers = sum(
        sum(y.size for y in (x.k, x.v, x.log_weight) if y is not None)
        if isinstance(x, KVCache)
        else int(np.prod(x.shape))
        for x in carried
    )
    # A summed normaliser is carried too, but it is not a state of the system.
    summed = name in ("linear_attention", "mlstm", "rwkv4", "based", "rebased", "performer")
    extra = sum(math.prod(h.shape[:2]) for h in carried) if summed else 0
    past = jax.tree.leaves([layer.past for layer in before.layers])
    numbers += sum(x.size for x in past if jnp.issubdtype(x.dtype, jnp.inexact))
    assert numbers == state_size(model, 50) + extra


@pytest.mark.parametrize("name", ["softmax_attention", "ssd", "rg_lru"])
def test_generated_tokens_are_the_likeliest_of_the_full_pass(name: str) -> None:
    model, params, *_ = compiled(name, **SMALL)
    starts = jnp.array([0, 1, 3])
    prompts = jnp.stack([tokens(4, seed) for seed in range(3)])
    generate = jax.jit(jax.vmap(lambda p, start: model.generate(params, p, 5, start=start)))
    apply = jax.jit(lambda ids: model.apply(params, ids, reset=jnp.arange(9) == 0))
    for start, prompt, generated in zip(starts, prompts, generate(prompts, starts), strict=True):
        assert generated.dtype == prompt.dtype
        text = jnp.zeros(9, prompt.dtype).at[: 9 - start].set([*prompt[start:], *generated])
        likeliest = np.asarray(apply(text)).argmax(axis=-1)
        assert generated.tolist() == likeliest[3 - start : 8 - start].tolist()


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
        ({"num_tokens": 0}, "at least one token to generate, got 0"),
        ({"num_tokens": 17}, "20 learned positions.*prompt of 4 tokens and 17"),
        ({"temperature": 1.0}, r"a key .* a temperature needs that is 1\.0, got none"),
        ({"temperature": -1.0}, r"a finite temperature >= 0, got -1\.0"),
        ({"temperature": float("nan"), "key": jax.random.key(0)}, "temperature >= 0, got nan"),
        ({"temperature": np.ones(2)}, r"one temperature, got shape \(2,\); .* jax.vmap"),
        ({"temperature": "hot"}, "temperature to be a number, got 'hot'"),
        ({"start": 4}, "start to be one of the 4 tokens of the prompt, got 4"),
        ({"start": -1}, "start to be one of the 4 tokens of the prompt, got -1"),
        ({"start": np.array([0, 1])}, "start to be one integer, .* jax.vmap"),
        ({"prompt": []}, "generate: expected at least one token, got none"),
        ({"prompt": 3}, r"one sequence of token ids \(L,\), got shape \(\); put it into a list"),
        ({"prompt": [[1, 2]]}, r"token ids \(L,\), got shape \(1, 2\); .* jax.vmap"),
        ({"prompt": [1, 11]}, r"token ids in \[0, 11\), got 11"),
        ({"prompt": [-1, 2]}, r"token ids in \[0, 11\), got -1"),
        ({"prompt": [1.0, 2.0]}, "token ids of an integer dtype, got float64"),
        ({"prompt": "text"}, "expected token ids, got text; encode it first"),
        ({"prompt": [True, False]}, "token ids of an integer dtype, got bool"),
    ],
)
def test_generation_that_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    model, params, *_ = compiled("linear_attention", **SMALL)
    given = {"prompt": tokens(4), "num_tokens": 2, **arguments}
    with unchecked(), pytest.raises((ValueError, TypeError), match=message):
        model.generate(params, **given)


def test_ids_are_refused_where_they_are_known_and_show_where_not() -> None:
    model, params, apply, *_ = compiled("linear_attention", **SMALL)
    for ids in ([1, 11], [-1, 2]):
        with pytest.raises(
            ValueError, match=r"model: expected token ids in \[0, 11\), got (11|-1)"
        ):
            model.features(params, jnp.array(ids))
    with unchecked(), pytest.raises(TypeError, match="integer dtype, got float64"):
        model.features(params, jnp.ones(3))
    ids = tokens(LENGTH)
    for wrong in (-1, VOCAB):
        logits = np.asarray(apply(params, ids.at[4].set(wrong)))
        assert np.isfinite(logits[:4]).all() and np.isnan(logits[4:]).all()


def test_narrow_ids_are_widened() -> None:
    """A uint8 that is fed back would be the id modulo 256."""
    model, params, *_ = compiled("linear_attention", vocab_size=300, **SMALL)
    # The last ids are the likeliest.
    params = {**params, "embed": {"embedding": params["embed"]["embedding"].at[:256].mul(0.01)}}
    wide = model.generate(params, jnp.array([3, 200], jnp.int32), 4)
    assert wide.max() > 255
    for prompt in ([3, 200], np.array([3, 200]), jnp.array([3, 200], jnp.uint8)):
        assert model.generate(params, prompt, 4).tolist() == wide.tolist()
    assert model.generate(params, jnp.array([3, 200], jnp.uint8), 4).dtype == jnp.int32


def test_temperature_may_be_traced() -> None:
    model, params, *_ = compiled("linear_attention", **SMALL)
    prompt, key = tokens(4), jax.random.key(1)

    def draw(temperature: Any) -> Any:
        return model.generate(params, prompt, 3, key=key, temperature=temperature)

    heats = jnp.array([0.0, 0.5, 5.0])
    batch = jax.jit(jax.vmap(draw))(heats)
    # A number, and 0-dimensional arrays of NumPy and JAX, are the same temperature.
    alone = [draw(0.0), draw(np.float32(0.5)), draw(jnp.asarray(5.0))]
    assert batch.tolist() == jnp.stack(alone).tolist()
    assert len({*map(tuple, batch.tolist())}) > 1
    with pytest.raises(ValueError, match="a temperature needs that is traced, got none"):
        jax.vmap(lambda t: model.generate(params, prompt, 3, temperature=t))(heats)


def test_generate_computes_the_logits_of_one_position() -> None:
    """Of a long prompt and many ids, those of all would take hundreds of megabytes."""
    model, params, *_ = compiled("linear_attention", **(SMALL | {"max_length": 0}))
    made = str(jax.make_jaxpr(model.generate, static_argnums=2)(params, tokens(64), 2))
    assert f"f64[{VOCAB}]" in made and f"[64,{VOCAB}]" not in made


def test_classifier_pools_what_is_not_padding() -> None:
    for pooling in ("mean", "last"):
        own = SMALL | {"head": "classifier", "num_classes": 3, "pooling": pooling}
        model, params, *_ = compiled("linear_attention", **own)
        run = jax.jit(lambda i, s, m=model, p=params: m.prefill(p, i, m.init_state(p, 4), start=s))
        ids = tokens(4)
        expected = model.apply(params, ids[2:])
        assert error(run(ids, 2)[0], expected) < 1e-12


@kinds
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
        pytest.raises(ValueError, match=r"one sequence of token ids \(L,\), got shape \(2, 9\)"),
    ):
        model.features(params, jnp.zeros((2, 9), int))
    ids = jnp.stack([tokens(LENGTH, seed) for seed in range(3)])
    batch = jax.vmap(apply, (None, 0))(params, ids)
    assert error(batch, jnp.stack([apply(params, x) for x in ids])) < 1e-13


def test_generate_is_compiled_once() -> None:
    """Other parameters, prompts, keys and temperatures run the same program."""
    model, params, *_ = compiled("ssd", **SMALL)
    prompt, other_prompt = tokens(4), (tokens(4) + 1) % VOCAB
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
