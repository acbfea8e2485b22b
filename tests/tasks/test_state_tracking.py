"""State tracking: every answer against an evaluator of its own, the laws of lengths and groups."""

import dataclasses
from functools import reduce
from itertools import product
from typing import Any

import jax
import numpy as np
import pytest

from dsfjax import tasks
from dsfjax.tasks import HELD_OUT, Example, examples
from dsfjax.tasks.state_tracking import ModularArithmetic, Parity, WordProblem, group_table


def drawn(task: tasks.Task, count: int = 600) -> Any:
    batch = jax.jit(lambda: examples(task, HELD_OUT, count, jax.random.key(7)))()
    return jax.tree.map(np.asarray, batch)


def assert_lengths(found: np.ndarray, expected: range) -> None:
    """Each of the lengths occurs, about as often as any other."""
    counts = np.array([(found == length).sum() for length in expected])
    assert counts.sum() == len(found)
    mean = len(found) / len(expected)
    assert (abs(counts - mean) < 5 * mean**0.5).all()


@pytest.mark.parametrize(
    ("name", "order", "commutes"),
    [
        ("S3", 6, False),
        ("A5", 60, False),
        ("S5", 120, False),
        ("Z60", 60, True),
        ("A4xZ5", 60, False),
        ("Z2", 2, True),
    ],
)
def test_tables_are_groups(name: str, order: int, commutes: bool) -> None:
    table = group_table(name)
    assert table.shape == (order, order)
    every = np.arange(order)
    np.testing.assert_array_equal(table[0], every)  # the identity, from both sides
    np.testing.assert_array_equal(table[:, 0], every)
    # Closed, and every equation has one solution, so there are inverses.
    np.testing.assert_array_equal(np.sort(table, axis=0), np.tile(every[:, None], order))
    np.testing.assert_array_equal(np.sort(table, axis=1), np.tile(every, (order, 1)))
    # (g h) k = g (h k), for all.
    np.testing.assert_array_equal(table[table], table[:, table])
    assert (table == table.T).all() == commutes


def test_the_groups_are_those_of_their_names() -> None:
    """Their orders of elements tell groups of one size apart: A5 is simple, Z60 has a generator."""

    def orders(name: str) -> dict[int, int]:
        table, found = group_table(name), []
        for g in range(len(table)):
            power, n = g, 1
            while power:
                power, n = table[power, g], n + 1
            found.append(n)
        return dict(zip(*map(np.ndarray.tolist, np.unique(found, return_counts=True)), strict=True))

    assert orders("A5") == {1: 1, 2: 15, 3: 20, 5: 24}
    assert orders("S3") == {1: 1, 2: 3, 3: 2}
    assert orders("S5") == {1: 1, 2: 25, 3: 20, 4: 30, 5: 24, 6: 20}
    assert orders("Z60")[60] == 16
    assert orders("A4xZ5") == {1: 1, 2: 3, 3: 8, 5: 4, 10: 12, 15: 32}


@pytest.mark.parametrize("group", ["S3", "A5"])
def test_targets_are_prefix_products(group: str) -> None:
    task = WordProblem(seq_len=20, min_length=3, group=group)
    batch, table = drawn(task), group_table(group)
    lengths = (batch.inputs < task.order).sum(axis=1)
    assert_lengths(lengths, range(3, 21))
    for word, targets, weights, n in zip(
        batch.inputs, batch.targets, batch.weights, lengths, strict=True
    ):
        assert (word[n:] == task.order).all()
        products = [reduce(lambda g, h: table[g, h], word[: t + 1]) for t in range(n)]
        assert products == targets[:n].tolist()
        assert weights.tolist() == [1] * n + [0] * (20 - n)
    # The elements are equally frequent.
    counts = np.bincount(batch.inputs[batch.inputs < task.order], minlength=task.order)
    assert (abs(counts - counts.mean()) < 5 * counts.mean() ** 0.5).all()
    repeated = batch.weights * (batch.targets == batch.inputs)
    assert abs(repeated.sum() / batch.weights.sum() - task.baselines()["trivial"].score) < 0.02


def test_parity() -> None:
    task = Parity(seq_len=20)
    batch = drawn(task)
    assert_lengths(batch.query_positions[:, 0] + 1, range(3, 21))
    for bits, last, target in zip(
        batch.inputs, batch.query_positions[:, 0], batch.targets[:, 0], strict=True
    ):
        assert bits[: last + 1].sum() % 2 == target
        assert set(bits[: last + 1]) <= {0, 1} and (bits[last + 1 :] == 2).all()
    assert abs(batch.targets.mean() - 0.5) < 0.1


def value_of(text: str, modulus: int) -> int:
    assert text.endswith("=")
    return eval(text[:-1]) % modulus


@pytest.mark.parametrize("brackets", [False, True])
def test_expressions_have_the_value_that_python_gives(brackets: bool) -> None:
    task = ModularArithmetic(seq_len=40, brackets=brackets)
    batch = drawn(task)
    texts = [task.text(jax.tree.map(lambda leaf, i=i: leaf[i], batch)) for i in range(600)]
    lengths = np.array([len(text) for text in texts])
    np.testing.assert_array_equal(batch.query_positions[:, 0], lengths - 1)
    assert_lengths(lengths, range(3, 41) if brackets else range(4, 41, 2))
    for text, target in zip(texts, batch.targets[:, 0], strict=True):
        assert value_of(text, 5) == target
        assert ("*" in text) <= (not brackets) and ("(" in text) <= brackets
    often = task.trivial().score
    assert abs(max(np.bincount(batch.targets[:, 0], minlength=5)) / 600 - often) < 0.06


def test_brackets_follow_the_law_of_splitting() -> None:
    """All expressions of seven tokens: (d±-dd) and so on, with the probabilities of the law."""
    task = ModularArithmetic(seq_len=10, min_length=10, brackets=True, modulus=3)
    batch = drawn(task, 4000)
    shapes: dict[str, int] = {}
    for row in batch.inputs:
        text = task.text(Example(row, None, None))  # pyright: ignore[reportArgumentType]
        assert value_of(text, 3) in range(3)
        shape = text[:-1].translate(str.maketrans("012+", "ddd-"))
        shapes[shape] = shapes.get(shape, 0) + 1
    # Nine tokens: the left part has 1, 2, 3, 4 or 5 tokens, the right one 5, 4, 3, 2 or 1; five are
    # (d-d), one way.
    parts = {1: "d", 2: "-d", 3: "(d)", 4: "(-d)", 5: "(d-d)"}
    expected = {f"({parts[left]}-{parts[6 - left]})" for left in range(1, 6)}
    assert set(shapes) == expected
    assert all(abs(count - 800) < 5 * 800**0.5 for count in shapes.values())


def test_the_most_frequent_answer_without_brackets() -> None:
    """Against all expressions of one and three digits, which there are few of."""
    task = ModularArithmetic(seq_len=6, min_length=2, modulus=3)
    law = np.full(3, 1 / 3) / 3  # one digit
    for terms in (2, 3):
        every = [
            "".join(a + b for a, b in zip(digits, (*signs, ""), strict=True))
            for digits in product("012", repeat=terms)
            for signs in product("+-*", repeat=terms - 1)
        ]
        counts = np.bincount([eval(text) % 3 for text in every], minlength=3)
        law += counts / len(every) / 3
    assert abs(task.trivial().score - law.max()) < 1e-12


def test_longer_sequences_have_their_length() -> None:
    task = WordProblem(seq_len=8)
    assert task.lengthened(1) == task
    longer: Any = task.lengthened(4)
    assert (longer.seq_len, longer.min_length, longer.asked_from) == (32, 32, 16)
    batch = drawn(longer, 4)
    assert batch.targets.shape == (4, 16) and (batch.weights == 1).all()
    assert longer.baselines()["trivial"].score == pytest.approx(1 / 6)
    assert ModularArithmetic(seq_len=12).lengthened(2).lengths(2) == range(24, 25, 2)
    assert tasks.mqar.MQARConfig().lengthened(2) == tasks.get("mqar", seq_len=128)


def test_what_cannot_be() -> None:
    for name in ("Q8", "S7", "Z721", "S5xS5", "S", "A5x"):
        with pytest.raises(ValueError, match=f"of at most 720 elements, got '{name}'"):
            WordProblem(group=name)
    with pytest.raises(ValueError, match="min_length between 2 and seq_len = 8, got 9"):
        Parity(seq_len=8, min_length=9)
    with pytest.raises(ValueError, match="even length between .* use seq_len=10"):
        ModularArithmetic(seq_len=9, min_length=9)
    with pytest.raises(ValueError, match="asked_from from 0 to min_length - 1 = 2, got 3"):
        WordProblem(asked_from=3)

    @dataclasses.dataclass(frozen=True)
    class Fixed(tasks.Generated):
        seq_len = 4

        def sample(self, key):
            raise NotImplementedError

    with pytest.raises(ValueError, match=r"Fixed: .* write lengthened\(factor\)"):
        Fixed().lengthened(2)
