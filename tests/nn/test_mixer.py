"""A mixer: its surroundings by the formula, and its one-step form against the sequence."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dsfjax import nn, scan, systems
from dsfjax.core import KVCache
from dsfjax.engines import Shards
from dsfjax.nn.surroundings import PRACTICE, surround, surrounding
from tests.architectures import PAPER
from tests.nn.small import config
from tests.reference_loop import error
from tests.systems_zoo import slow_unless

LENGTH, D = 7, 8
SLOW = pytest.mark.slow
KINDS = [(name, "paper") for name in systems.names()] + [
    (name, "practice")
    for name in systems.names()
    if surrounding(name, "practice") != surrounding(name, "paper")
]
of_the_paper = pytest.mark.parametrize(("name", "kind"), [x for x in KINDS if x[0] in PAPER])


def build(name: str, kind: str = "paper", **own: Any) -> nn.Mixer:
    around = surrounding(name, kind)
    arch = nn.architecture(config(name, surroundings=kind))
    return nn.Mixer(arch, D, around, rngs=nnx.Rngs(0), **own)


def tokens(length: int = LENGTH) -> Any:
    return jax.random.normal(jax.random.key(4), (length, D))


# Where practice has a convolution, that is the harder case.
harder = pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(
            *(n, k),
            marks=SLOW if k == "paper" and (n, "practice") in KINDS or n not in PAPER else (),
        )
        for n, k in KINDS
    ],
)


@harder
def test_steps_are_the_sequence(name: str, kind: str) -> None:
    mixer, x = build(name, kind), tokens()
    graph, weights = nnx.split(mixer)

    @jax.jit
    def both(weights: Any, x: Any) -> Any:
        mixer = nnx.merge(graph, weights)
        state = mixer.init_state(LENGTH)

        def advance(state: Any, x: Any) -> Any:
            y, state = mixer.step(x, state)
            return state, y

        state, steps = jax.lax.scan(advance, state, x)
        return mixer(x), steps, state

    (whole, last), steps, state = both(weights, x)
    assert error(steps, whole) < 1e-12
    if last.conv is None:
        assert state.conv is None
    else:
        assert error(state.conv, last.conv) < 1e-13
    h, h_steps = (s.k if isinstance(s, KVCache) else s for s in (last.h, state.h))
    assert error(h_steps, h) < 1e-12


@harder
def test_system_of_a_mixer_is_what_it_runs(name: str, kind: str) -> None:
    mixer, x = build(name, kind), tokens()
    graph, weights = nnx.split(mixer)

    @jax.jit
    def both(weights: Any, x: Any) -> Any:
        mixer = nnx.merge(graph, weights)
        system, u = mixer.system(x)
        return mixer._output(mixer._read(x, None, None).gated, scan(system, u)[0]), mixer(x)[0]

    outside, inside = both(weights, x)
    assert error(outside, inside) < 1e-13


GROUPED = ("kda", "gdn2", "comba", "deltaproduct", "momentum_delta", "gsa")


@pytest.mark.parametrize("name", slow_unless(("gdn2",), GROUPED))
def test_heads_that_share_queries_and_keys(name: str) -> None:
    """Step by step, and in a document after another."""
    arch = systems.get(name, d_model=D, d_state=3, num_heads=4, num_groups=2)
    mixer, x = nn.Mixer(arch, D, surrounding(name, "practice"), rngs=nnx.Rngs(0)), tokens()
    graph, weights = nnx.split(mixer)

    @jax.jit
    def ways(weights: Any, x: Any) -> Any:
        mixer = nnx.merge(graph, weights)

        def advance(state: Any, x: Any) -> Any:
            y, state = mixer.step(x, state)
            return state, y

        steps = jax.lax.scan(advance, mixer.init_state(LENGTH), x)[1]
        return mixer(x)[0], steps, mixer(jnp.roll(x, 2, 0), reset=jnp.arange(LENGTH) == 2)[0]

    whole, steps, packed = ways(weights, x)
    assert error(steps, whole) < 1e-12
    assert error(packed[2:], whole[:-2]) < 1e-12


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def mamba_2_by_hand(mixer: nn.Mixer, x: np.ndarray) -> np.ndarray:
    """W_out RMSNorm(silu(W_z x) ⊙ SSD(silu(conv [v, b, c]), Δ)) with plain NumPy loops."""
    p = {k: np.asarray(v[...]) for k, v in mixer.core.items()}
    heads, channels, _ = p["W_v"].shape
    maps = [p[k].reshape(-1, D) for k in ("W_v", "W_b", "W_c")]
    flat = np.concatenate([x @ W.T for W in maps], axis=1)
    kernel, bias = np.asarray(mixer.conv.kernel[...]), np.asarray(mixer.conv.bias[...])
    padded = np.concatenate([np.zeros((3, flat.shape[1])), flat])
    flat = silu(np.stack([bias + (kernel * padded[t : t + 4]).sum(axis=0) for t in range(len(x))]))
    v, b, c = np.split(flat, np.cumsum([len(W) for W in maps])[:-1], axis=1)
    v, h = v.reshape(-1, heads, channels), np.zeros((heads, b.shape[1], channels))
    y = np.zeros((len(x), heads * channels))
    for t in range(len(x)):
        delta = np.log1p(np.exp(p["W_dt"] @ x[t] + p["bias_dt"]))
        for i in range(heads):
            decay = np.exp(-delta[i] * np.exp(p["A_log"][i]))
            h[i] = decay * h[i] + np.outer(b[t], delta[i] * v[t, i])
        y[t] = (np.einsum("n,hnp->hp", c[t], h) + p["D"][:, None] * v[t]).reshape(-1)
    y *= silu(x @ np.asarray(mixer.gate.kernel[...]))
    y /= np.sqrt((y**2).mean(axis=1, keepdims=True) + 1e-5)
    return y @ np.asarray(mixer.project_out.kernel[...])


def test_mamba_2_by_hand() -> None:
    mixer, x = build("ssd", "practice"), tokens()
    assert error(jax.jit(lambda x: mixer(x)[0])(x), mamba_2_by_hand(mixer, np.asarray(x))) < 1e-12


def test_bare_mixer_is_the_architecture_and_a_map() -> None:
    mixer, x = build("linear_attention"), tokens()
    y, _ = jax.jit(lambda x: scan(mixer.arch.system(mixer.parameters(), x), x))(x)
    W = mixer.project_out.kernel[...]
    assert error(jax.jit(lambda x: mixer(x)[0])(x), y @ W) < 1e-13
    assert not hasattr(mixer, "gate") and not hasattr(mixer, "project_in")


@of_the_paper
def test_surroundings_are_those_of_the_models_in_use(name: str, kind: str) -> None:
    around = surrounding(name, kind)
    recurrent = name in ("qlstm", "qlstm_reversed", "rg_lru")
    assert bool(around.conv_width) == (recurrent or kind == "practice")
    assert bool(around.gate) == (recurrent or (kind == "practice" and name in ("s6", "ssd")))
    mixer = build(name, kind)
    assert mixer.core.keys() >= {f for f in mixer.params_type._fields if f.startswith("W_")}


@pytest.mark.parametrize(
    ("around", "message"),
    [
        (nn.Surrounding(gate="sillu"), "gate 'sillu'; did you mean 'silu'"),
        (nn.Surrounding(conv_width=4, conv_activation="relu"), "conv_activation 'relu'"),
        (
            nn.Surrounding(conv_width=4, conv_on=("deltas",)),
            "conv_on 'deltas'; did you mean 'delta'",
        ),
        (nn.Surrounding(whole_norm="rsm"), "whole_norm 'rsm'; did you mean 'rms'"),
        (nn.Surrounding(output_activation="sill"), "output_activation 'sill'"),
        (nn.Surrounding(gate="silu", gate_rank="roots"), "gate_rank 'roots'; did you mean 'root'"),
        (nn.Surrounding(gate="silu", gate_inside=True), "a gate of low rank where its activation"),
        (nn.Surrounding(token_shift=("gate",)), "expected a gate and no map into the recurrence"),
    ],
)
def test_unknown_parts_are_named(around: nn.Surrounding, message: str) -> None:
    arch = systems.get("ssd", d_model=D, d_state=3)
    with pytest.raises(ValueError, match=message):
        nn.Mixer(arch, D, around, rngs=nnx.Rngs(0))


def test_state_before_the_first_token_is_empty() -> None:
    state = build("ssd", "practice").init_state(100)
    assert state.conv is not None and state.conv.shape == (3, 2 * D + 6)
    assert isinstance(state.h, jax.Array) and state.h.shape == (2, 3, 8)
    assert all((x == 0).all() for x in jax.tree.leaves(state))
    cache = build("softmax_attention").init_state(100).h
    assert isinstance(cache, KVCache) and cache.k.shape == (100, 2, 3)
    assert cache.v.shape == (100, 2, 4) and cache.length == 0


ATTENTION = ("softmax_attention", "linear_attention", "normalized_attention")


@pytest.mark.parametrize("name", slow_unless(ATTENTION[:2], ATTENTION))
def test_dropout_on_the_attention_matrix(name: str) -> None:
    mixer, x = build(name, attention_dropout=0.3), tokens()
    plain = build(name)
    run = jax.jit(lambda x, key: mixer(x, key=key)[0])
    exact = jax.jit(lambda x: plain(x)[0])(x)
    assert error(jax.jit(lambda x: mixer(x)[0])(x), exact) < 1e-14
    one = run(x, jax.random.key(0))
    assert error(one, exact) > 0.05
    # The output is linear in the matrix, so the mean over masks is the output without dropout.
    many = jax.vmap(run, (None, 0))(x, jax.random.split(jax.random.key(1), 4000))
    spread = np.asarray(many).std(axis=0) / np.sqrt(4000)
    assert (np.abs(many.mean(axis=0) - exact) < 5.5 * spread + 1e-12).all()
    # The last row is dropped weight by weight: a first step keeps all of v_0 / 0.7, or nothing.
    ratio = np.asarray(one @ jnp.linalg.pinv(mixer.project_out.kernel[...]))[0]
    whole = np.asarray(exact @ jnp.linalg.pinv(mixer.project_out.kernel[...]))[0]
    for head in (slice(0, 4), slice(4, 8)):
        kept = ratio[head] / whole[head]
        assert np.allclose(kept, 0) or np.allclose(kept, 1 / 0.7)


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("softmax_attention", {"num_groups": 1}),
        ("sliding_window_attention", {"num_groups": 2, "window": 3}),
        ("forgetting_attention", {"num_groups": 2}),
        ("normalized_attention", {}),
    ],
)
def test_dropout_of_nothing_is_the_plain_output(name: str, own: dict[str, Any]) -> None:
    """Also where heads share values."""
    arch = nn.architecture(config(name, num_heads=4, options=tuple(own.items())))
    mixer, x = nn.Mixer(arch, D, attention_dropout=0.3, rngs=nnx.Rngs(0)), tokens()
    dropped, _ = mixer(x, rate=0.0, key=jax.random.key(0))
    assert error(dropped, mixer(x)[0]) < 1e-12


@pytest.mark.parametrize("name", ["s6", "ssd", "qlstm", "qlstm_reversed", "rg_lru"])
def test_no_attention_matrix_no_dropout_on_it(name: str) -> None:
    with pytest.raises(ValueError, match="no normalised attention matrix.*use residual_dropout"):
        nn.build(config(name, attention_dropout=0.1))
    mixer = build(name, attention_dropout=0.1)
    with pytest.raises(ValueError, match="no normalised attention matrix"):
        mixer(tokens(), key=jax.random.key(0))


def test_attention_dropout_needs_an_empty_state() -> None:
    mixer = build("linear_attention", attention_dropout=0.1)
    with pytest.raises(ValueError, match="starts from an empty state"):
        mixer(tokens(), mixer.init_state(9), key=jax.random.key(0))


def test_an_architecture_of_ones_own_is_surrounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """In what is built from a config, of the kind that was said and of no other."""
    monkeypatch.setitem(PRACTICE, "delta", nn.Surrounding())
    monkeypatch.delitem(PRACTICE, "delta")
    around = nn.Surrounding(conv_width=4, gate="silu")
    surround("delta", around)
    assert surrounding("delta", "practice") == around
    assert surrounding("delta", "paper") == nn.Surrounding()
    surround("delta", around)  # a cell of a notebook may run twice
    with pytest.raises(ValueError, match="'delta' has surroundings of the kind 'practice'"):
        surround("delta", nn.Surrounding())
    with pytest.raises(ValueError, match="unknown kind of surroundings 'practise'"):
        surround("delta", around, "practise")


def test_token_shift_head_norm_and_low_rank_gate_by_hand() -> None:
    """RWKV-6 as in practice: signals and gate read their mixtures of a token and the one before."""
    around = surrounding("rwkv6", "practice")._replace(gate_rank=3)
    arch = nn.architecture(config("rwkv6", surroundings="practice"))
    mixer, x = nn.Mixer(arch, D, around, rngs=nnx.Rngs(0)), np.asarray(tokens())
    reset = np.arange(LENGTH) == 4
    p = {k: np.asarray(v[...]) for k, v in mixer.core.items()}
    shift = {k: np.asarray(v[...]) for k, v in mixer.shift.items()}
    before = np.concatenate([np.zeros((1, D)), x[:-1]])
    before[reset] = 0
    r, k, v, w, g = (x + shift[name] * (before - x) for name in around.token_shift)
    assert around.token_shift == ("r", "k", "v", "log_w", "gate")
    y = np.zeros((LENGTH, 2, 4))
    for h in range(2):
        S = np.zeros((3, 4))
        for t in range(LENGTH):
            S = S * (not reset[t])
            decay = np.exp(-np.exp(p["w_up"][h] @ np.tanh(p["w_down"] @ w[t]) + p["w_bias"][h]))
            q, key, value = p["W_r"][h] @ r[t], p["W_k"][h] @ k[t], p["W_v"][h] @ v[t]
            y[t, h] = q @ (S + np.outer(p["bonus"][h] * key, value))
            S = decay[:, None] * S + np.outer(key, value)
    y = y - y.mean(axis=2, keepdims=True)
    y = (y / np.sqrt((y**2).mean(axis=2, keepdims=True) + 1e-5)).reshape(LENGTH, D)
    gate = g @ np.asarray(mixer.gate_down.kernel[...]) @ np.asarray(mixer.gate.kernel[...])
    expected = (y * silu(gate)) @ np.asarray(mixer.project_out.kernel[...])
    found = jax.jit(lambda x, reset: mixer(x, reset=reset)[0])(x, reset)
    assert error(found, expected) < 1e-12


def test_gate_of_rwkv7_by_hand() -> None:
    """g = W₂ σ(W₁ x), with x mixed with the token before, and nothing after W₂."""
    mixer, x = build("rwkv7", "practice"), tokens()
    mixer.shift["gate"][...] = jnp.linspace(0.1, 0.9, D)
    last, reset, y = jnp.ones((1, D)), jnp.arange(LENGTH) == 4, tokens()[::-1]
    state = mixer.init_state(LENGTH)._replace(conv=last)
    found = mixer._output(mixer._read(x, state, reset).gated, y)
    before = np.concatenate([last, x[:-1]])
    before[4] = 0
    mixed = x + np.linspace(0.1, 0.9, D) * (before - x)
    down, up = (np.asarray(part.kernel[...]) for part in (mixer.gate_down, mixer.gate))
    assert down.shape == (D, 32)
    heads = y.reshape(LENGTH, 2, 4)
    heads = (heads - heads.mean(axis=2, keepdims=True)) / np.sqrt(
        heads.var(axis=2, keepdims=True) + 1e-5
    )
    expected = heads.reshape(LENGTH, D) * ((1 / (1 + np.exp(-mixed @ down))) @ up)
    assert error(found, expected @ np.asarray(mixer.project_out.kernel[...])) < 1e-13


def test_norms_over_all_heads_and_an_activation_before_them_by_hand() -> None:
    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5)

    x, y = tokens(), tokens()[::-1]
    lightning, gsa = build("lightning", "practice"), build("gsa", "practice")
    gate = 1 / (1 + np.exp(-x @ np.asarray(lightning.gate.kernel[...])))
    for mixer, inner in ((lightning, unit(np.asarray(y)) * gate), (gsa, unit(silu(y)))):
        expected = inner @ np.asarray(mixer.project_out.kernel[...])
        assert error(mixer._output(x, y), expected) < 1e-13


def test_glu_after_a_state_space_model_by_hand() -> None:
    mixer, x = build("s5", "practice"), tokens()
    y = scan(mixer.arch.system(mixer.parameters(), x), x, method="sequential")[0]
    linear = mixer.project_out.linear
    kernel, bias = np.asarray(linear.kernel[...]), np.asarray(linear.bias[...])
    a, b = np.split(np.asarray(jax.nn.gelu(y)) @ kernel + bias, 2, axis=1)
    expected = a / (1 + np.exp(-b))
    assert error(jax.jit(lambda x: mixer(x)[0])(x), expected) < 1e-12


def test_a_past_next_to_the_state_is_not_cut_over_devices() -> None:
    arch = nn.architecture(config("mlstm"))
    with pytest.raises(ValueError, match="carries its state alone, .*; use sequence_shards = 1"):
        nn.Mixer(arch, D, shards=Shards("steps"), rngs=nnx.Rngs(0))
    both = nn.Surrounding(token_shift=("q",), conv_width=4)
    with pytest.raises(ValueError, match="a token shift or a convolution, got both"):
        nn.Mixer(arch, D, both, rngs=nnx.Rngs(0))
