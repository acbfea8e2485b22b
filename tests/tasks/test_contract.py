"""What every registered task keeps, and what the registry says of names."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import tasks
from dsfjax.cli import options
from dsfjax.tasks import HELD_OUT, TRAIN, Example, examples
from dsfjax.tasks.supply import shuffled
from dsfjax.training.config import AXES
from tests.checks import unchecked

PACKAGE = Path(__file__).parents[2] / "dsfjax"


@pytest.mark.parametrize("name", tasks.names())
def test_examples_are_what_the_task_says(name: str) -> None:
    settings = (tasks.kind(name).presets.get("smoke") or tasks.Preset()).settings
    own = {key: value for key, value in settings.items() if key in tasks.options(name)}
    task = tasks.get(name, **own)
    assert {*tasks.kind(name).data_sets} <= {*tasks.data.DATA_SETS}
    try:
        check(name, task)
        assert all(each.score > 0 for each in task.baselines().values())
    except tasks.data.MissingDataError as error:  # tested on files that are made up
        pytest.skip(str(error))


@pytest.mark.parametrize("command", [options.Train, options.Compare, options.Sweep])
def test_options_of_tasks_are_none_of_training(command: type[options.Training]) -> None:
    taken = {field.name for field in dataclasses.fields(options.completed(command, {}, AXES))}
    assert [name for name in tasks.names() if taken & {*tasks.options(name)}] == []


def check(name: str, task: tasks.Task) -> None:
    """What holds for a task of every name."""
    assert tasks.name_of(task) == name
    assert task == tasks.get(name, **dataclasses.asdict(task)) and hash(task)  # pyright: ignore[reportArgumentType]
    assert task.title and task.describe() and re.fullmatch(r"[\w-]+", task.slug())
    key = jax.random.key(0)
    width = task.num_outputs or task.num_classes or task.vocab_size
    each = (task.num_decoded, width) if task.num_decoded else (width,)

    def made(split: str) -> Any:
        def all_of_it(data: Any) -> Any:
            batch = examples(task, split, 6, key, data)
            outputs = jnp.zeros((*batch.query_positions.shape, *each))
            judged = task.measure(outputs, batch.targets)
            return batch, judged, jax.vmap(task.sources)(batch)

        # One program per split, and NumPy from then on.
        return jax.tree.map(np.asarray, jax.jit(all_of_it)(task.arrays(split)))

    found = [made(split) for split in (TRAIN, HELD_OUT)]
    for batch, judged, sources in found:
        assert isinstance(batch, Example)
        assert batch.inputs.shape[:2] == (6, task.seq_len)
        if task.vocab_size:
            assert batch.inputs.min() >= 0 and batch.inputs.max() < task.vocab_size
        else:
            assert batch.inputs.shape[2:] == (task.channels,)
            assert batch.inputs.dtype == np.float32 and np.isfinite(batch.inputs).all()
        if batch.length is not None:
            assert batch.length.min() >= 1 and batch.length.max() <= task.seq_len
        if task.num_documents == 2:
            assert batch.reset is not None
            assert (batch.reset[:, 0] & (batch.reset.sum(axis=1) == 2)).all()
        assert batch.query_positions.shape == batch.targets.shape[:2]
        assert batch.query_positions.max() < task.seq_len
        if not task.num_outputs:
            assert batch.targets.max() < (task.num_classes or task.vocab_size)
        for metric in ("loss", *(metric.name for metric in task.measured())):
            assert judged[metric].shape == batch.query_positions.shape
        if sources is not None:
            answers = np.take_along_axis(np.asarray(batch.inputs), sources, axis=1)
            np.testing.assert_array_equal(answers, batch.targets)
            assert (sources < batch.query_positions).all()
    assert not np.array_equal(found[0][0].inputs, found[1][0].inputs)
    baselines = task.baselines()
    assert all(each.score >= 0 and each.about for each in baselines.values())
    if task.metric.percent:
        assert all(each.score <= 1 for each in baselines.values())
    assert task.metric.gain(task.trivial().score, baselines["chance"].score) >= 0


def test_an_epoch_has_every_example_once_in_an_order_of_its_own() -> None:
    task, key = tasks.get("digits"), jax.random.key(3)
    size, per_epoch = 100, 14
    picks = jax.jit(jax.vmap(lambda step: task.picks(key, step, size)))(np.arange(2 * per_epoch))
    first, second = picks[:per_epoch].ravel(), picks[per_epoch:].ravel()
    assert len(set(first.tolist())) == len(set(second.tolist())) == per_epoch * size
    assert not np.array_equal(first, second)
    assert picks.max() < 1437


def test_shuffled_is_uniform() -> None:
    run = jax.jit(jax.vmap(lambda key: shuffled(key, jnp.arange(5, dtype=jnp.int32), 5)))
    found = np.asarray(run(jax.random.split(jax.random.key(1), 24_000)))
    counts = np.unique(found, axis=0, return_counts=True)[1]
    assert len(counts) == 120  # all orders of five
    assert ((counts - 200) ** 2 / 200).sum() < 119 + 4 * np.sqrt(2 * 119)
    large = np.asarray(shuffled(jax.random.key(0), jnp.arange(1000, dtype=jnp.int32), 60_000))
    assert len(set(large.tolist())) == 1000 and abs(large.mean() / 60_000 - 0.5) < 0.04
    assert abs(np.corrcoef(large[1:], large[:-1])[0, 1]) < 0.13


def test_the_trivial_answer_of_selective_copying() -> None:
    task = tasks.get("selective_copying", vocab_size=5, seq_len=12, num_tokens=4)
    targets = np.asarray(examples(task, TRAIN, 20_000, jax.random.key(0)).targets)
    most = np.stack([(targets == token).sum(axis=1) for token in range(2, 5)]).max(axis=0)
    # 4 of 3 tokens: the standard deviation of the mean is 0.001.
    assert abs(most.mean() / 4 - task.baselines()["trivial"].score) < 0.004


def test_digits_are_those_of_the_data_set() -> None:
    images, labels = tasks.get("digits").arrays(TRAIN)
    held_out, answers = tasks.get("digits").arrays(HELD_OUT)
    assert (images.shape, held_out.shape) == ((1437, 64), (360, 64))
    counts = np.bincount(np.concatenate([labels, answers]))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert (images.max(), images.sum() + held_out.sum()) == (16, 561718)


def test_registry_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown task 'digit'; did you mean 'digits'"):
        tasks.get("digit")
    with pytest.raises(TypeError, match="mqar has no option 'seq_length'; did you mean 'seq_len'"):
        tasks.get("mqar", seq_length=3)
    with pytest.raises(ValueError, match="'mqar' is taken by dsfjax.tasks.mqar.recall.MQARConfig"):
        tasks.register("mqar", tasks.kind("digits"))
    tasks.register("mqar", tasks.kind("mqar"))  # as when a notebook's cell runs twice
    with unchecked(), pytest.raises(TypeError, match="expected a dataclass below Task"):
        tasks.register("mine", int)  # type: ignore[arg-type]


@pytest.mark.parametrize("room", ["training", "guidance", "report", "cli"])
def test_no_file_above_names_a_task(room: str) -> None:
    # "digits" is also a word: only as a whole string, a module or an attribute is it the task.
    names = "|".join(tasks.names())
    pattern = re.compile(rf"""["'.](?:{names})["'.]|\b(?:mqar|MQAR\w*|selective_copying)\b""")
    found = [
        f"{path.relative_to(PACKAGE)}:{i}: {line.strip()}"
        for path in sorted((PACKAGE / room).rglob("*.py"))
        for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []


def test_options_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="num_tokens between 1 and seq_len / 2 = 4, got 5"):
        tasks.get("selective_copying", seq_len=8, num_tokens=5)
    with pytest.raises(ValueError, match="vocab_size of at least 4, got 3"):
        tasks.get("selective_copying", vocab_size=3)


def test_a_config_from_before_tasks_had_names() -> None:
    assert json.loads(json.dumps(tasks.named(tasks.get("mqar")))) == {}
    assert tasks.name_in({"seq_len": 8}) == "mqar"
    assert tasks.named(tasks.get("digits")) == {"name": "digits"}
