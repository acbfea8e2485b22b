"""Probes: the numbers that they are named after, beside the metrics and resumed with them."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from dsfjax import analysis, aspects, nn
from dsfjax.aspects import aspect as registry
from dsfjax.aspects.eigenvalues import QUANTILES
from dsfjax.tasks.mqar import MQARConfig
from dsfjax.training import Listener, TrainConfig, load, train
from dsfjax.training.objective import output_gradients, query_loss
from dsfjax.training.probes import BATCH, READ, held_out, probe, probed, sharpness

TASK = MQARConfig(vocab_size=10, seq_len=8, num_kv_pairs=2)
MODEL = nn.ModelConfig(
    "linear_attention", vocab_size=10, d_model=4, d_state=2, num_layers=2, block="mamba"
)
CONFIG = TrainConfig(
    TASK,
    MODEL,
    batch_size=4,
    steps=12,
    eval_every=2,
    eval_examples=8,
    seeds=(3, 1),
    learning_rates=(1e-3, 1e-2),
    stop_at=None,
    checkpoint_every=2,
    probe_every=4,
)


KEY = jax.random.key(0)


@pytest.fixture(scope="module", autouse=True)
def _own() -> Iterator[None]:
    """An aspect of one's own whose probe is noted beside those of the built-in ones."""
    known = dict(registry._ASPECTS)
    aspects.register(
        aspects.Aspect(
            name="largest_token",
            title="",
            how="",
            measure=lambda system, u, dy: jnp.abs(u).max(),
            summarise=float,
            probes={"largest_token": lambda found: found.mean()},
        )
    )
    yield
    registry._ASPECTS.clear()
    registry._ASPECTS.update(known)


@pytest.mark.parametrize("values", [[3.0, 1.0, -5.0], [-1.0, -2.0, -3.0, -3.0], [7.0]])
def test_sharpness_of_a_quadratic(values: list[float]) -> None:
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.standard_normal((len(values), len(values))))[0]
    H = jnp.asarray(Q @ np.diag(values) @ Q.T)
    found = sharpness(lambda x: x["a"] @ H @ x["a"] / 2, {"a": jnp.ones(len(values))}, KEY)
    assert float(found) == pytest.approx(max(values), rel=1e-9)


def test_lanczos_gets_close_in_few_iterations() -> None:
    values = np.concatenate([np.linspace(-1, 1, 198), [8.0, 10.0]])
    H = jnp.asarray(values)
    few, more = (
        sharpness(lambda x: x @ (H * x) / 2, jnp.ones(200), KEY, iterations=n) for n in (8, 24)
    )
    assert 9.9 < float(few) < float(more) <= 10.0 + 1e-9
    assert float(more) == pytest.approx(10.0, rel=1e-6)


def test_sharpness_where_the_loss_is_not_finite() -> None:
    assert np.isnan(sharpness(lambda x: jnp.log(x).sum(), jnp.zeros(3), KEY))


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["linear_attention", "softmax_attention"])
def test_sharpness_is_the_largest_eigenvalue_of_the_hessian(mixer: str) -> None:
    config = dataclasses.replace(MODEL, mixer=mixer, num_layers=1)
    model = nn.build(dataclasses.replace(config, method="sequential"))
    params = jax.tree.map(lambda x: x.astype(float), model.init(jax.random.key(1)))
    flat, unravel = ravel_pytree(params)
    batch = held_out(TASK, BATCH)
    hessian = jax.jit(jax.hessian(lambda x: query_loss(model, unravel(x), batch)[0]))(flat)
    values = np.linalg.eigvalsh(np.asarray(hessian))
    found = jax.jit(
        lambda p: sharpness(lambda q: query_loss(model, q, batch)[0], p, KEY, iterations=60)
    )(params)
    assert flat.size > 60
    assert float(found) == pytest.approx(values[-1], rel=1e-8)
    short = probe(dataclasses.replace(CONFIG, model=config), params)["sharpness"]
    assert short <= values[-1] * (1 + 1e-9)
    assert short == pytest.approx(values[-1], rel=1e-2)


def test_layers_are_what_analysis_says() -> None:
    model = nn.build(MODEL)
    params = jax.tree.map(lambda x: x.astype(float), model.init(jax.random.key(1)))
    found = probe(CONFIG, params)["layers"]

    @jax.jit
    def look(example: Any) -> list[tuple]:
        dy = output_gradients(model, params, example)
        pairs = zip(model.systems(params, example.inputs), dy, strict=True)
        return [
            (
                jnp.abs(u).max(),
                jnp.abs(analysis.eigenvalues(s)),
                analysis.effective_dimension(analysis.state_use(s) ** 2).rank,
                jnp.linalg.norm(analysis.gradient_norms(s, y), axis=1),
            )
            for (s, u), y in pairs
        ]

    batch = held_out(TASK, READ)
    rows = [look(jax.tree.map(lambda x, b=b: x[b], batch)) for b in range(READ)]
    for i, layer in enumerate(found):
        tokens, moduli, dimensions, gradients = zip(*(row[i] for row in rows), strict=True)
        values = np.ravel(moduli)
        values = values[~np.isnan(values)]
        assert layer["largest_token"] == pytest.approx(np.mean(tokens))
        assert layer["growing"] == pytest.approx(np.mean(values > 1))
        assert layer["dimension"] == np.mean(dimensions)
        quarters = np.mean(gradients, axis=0).reshape(4, 2).mean(axis=1)
        np.testing.assert_allclose(layer["gradient"], quarters, rtol=1e-9)
        # Quantiles are known to the width of a bin, which near |λ| = 1 is narrow.
        assert layer["modulus"] == pytest.approx(np.quantile(values, QUANTILES), rel=0.3)
        assert layer["modulus"] == sorted(layer["modulus"])


class Killed(Exception):
    """In the place of a signal."""


class KillAt(Listener):
    """Ends the run after an evaluation."""

    def __init__(self, step: int) -> None:
        self._step = step

    def evaluated(self, name: str, lines: list[dict[str, Any]]) -> None:
        if lines[0]["step"] == self._step:
            raise Killed


def lines_of(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    times = ("seconds", "tokens_per_second", "memory_bytes")
    return [{k: v for k, v in line.items() if k not in times} for line in lines]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "straight"
    train(CONFIG, folder)
    return folder


def test_the_first_seed_of_every_rate_is_probed(straight: Path) -> None:
    assert probed(CONFIG) == [0, 2]
    seen = [(line["step"], line["member"]) for line in lines_of(straight) if "probe" in line]
    assert seen == [(step, member) for step in (4, 8, 12) for member in (0, 2)]
    loaded = load(straight)
    last = next(x for x in loaded.metrics[::-1] if x["member"] == 2)
    params = jax.tree.map(lambda leaf: leaf[2], loaded.params)
    assert last["probe"] == probe(CONFIG, params)
    assert last["probe"]["sharpness"] != loaded.metrics[4]["probe"]["sharpness"]


def test_training_does_not_notice(straight: Path, tmp_path: Path) -> None:
    train(dataclasses.replace(CONFIG, probe_every=None), tmp_path / "plain")
    without = [{k: v for k, v in x.items() if k != "probe"} for x in lines_of(straight)]
    assert lines_of(tmp_path / "plain") == without


# Killed where a checkpoint was just written with a probe (8), and where neither was due (6).
@pytest.mark.parametrize("step", [8, pytest.param(6, marks=pytest.mark.slow)])
def test_probes_survive_a_kill(step: int, straight: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(CONFIG, tmp_path / "run", listener=KillAt(step))
    train(CONFIG, tmp_path / "run")
    assert lines_of(tmp_path / "run") == lines_of(straight)


def test_numbers_that_are_not_finite_are_null() -> None:
    model = nn.build(MODEL)
    params = jax.tree.map(lambda x: x * jnp.nan, model.init(jax.random.key(1)))
    found = probe(CONFIG, params)
    assert found["sharpness"] is None
    json.dumps(found, allow_nan=False)


def test_probe_every_is_a_multiple_of_eval_every() -> None:
    for value in (0, 3):
        with pytest.raises(ValueError, match="multiple of eval_every = 2 or None"):
            dataclasses.replace(CONFIG, probe_every=value)
