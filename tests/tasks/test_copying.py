"""Copying, read back by NumPy, and random automata, walked again step by step."""

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dsfjax.tasks import HELD_OUT, examples
from dsfjax.tasks.automata import RandomAutomata
from dsfjax.tasks.copying import Copying

LEVEL = 1e-3


def test_copies() -> None:
    task = Copying(num_letters=6, num_tokens=7, min_tokens=3)
    batch = jax.jit(lambda: examples(task, HELD_OUT, 600, jax.random.key(1)))()
    batch: Any = jax.tree.map(np.asarray, batch)
    sizes, letters, right, asked = Counter(), Counter(), 0.0, 0.0
    for tokens, places, targets, weights, length in zip(
        batch.inputs, batch.query_positions, batch.targets, batch.weights, batch.length, strict=True
    ):
        n = tokens.tolist().index(7) - 1
        string = tokens[1 : n + 1]
        assert tokens[0] == 6 and string.max() < 6
        assert tokens[n + 2 : 2 * n + 2].tolist() == string.tolist()
        assert (tokens[2 * n + 2 :] == 8).all() and length == 2 * n + 2
        counts = weights > 0
        assert places[counts].tolist() == list(range(n + 1, 2 * n + 2))
        assert targets[counts].tolist() == [*string, 7]
        # Each asks for the token that follows it; the separator ends the copy, too.
        assert [tokens[t + 1] for t in places[:n]] == targets[:n].tolist()
        sizes[n] += 1
        letters.update(string.tolist())
        right, asked = right + np.bincount(string).max(), asked + n + 1
    assert set(sizes) == set(range(3, 8))
    for counts in (sizes, letters):
        assert stats.chisquare(list(counts.values())).pvalue > LEVEL
    assert abs(right / asked - task.baselines()["trivial"].score) < 0.01
    longer = task.lengthened(4)
    assert (longer.num_tokens, longer.min_tokens, longer.seq_len) == (28, 28, 58)
    assert longer.vocab_size == task.vocab_size and task.lengthened(1) == task


def test_automata() -> None:
    task = RandomAutomata(
        seq_len=60, vocab_size=9, max_nodes=6, max_edges=3, max_words=6, min_words=2, max_word=12
    )
    count, separator, filler = 400, 7, 8

    def draw() -> tuple[Any, Any]:
        key = jax.random.key(2)
        keys = jax.vmap(lambda i: task.held_out(key, i))(np.arange(count))
        return jax.vmap(task.automaton)(keys), examples(task, HELD_OUT, count, key)

    automata, batch = jax.tree.map(np.asarray, jax.jit(draw)())
    words, cut, edges, degrees = Counter(), 0, Counter(), Counter()
    for i in range(count):
        own = jax.tree.map(lambda leaf, i=i: leaf[i], automata)
        tokens, answers, weights = batch.inputs[i], batch.targets[i], batch.weights[i]
        length = int(batch.length[i])
        assert (tokens[length:] == filler).all()
        node, size, sizes = 0, 0, []
        for t in range(length):
            d = own.degrees[node]
            degrees[int(d)] += t == 0
            symbols, targets = own.symbols[node, :d].tolist(), own.targets[node, :d].tolist()
            assert len(set(symbols)) == len(set(targets)) == d and node not in targets
            if t:
                assert weights[t - 1] == (tokens[t] != separator)
                assert answers[t - 1, 0] == tokens[t]
                assert set(answers[t - 1, 1:].tolist()) == set(symbols)
            if tokens[t] == separator:
                node, sizes, size = 0, [*sizes, size], 0
                continue
            taken = symbols.index(tokens[t])
            edges[taken] += d == 3
            node, size = targets[taken], size + 1
        assert (weights[max(length - 1, 0) :] == 0).all()
        cut += length == 60
        if length < 60:
            sizes.append(size)
            assert 2 <= len(sizes) <= 6 and 1 <= min(sizes) and max(sizes) <= 12
            words.update(sizes)
    assert 0 < cut < count / 2 and set(words) == set(range(1, 13))
    assert stats.chisquare([edges[i] for i in range(3)]).pvalue > LEVEL
    assert stats.chisquare([degrees[d] for d in (1, 2, 3)]).pvalue > LEVEL


def test_an_allowed_symbol_is_right() -> None:
    outputs = jnp.eye(5)[jnp.arange(3)]
    targets = jnp.array([[0, 0, 3, 0], [3, 1, 3, 1], [4, 4, 4, 4]])
    found = RandomAutomata().measure(outputs, targets)
    assert found["accuracy"].tolist() == [True, True, False]
    expected = np.log(np.e + 4) - np.array([1, 0, 0])
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-12)


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="min_tokens between 1 and num_tokens = 20, got 30"):
        Copying(min_tokens=30)
    with pytest.raises(ValueError, match="at least 2 letters, got 1"):
        Copying(num_letters=1)
    with pytest.raises(ValueError, match="Use max_nodes=4"):
        RandomAutomata(max_nodes=3)
    with pytest.raises(ValueError, match=r"at least max_edges \+ 3 = 6, got 5"):
        RandomAutomata(vocab_size=5)
    with pytest.raises(ValueError, match="1 <= min_words <= max_words"):
        RandomAutomata(min_words=30)
