"""The loop: members are what they would be alone, stop where they should, and compile once."""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, PyTree

from dsfjax.tasks import BITS_PER_BYTE, PERPLEXITY, Example, cross_entropy
from dsfjax.training import OptimizerConfig, TrainState, optimizer, query_loss, train_step
from dsfjax.training.block import evaluate
from dsfjax.training.compilation import compiling, fit, template
from dsfjax.training.config import Member, grid
from dsfjax.training.devices import Layout, layout
from dsfjax.training.loop import Block, run
from dsfjax.training.program import Members, Program
from dsfjax.training.program import members as arrays
from dsfjax.training.step import DATA, HELD_OUT, init_state, stream
from tests.training.toy import TOY, Echo, echo

PROGRAM = Program(
    model=TOY,
    task=Echo(),
    optimizer=OptimizerConfig(warmup_steps=3),
    batch_size=4,
    block_steps=5,
    eval_examples=12,
)
SOLVING = dataclasses.replace(
    PROGRAM, optimizer=OptimizerConfig(schedule="constant"), block_steps=20, stop_at=0.95
)


def members(learning_rates: list[float], seeds: list[int], **axes: Any) -> Members:
    return arrays(grid(learning_rates=learning_rates, seeds=seeds, **axes))


def final(
    program: Program, which: Members, steps: int, where: Layout | None = None
) -> tuple[list[Block], PyTree]:
    blocks, params = [], None
    for block in run(program, which, steps, where=where):
        blocks.append(block)
        params = block.carry().states.params
    return blocks, params


def test_members_are_every_rate_with_every_seed() -> None:
    which = members([0.1, 0.2], [5, 6, 7])
    assert which.learning_rate.tolist() == [0.1, 0.1, 0.1, 0.2, 0.2, 0.2]
    assert which.seed.tolist() == [5, 6, 7, 5, 6, 7]


@pytest.mark.parametrize("width", [pytest.param(4, marks=pytest.mark.slow), 2])
def test_vmapped_members_are_looped_members(width: int) -> None:
    where = layout(4, jax.devices()[:1], width=width)
    together, params = final(PROGRAM, members([1e-3, 1e-2], [0, 1]), 10, where)
    for index, (rate, seed) in enumerate([(1e-3, 0), (1e-3, 1), (1e-2, 0), (1e-2, 1)]):
        alone, own = final(PROGRAM, members([rate], [seed]), 10)
        for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(own), strict=True):
            np.testing.assert_allclose(a[index], b[0], rtol=0, atol=1e-10)
        for a, b in zip(together, alone, strict=True):
            both = (jax.tree.leaves(each.metrics) for each in (a, b))
            for x, y in zip(*both, strict=True):
                np.testing.assert_allclose(x[index], y[0], rtol=0, atol=1e-10)
    losses = together[-1].metrics.held_out["loss"]
    assert len(set(losses.tolist())) == 4


def test_a_fixed_data_set_comes_again_in_every_epoch() -> None:
    # Ten examples in batches of four: the third has two, and every third step sees the same.
    rate = 1e-2
    optimizer_config = OptimizerConfig(schedule="constant")
    # Without dropout, whose random numbers are drawn for whole batches.
    silent = TOY._replace(features=lambda params, tokens, **_: TOY.features(params, tokens))
    program = dataclasses.replace(
        PROGRAM, model=silent, train_examples=10, optimizer=optimizer_config, block_steps=1
    )
    blocks, params = final(program, members([rate], [3]), 7)
    adamw = optimizer.build(optimizer_config, rate, weight_decay=0.1)
    state = init_state(TOY, adamw, jax.random.key(3))

    @functools.partial(jax.jit, static_argnums=1)
    def take(state: TrainState, size: int, index: Any) -> tuple[TrainState, Any]:
        keys = jax.random.split(stream(state.key, DATA, index), 4)[:size]
        batch = jax.vmap(lambda key: echo(key, 6))(keys)
        return train_step(state, batch, model=silent, optimizer=adamw)

    for step, block in enumerate(blocks):
        state, metrics = take(state, 2 if step % 3 == 2 else 4, step % 3)
        np.testing.assert_allclose(block.metrics.train["loss"][0], metrics["loss"], atol=1e-12)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(a[0], b, rtol=0, atol=1e-10)


def test_every_axis_is_what_it_is_alone() -> None:
    points = [
        Member(1e-2, weight_decay=0.0, init_scale=1.0, dropout=0.4, seed=3),
        Member(1e-2, weight_decay=0.5, init_scale=1.0, dropout=0.0, seed=3),
        Member(1e-2, weight_decay=0.5, init_scale=2.0, dropout=0.4, seed=3),
    ]
    together, params = final(PROGRAM, arrays(points), 5)
    for index, point in enumerate(points):
        config = dataclasses.replace(PROGRAM.optimizer, weight_decay=point.weight_decay)
        adamw = optimizer.build(config, point.learning_rate, total_steps=5)
        state = init_state(TOY, adamw, jax.random.key(point.seed))
        # The embedding, the weights and the head; the bias is not of their scale.
        scaled = jax.tree.map(
            lambda leaf, s=point.init_scale: leaf * s if leaf.ndim > 1 else leaf, state.params
        )
        state = state._replace(params=scaled)
        loss = functools.partial(query_loss, dropout=jnp.asarray(point.dropout))

        @jax.jit
        def step(state: TrainState, adamw: Any = adamw, loss: Any = loss) -> TrainState:
            keys = jax.random.split(stream(state.key, DATA, state.step), 4)
            batch = jax.vmap(lambda key: echo(key, 6))(keys)
            return train_step(state, batch, model=TOY, optimizer=adamw, loss=loss)[0]

        for _ in range(5):
            state = step(state)
        for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(state.params), strict=True):
            np.testing.assert_allclose(a[index], b, rtol=0, atol=1e-10)
    assert len(set(together[-1].metrics.held_out["loss"].tolist())) == 3


def test_plateau_stops_a_member_and_is_recorded() -> None:
    plan = dataclasses.replace(SOLVING, stop_at=None, patience=3)
    blocks, _ = final(plan, members([1e-300, 5e-3], [0]), 200)
    losses = np.array([block.metrics.held_out["loss"] for block in blocks])
    # The first never moves: its best evaluation is the first, and three more are no better.
    assert blocks[-1].progress.plateau_at.tolist() == [20 + 3 * 20, -1]
    assert [bool(block.metrics.active[0]) for block in blocks] == [True] * 4 + [False] * 6
    assert (losses[:4, 0] == losses[0, 0]).all()
    assert np.isnan(losses[4:, 0]).all()  # it is alone on its device, and nothing is computed
    assert blocks[-1].progress.best_loss[1] == losses[:, 1].min()
    assert blocks[-1].progress.best_at[1] == 20 * (losses[:, 1].argmin() + 1)


def test_slices_take_turns_and_change_nothing() -> None:
    which = members([1e-3, 5e-3], [0, 1, 2])
    whole, params = final(SOLVING, which, 100)
    where = layout(6, jax.devices(), at_most=4)
    assert [index.tolist() for index in where.indices()] == [[0, 1, 2], [3, 4, 5]]
    sliced, own = final(SOLVING, which, 100, where)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(own), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)
    for a, b in zip(whole, sliced, strict=True):
        assert a.step == b.step
        np.testing.assert_array_equal(a.metrics.active, b.metrics.active)
        np.testing.assert_array_equal(a.progress.solved_at, b.progress.solved_at)
    _, same = final(SOLVING, which, 100, where)
    for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(same), strict=True):
        np.testing.assert_array_equal(a, b)


def test_slice_of_stopped_members_is_passed_over() -> None:
    where = layout(2, jax.devices(), at_most=1)
    blocks, _ = final(SOLVING, members([1e30, 1e-7], [0]), 80, where)
    assert blocks[-1].progress.diverged_at.tolist() == [20, -1]
    assert [block.metrics.active.tolist() for block in blocks] == [
        [True, True],
        *3 * [[False, True]],
    ]
    assert [block.step for block in blocks] == [20, 40, 60, 80]
    assert all(np.isnan(block.metrics.held_out["loss"][0]) for block in blocks[1:])


def test_memory_decides_how_many_run_at_once() -> None:
    one = jax.devices()[:1]
    whole = layout(4, one)
    all_at_once = compiling(PROGRAM, whole).result().bytes
    assert fit(PROGRAM, 4, one, memory=all_at_once) == whole
    carry = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(template(PROGRAM, 1)))
    assert all_at_once > 4 * carry
    fewer = fit(PROGRAM, 4, one, memory=all_at_once - 1)
    assert 1 <= fewer.slice_size < 4
    # Those that wait do so in the same memory, on a CPU.
    needed = compiling(PROGRAM, fewer).result().bytes + (4 - fewer.slice_size) * carry
    assert needed < all_at_once
    with pytest.raises(ValueError, match="one member per device to fit into 0 MiB"):
        fit(PROGRAM, 4, one, memory=1000, at_most=1)


def test_evaluation_is_the_loss_on_the_held_out_examples() -> None:
    (block, *_), params = final(PROGRAM, members([1e-3], [0]), 5)
    hits, losses = [], []
    for index in range(12):
        example = echo(stream(jax.random.key(0), HELD_OUT, index), 6)
        own = jax.tree.map(lambda leaf: leaf[0], params)
        logits = TOY.apply(own, example.inputs)[example.query_positions]
        losses.append(-jax.nn.log_softmax(logits)[jnp.arange(2), example.targets])
        hits.append(logits.argmax(axis=1) == example.targets)
    np.testing.assert_allclose(block.metrics.held_out["loss"][0], np.mean(losses), rtol=1e-12)
    np.testing.assert_allclose(block.metrics.held_out["accuracy"][0], np.mean(hits), rtol=1e-12)


@dataclasses.dataclass(frozen=True)
class Weighted(Echo):
    """Queries of any weight, and examples of which none counts, judged by a perplexity."""

    metric: ClassVar = PERPLEXITY
    also: ClassVar = (BITS_PER_BYTE,)

    def sample(self, key: Array) -> Example:
        made = super().sample(key)
        weights = made.targets * jnp.where(made.targets[:1] > 2, 0.5, 0.0)
        return made._replace(weights=weights)

    def measure(self, outputs: Array, targets: Array) -> dict[str, Array]:
        loss = cross_entropy(outputs, targets)["loss"]
        return {"loss": loss, "perplexity": loss, "bits_per_byte": loss / jnp.log(2.0)}


def test_a_perplexity_is_of_all_queries_by_their_weights() -> None:
    """Over batches of several examples, the last not full, and over two devices."""
    task, params = Weighted(), TOY.init(jax.random.key(5))
    plan = dataclasses.replace(PROGRAM, task=task, eval_examples=11)
    losses, weights = [], []
    for index in range(11):
        key = stream(jax.random.key(0), HELD_OUT, index)
        example = task.sample(key)
        logits = TOY.apply(params, example.inputs)[example.query_positions]
        losses.append(-jax.nn.log_softmax(logits)[jnp.arange(2), example.targets])
        weights.append(example.weights)
    assert 0 in np.sum(weights, axis=1) and len(np.unique(weights)) > 3
    mean = np.average(losses, weights=weights)
    one = jax.jit(lambda params: evaluate(plan, (), params))(params)
    divided = functools.partial(evaluate, plan, (), axis_name="devices")
    both = jax.vmap(divided, in_axes=None, axis_size=2, axis_name="devices")
    for found in (one, jax.tree.map(lambda leaf: leaf[1], jax.jit(both)(params))):
        np.testing.assert_allclose(found["loss"], mean, rtol=1e-12)
        np.testing.assert_allclose(found["perplexity"], np.exp(mean), rtol=1e-12)
        np.testing.assert_allclose(found["bits_per_byte"], mean / np.log(2), rtol=1e-6)


def test_own_data_by_default_and_shared_on_request() -> None:
    # The model is forgotten: only the data can differ between the seeds.
    still = TOY._replace(init=lambda _: TOY.init(jax.random.key(9)), features=_no_dropout)
    for shared, distinct in ((False, 2), (True, 1)):
        plan = dataclasses.replace(PROGRAM, model=still, shared_data=shared)
        (block,), _ = final(plan, members([1e-12], [0, 1]), 5)
        assert len(set(block.metrics.train["loss"].tolist())) == distinct


def _no_dropout(params: PyTree, tokens: Array, **_: Any) -> Array:
    return TOY.features(params, tokens)


def test_solved_is_frozen_and_diverged_is_reported() -> None:
    which = members([1e-7, 5e-3, 1e30], [0])
    kept: dict[int, PyTree] = {}
    blocks = []
    for block in run(SOLVING, which, 200):
        blocks.append(block)
        kept[block.step] = block.carry().states
    last = blocks[-1]
    assert last.step == 200  # the slow one goes on to the end
    assert last.progress.solved_at.tolist()[0] == -1
    solved = int(last.progress.solved_at[1])
    assert 20 < solved < 200
    assert last.progress.solved_at[2] == -1
    assert last.progress.diverged_at.tolist() == [-1, -1, 20]
    # The solved member keeps every bit of its state from there on, the slow one does not.
    then, now = kept[solved], kept[200]
    assert now.step.tolist() == [200, solved, 20]
    for a, b in zip(jax.tree.leaves(then.params), jax.tree.leaves(now.params), strict=True):
        np.testing.assert_array_equal(a[1], b[1])
        assert not np.array_equal(a[0], b[0])
    at = next(block for block in blocks if block.step == solved)
    assert at.metrics.held_out["accuracy"][1] >= 0.95
    before = [block for block in blocks if block.step < solved]
    assert before
    assert all(block.metrics.held_out["accuracy"][1] < 0.95 for block in before)
    assert [b.metrics.active.tolist() for b in blocks[:2]] == [[True] * 3, [True, True, False]]


def test_run_ends_when_no_member_trains() -> None:
    blocks, _ = final(SOLVING, members([5e-3, 1e30], [0]), 400)
    assert blocks[-1].step == blocks[-1].progress.solved_at[0] < 400


def test_one_compilation_for_all_rates_seeds_and_lengths() -> None:
    traces = 0

    def counted(params: PyTree, tokens: Array, **keywords: Any) -> Array:
        nonlocal traces
        traces += 1
        return TOY.features(params, tokens, **keywords)

    plan = dataclasses.replace(PROGRAM, model=TOY._replace(features=counted))
    final(plan, members([1e-3, 1e-2], [0]), 5)
    once = traces
    assert once > 0
    compilations = []

    def heard(event: str, duration_secs: float, **kwargs: str | int) -> None:
        compilations.extend([event] if "compile" in event else [])

    jax.monitoring.register_event_duration_secs_listener(heard)
    a, _ = final(plan, members([0.1, 0.2], [3]), 5)
    b, _ = final(plan, members([0.1, 0.2], [3], weight_decays=[0.3], init_scales=[2.0]), 15)
    final(dataclasses.replace(plan), members([0.1], [3, 4]), 5)
    assert traces == once
    assert compilations == []
    # Another length is another schedule, so it is not that nothing was computed anew.
    assert a[0].metrics.held_out["loss"][0] != b[0].metrics.held_out["loss"][0]
    final(plan, members([0.1], [3]), 5)
    assert traces > once
    assert compilations
    jax.monitoring.clear_event_listeners()


def test_block_goes_on_from_a_carry_bit_for_bit() -> None:
    which = members([1e-2], [0, 1])
    straight, params = final(PROGRAM, which, 15)
    (first, *_), _ = final(PROGRAM, which, 15)
    half = next(run(PROGRAM, which, 15))
    rest = []
    for block in run(PROGRAM, which, 15, half.carry()):
        rest.append(block)
        resumed = block.carry().states.params
    np.testing.assert_array_equal(half.metrics.train["loss"], first.metrics.train["loss"])
    assert [block.step for block in rest] == [10, 15]
    for a, b in zip(straight[1:], rest, strict=True):
        np.testing.assert_array_equal(a.metrics.held_out["loss"], b.metrics.held_out["loss"])
    for a, b in zip(*map(jax.tree.leaves, (params, resumed)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("steps", [0, 4, 12])
def test_steps_must_be_whole_blocks(steps: int) -> None:
    with pytest.raises(ValueError, match=r"multiple of the 5 steps .* nearest: (5|10)"):
        next(run(PROGRAM, members([1e-3], [0]), steps))


def test_initial_state_is_that_of_the_seed() -> None:
    where = layout(2, jax.devices())
    carry = compiling(PROGRAM, where).result().start(members([0.1], [4, 5]))
    adamw = optimizer.build(PROGRAM.optimizer, 0.1, total_steps=1)
    for index, seed in enumerate((4, 5)):
        own = init_state(TOY, adamw, jax.random.key(seed)).params
        for a, b in zip(jax.tree.leaves(carry.states.params), jax.tree.leaves(own), strict=True):
            np.testing.assert_allclose(a[index], b, rtol=1e-15)
