"""RG-LRU under its own name: reference values, a loop, pieces, and the architecture."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import ops, scan, systems
from dsfjax._util.errors import normwise
from tests import goldens, ops_runs
from tests.checks import unchecked

HEADS, P = 2, 2
WIDTH = HEADS * P
PLACES = np.array([[0, 1, 2, 0, 1], [3, 4, 0, 1, 0]])


@pytest.fixture(autouse=True)
def _step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    ops_runs.step_by_step(monkeypatch)


def draw(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).normal(size=shape)


WEIGHTS: dict[str, Any] = {
    "a_param": draw(WIDTH),
    "input_gate_w": draw(HEADS, P, P),
    "input_gate_b": draw(HEADS, P),
    "a_gate_w": draw(HEADS, P, P, seed=1),
    "a_gate_b": draw(HEADS, P, seed=1),
}


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def loop(x: np.ndarray, places: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One sequence, step by step."""
    y = np.zeros_like(x)
    for t in range(len(x)):
        blocks = x[t].reshape(HEADS, P)
        i, r = (
            sigmoid(
                np.einsum("hi,hij->hj", blocks, WEIGHTS[f"{name}_gate_w"])
                + WEIGHTS[f"{name}_gate_b"]
            ).reshape(-1)
            for name in ("input", "a")
        )
        a = np.exp(-8 * np.log1p(np.exp(WEIGHTS["a_param"])) * r)
        new = places[t] == 0
        h = (0 if new else a * h) + (1 if new else np.sqrt(1 - a**2)) * i * x[t]
        y[t] = h
    return y, h


def test_values_and_states_in_one_go_and_in_pieces() -> None:
    x, h0 = draw(2, 5, WIDTH), draw(2, WIDTH)

    @jax.jit
    def run(x: Any, places: Any, h0: Any, weights: Any) -> Any:
        whole = ops.rg_lru(x, places, h0, **weights)
        first, cache = ops.rg_lru(x[:, :2], places[:, :2], h0, **weights)
        second, cache = ops.rg_lru(x[:, 2:], places[:, 2:], cache, **weights)
        return whole, (jnp.concatenate([first, second], axis=1), cache)

    whole, pieces = run(x, PLACES, h0, WEIGHTS)
    for row in range(2):
        y, h = loop(x[row], PLACES[row], h0[row])
        for found in (whole, pieces):
            assert normwise(found[0][row], y) < 1e-13
            assert normwise(found[1][row], h) < 1e-13


def test_it_is_the_system_of_the_architecture() -> None:
    arch = systems.get("rg_lru", d_model=WIDTH, num_heads=HEADS)
    params = arch.init(jax.random.key(0))._replace(
        a_param=WEIGHTS["a_param"].reshape(HEADS, P),
        W_r=WEIGHTS["a_gate_w"].swapaxes(1, 2),
        bias_r=WEIGHTS["a_gate_b"],
        W_i=WEIGHTS["input_gate_w"].swapaxes(1, 2),
        bias_i=WEIGHTS["input_gate_b"],
    )
    x, places = jnp.asarray(draw(5, WIDTH)), jnp.asarray(PLACES[0])

    @jax.jit
    def both(x: Any, params: Any, weights: Any) -> Any:
        system = ops.rg_lru.system(x, places, **weights)
        ours = arch.system(params, x, reset=places == 0)
        tokens = ops.rg_lru.tokens(x, places, **weights)
        return scan(system, tokens)[0], scan(ours, x)[0]

    found, expected = both(x, params, WEIGHTS)
    assert normwise(found, expected) < 1e-14


@pytest.mark.parametrize("name", ["rglru_h4_reset", "rglru_noreset"])
def test_values_and_gradients_of_the_original(name: str) -> None:
    file = goldens.load(name)
    weights: dict[str, Any] = {key.replace(".", "_"): x for key, x in file.group("p").items()}
    places = jnp.asarray(file.group("in")["segment_pos"])

    def loss(x: Any, weights: Any) -> Any:
        y, nothing = ops.rg_lru(x, places, None, False, **weights)
        assert nothing is None
        return (y * file["g"]).sum(), y

    slope = jax.value_and_grad(loss, (0, 1), has_aux=True)
    (_, y), (dx, dw) = ops_runs.compiled(slope, quick=True)(jnp.asarray(file["x"]), weights)
    assert normwise(y, file["y"]) < 1e-12
    assert normwise(dx, file["d.x"]) < 1e-11
    for key, expected in file.group("d").items():
        if key != "x":
            assert normwise(dw[key.replace(".", "_")], expected) < 1e-11, key


def test_low_precision_has_wide_states_and_blocks_must_fit() -> None:
    low: dict[str, Any] = {key: jnp.asarray(x, jnp.bfloat16) for key, x in WEIGHTS.items()}
    x, places = jnp.ones((2, 5, WIDTH), jnp.bfloat16), jnp.asarray(PLACES)
    y, cache = jax.eval_shape(lambda x: ops.rg_lru(x, places, **low), x)
    assert (y.dtype, cache.dtype, cache.shape) == (jnp.bfloat16, jnp.float32, (2, WIDTH))
    wide = {**WEIGHTS, "a_param": np.ones(6)}
    with unchecked(), pytest.raises(ValueError, match=r"x of 2 · 2 = 4 channels, .* got 6"):
        ops.rg_lru(jnp.ones((2, 5, 6)), places, **wide)
