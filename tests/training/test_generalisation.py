"""Longer sequences than trained on, and other states to begin in."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import nn
from dsfjax.tasks import HELD_OUT, examples
from dsfjax.tasks.state_tracking import Parity, WordProblem
from dsfjax.training import query_loss
from dsfjax.training.block import evaluate
from dsfjax.training.generalisation import score_lengths
from dsfjax.training.optimizer import OptimizerConfig
from dsfjax.training.program import Program
from dsfjax.training.step import HELD_OUT as STREAM

TASK, COUNT = WordProblem(seq_len=8, group="Z3"), 20


def build(mixer: str) -> tuple[nn.Model, dict]:
    config = nn.ModelConfig(mixer, TASK.vocab_size, d_model=8, d_state=4, num_layers=1)
    model = nn.build(config)
    return model, jax.jit(model.init)(jax.random.key(2))


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["ssd", "softmax_attention", "normalized_attention"])
def test_at_the_training_length_it_is_the_ordinary_evaluation(mixer: str) -> None:
    model, params = build(mixer)
    scores = list(
        score_lengths(model, TASK, params, factors=(1, 2), num_examples=COUNT, batch_size=8)
    )
    program = Program(model, TASK, OptimizerConfig(), 8, 1, COUNT)
    means = jax.jit(lambda params: evaluate(program, (), params))(params)
    assert (scores[0].start, scores[0].factor, scores[0].length) == ("empty", 1, 8)
    np.testing.assert_allclose(scores[0].loss, means["loss"], rtol=1e-12)
    np.testing.assert_allclose(scores[0].score, means["accuracy"], rtol=1e-12)
    starts = ["empty"] if mixer == "softmax_attention" else ["empty", "carried", "random"]
    assert [(s.start, s.length) for s in scores] == [(s, n) for n in (8, 16) for s in starts]
    assert len({s.loss for s in scores}) == len(scores)


@pytest.mark.slow
def test_a_carried_state_is_that_of_what_came_before() -> None:
    """Against one sequence after the other, without a state that is handed over."""
    model, params = build("s6")
    task = Parity(seq_len=6, min_length=5)
    (score,) = score_lengths(
        model, task, params, factors=(3,), starts=("carried",), num_examples=4, batch_size=3
    )
    key = jax.random.fold_in(jax.random.key(0), STREAM)
    before = jax.tree.map(lambda leaf: leaf[4:], examples(task, HELD_OUT, 8, key))
    after = examples(task.lengthened(3), HELD_OUT, 4, key)
    assert set(before.length.tolist()) == {5, 6}
    losses = []
    for i, length in enumerate(before.length.tolist()):
        one = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], after)
        whole = one._replace(
            inputs=jnp.concatenate([before.inputs[i : i + 1, :length], one.inputs], axis=1),
            query_positions=one.query_positions + length,
            length=one.length + length,
        )
        losses.append(float(query_loss(model, params, whole)[1]["loss"]))
    np.testing.assert_allclose(score.loss, np.mean(losses), rtol=1e-10)


@pytest.mark.slow
def test_random_states_have_the_size_of_final_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    from dsfjax.training import generalisation

    seen = []

    def noted(program: Any, rows: Any, params: Any, states: Any) -> dict[str, float]:
        seen.append(states)
        return {"loss": 0.0, TASK.metric.name: 0.0}

    monkeypatch.setattr(generalisation, "scores", noted)
    model, params = build("rg_lru")
    scores = score_lengths(model, TASK, params, factors=(1,), num_examples=400, batch_size=400)
    list(scores)
    empty, carried, drawn = ([layer.h for layer in states.layers] for states in seen)
    for none, before, after in zip(empty, carried, drawn, strict=True):
        assert (none == 0).all() and not np.array_equal(before, after)
        scale = np.asarray(before.std(axis=0))
        assert (abs(after.mean(axis=0) - before.mean(axis=0)) < 5 * scale / 20).all()
        np.testing.assert_allclose(after.std(axis=0), scale, rtol=0.2)


def test_unknown_starts() -> None:
    model, params = build("ssd")
    with pytest.raises(ValueError, match="unknown start 'carry'; did you mean 'carried'"):
        next(score_lengths(model, TASK, params, starts=("carry",)))
