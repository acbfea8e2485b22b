"""The published generator, bit for bit."""

import inspect
from collections.abc import Callable

import numpy as np
import pytest

from dsfjax.tasks import mqar
from tests import goldens

REPEATABLE = [
    name
    for name in goldens.names("mqar_L*")
    if not goldens.load(name).meta["kwargs"]["random_non_queries"]
]


def test_three_of_the_four_golden_files_are_repeatable() -> None:
    assert REPEATABLE == ["mqar_L128_kv8", "mqar_L512_kv64", "mqar_L64_kv4"]


@pytest.mark.parametrize("name", REPEATABLE)
def test_examples_are_the_official_ones(
    name: str, golden: Callable[[str], goldens.Golden], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = golden(name)
    streams = []

    class Recorded(np.random.RandomState):
        def __init__(self, seed: int) -> None:
            super().__init__(seed)
            streams.append(self)

    monkeypatch.setattr(np.random, "RandomState", Recorded)
    inputs, labels = mqar.reference_examples(file.meta["seed"], **file.meta["kwargs"])
    for got, expected in ((inputs, file["inputs"]), (labels, file["labels"])):
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)
    # Where the stream stands afterwards: not a number more or less was drawn.
    (stream,) = streams
    after = [stream.randint(0, 2**31 - 1) for _ in range(2)]
    np.testing.assert_array_equal(after, file["next_uint32_after"])


def test_global_numpy_generator_is_left_alone() -> None:
    state = np.random.get_state(legacy=False)
    mqar.reference_examples(3, vocab_size=32, num_examples=2, input_seq_len=8, num_kv_pairs=2)
    mqar.segment_seeds(3)
    after = np.random.get_state(legacy=False)
    assert isinstance(state, dict) and isinstance(after, dict)
    np.testing.assert_array_equal(state["state"]["key"], after["state"]["key"])
    assert state["state"]["pos"] == after["state"]["pos"]


def test_segment_seeds_are_the_official_ones(golden: Callable[[str], goldens.Golden]) -> None:
    file = golden("mqar_segment_seeds")
    train, test = mqar.segment_seeds(file.meta["kwargs"]["config_seed"])
    np.testing.assert_array_equal(train, file["train"])
    np.testing.assert_array_equal(test, file["test"])


def test_random_non_queries_is_refused() -> None:
    with pytest.raises(ValueError, match="PyTorch's generator"):
        mqar.reference_examples(
            0,
            vocab_size=32,
            num_examples=1,
            input_seq_len=8,
            num_kv_pairs=2,
            random_non_queries=True,
        )


def test_no_examples_is_refused() -> None:
    with pytest.raises(ValueError, match="num_examples >= 1, got 0"):
        mqar.reference_examples(0, vocab_size=32, num_examples=0, input_seq_len=8, num_kv_pairs=2)


@pytest.mark.parametrize("name", goldens.names("mqar_L*"))
def test_from_labels_and_back(name: str, golden: Callable[[str], goldens.Golden]) -> None:
    file = golden(name)
    batch = mqar.from_labels(file["inputs"], file["labels"])
    n = file.meta["kwargs"]["num_kv_pairs"]
    np.testing.assert_array_equal(batch.inputs, file["inputs"])
    np.testing.assert_array_equal(mqar.labels(batch), file["labels"])
    # Query j asks for pair j.
    asked = np.take_along_axis(file["inputs"], np.asarray(batch.query_positions), axis=-1)
    np.testing.assert_array_equal(asked, file["inputs"][:, 0 : 2 * n : 2])
    np.testing.assert_array_equal(batch.targets, file["inputs"][:, 1 : 2 * n : 2])
    assert {x.dtype.name for x in batch[:3]} == {"int32"}


def test_from_labels_keeps_batch_axes(golden: Callable[[str], goldens.Golden]) -> None:
    file = golden("mqar_L64_kv4")
    flat = mqar.from_labels(file["inputs"], file["labels"])
    folded = mqar.from_labels(file["inputs"].reshape(2, 4, 64), file["labels"].reshape(2, 4, 64))
    for a, b in zip(flat[:3], folded[:3], strict=True):
        np.testing.assert_array_equal(a.reshape(b.shape), b)
    one = mqar.from_labels(file["inputs"][0], file["labels"][0])
    np.testing.assert_array_equal(one.query_positions, flat.query_positions[0])


def test_from_labels_refuses_what_is_no_recall() -> None:
    inputs, labels = mqar.reference_examples(
        0, vocab_size=32, num_examples=2, input_seq_len=8, num_kv_pairs=2
    )
    with pytest.raises(ValueError, match="one shape"):
        # Past the shape check, which is on under pytest only.
        inspect.unwrap(mqar.from_labels)(inputs, labels[:, :-1])
    with pytest.raises(ValueError, match=r"same number of queries.*got \[0\]"):
        mqar.from_labels(inputs, np.full_like(labels, mqar.IGNORED))
    uneven = labels.copy()
    uneven[0] = mqar.IGNORED
    with pytest.raises(ValueError, match=r"got \[0, 2\]"):
        mqar.from_labels(inputs, uneven)
    with pytest.raises(ValueError, match="belong together"):
        mqar.from_labels(inputs[::-1], labels)
    wrong = labels + (labels != mqar.IGNORED)
    with pytest.raises(ValueError, match="belong together"):
        mqar.from_labels(inputs, wrong)
