"""MAD's six tasks, each read back from its sequences by NumPy."""

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dsfjax import nn, tasks
from dsfjax.tasks import HELD_OUT, TRAIN, examples, mad
from dsfjax.training.config import fitted

LEVEL = 1e-3


def drawn(task: tasks.Task, split: str = HELD_OUT, count: int = 400) -> Any:
    batch = jax.jit(lambda: examples(task, split, count, jax.random.key(3)))()
    return jax.tree.map(np.asarray, batch)


def both(task: tasks.Task, count: int = 400) -> tuple[Any, Any]:
    """Training and held-out examples, from one compilation."""
    key = jax.random.key(3)

    def draw() -> Any:
        return tuple(examples(task, split, count, key) for split in (TRAIN, HELD_OUT))

    return jax.tree.map(np.asarray, jax.jit(draw)())


@pytest.mark.parametrize(
    "task",
    [
        mad.InContextRecall(vocab_size=10, seq_len=24),
        mad.NoisyRecall(vocab_size=15, seq_len=24, noise_vocab_size=5, frac_noise=0.4),
    ],
    ids=["plain", "noisy"],
)
def test_in_context_recall(task: mad.InContextRecall) -> None:
    keys, noise = task.num_keys, task.vocab_size - task.noise_vocab_size
    seen, judged = both(task)
    assert (seen.weights == 1).all()
    shares, kinds = [], Counter()
    for batch in (seen, judged):
        np.testing.assert_array_equal(batch.targets, batch.inputs[:, 1:])
        for tokens, weights in zip(batch.inputs, batch.weights, strict=True):
            known, asked = {}, []
            for place in range(0, 24, 2):
                key, value = tokens[place : place + 2].tolist()
                if key >= noise:
                    assert value >= noise and place < 22
                    continue
                assert key < keys <= value < noise
                kinds[key] += place < 22
                if key in known:
                    asked.append(place)
                assert known.setdefault(key, value) == value
            assert asked[-1] == 22
            if batch is judged:
                assert np.flatnonzero(weights).tolist() == asked
            shares.append(np.mean(tokens[:22:2] >= noise))
    # One of eleven pairs is never noise, and the last one neither.
    assert abs(np.mean(shares) - task.frac_noise * 10 / 11) < 0.02
    assert stats.chisquare(list(kinds.values())).pvalue > LEVEL


def test_fuzzy_recall() -> None:
    """The tokens of keys and of values differ, so there is one way to read a sequence."""
    task = mad.FuzzyRecall(vocab_size=12, seq_len=40)
    filler, keys = 11, task.num_keys
    sizes: dict[str, Counter[int]] = {"key": Counter(), "value": Counter()}
    for batch, is_judged in zip(both(task, 500), (False, True), strict=True):
        for inputs, targets, weights in zip(
            batch.inputs, batch.targets, batch.weights, strict=True
        ):
            np.testing.assert_array_equal(inputs[1:], targets[:-1])
            tokens = [*inputs.tolist(), int(targets[-1])]
            start = next(i for i, token in enumerate(tokens) if token != filler)
            assert filler not in tokens[start:]
            pairs, place = [], start
            while place < len(tokens):
                pair = []
                for is_key in (True, False):
                    end = place
                    while end < len(tokens) and (tokens[end] < keys) == is_key:
                        end += 1
                    motif = tuple(tokens[place:end])
                    assert 1 <= len(motif) <= 3 and len(set(motif)) == len(motif)
                    pair.append(motif)
                    place = end
                pairs.append((*pair, place))
            known, asked = {}, set()
            for key, value, end in pairs:
                if key in known:
                    asked |= set(range(end - len(value), end))
                elif end < len(tokens) and is_judged:
                    sizes["value"][len(value)] += 1
                elif end < len(tokens):
                    sizes["key"][len(key)] += 1
                assert known.setdefault(key, value) == value
            assert len(tokens) - 1 in asked  # the last key has been shown
            # There would not have been room for a pair of the largest size more.
            assert place - start + 2 * 6 > len(tokens) - 1
            if is_judged:
                assert {len(key) for key, *_ in pairs} == {3}
                assert set(np.flatnonzero(weights) + 1) == asked
            else:
                assert (weights == 1).all()
    # Sizes are equally likely; of short keys there are fewer that are new.
    assert set(sizes["key"]) == {1, 2, 3}
    counts = np.array([sizes["value"][size] for size in (1, 2, 3)])
    assert (abs(counts / counts.sum() - 1 / 3) < 0.06).all()


def test_selective_copying() -> None:
    task = mad.BlankCopying(vocab_size=8, seq_len=24, num_tokens_to_copy=5)
    batch = drawn(task)
    first = []
    for tokens, targets in zip(batch.inputs, batch.targets, strict=True):
        assert tokens[18] == 7 and (tokens[19:] == 6).all()
        shown = tokens[:18][tokens[:18] < 6]
        assert shown.tolist() == targets.tolist() and tokens[17] == shown[-1]
        first.append(np.flatnonzero(tokens < 6)[0])
    # Each of 13 blanks goes before one of five tokens.
    counts = np.bincount(first, minlength=14)
    law = len(first) * stats.binom.pmf(np.arange(14), 13, 1 / 5)
    tail = slice(7, None)
    counts, law = (np.append(x[:7], x[tail].sum()) for x in (counts, law))
    assert stats.chisquare(counts, law).pvalue > LEVEL


def test_memorization() -> None:
    task = mad.Memorization(vocab_size=20, seq_len=12)
    values = task.values()
    assert len(values) == 9 == len(set(values.tolist())) and values.min() >= 9
    assert values.max() < 19
    batch = drawn(task)
    assert (batch.inputs[:, 1::2] == 19).all() and (batch.query_positions % 2 == 1).all()
    np.testing.assert_array_equal(batch.targets, values[batch.inputs[:, ::2]])
    assert stats.chisquare(np.bincount(batch.inputs[:, ::2].ravel(), minlength=9)).pvalue > LEVEL
    assert not np.array_equal(values, mad.Memorization(vocab_size=20, map_seed=1).values())


def test_compression_is_decoded_from_the_last_features_alone() -> None:
    task = mad.Compression(vocab_size=6, seq_len=7)
    config = nn.ModelConfig("linear_attention", 6, d_model=5, num_layers=1)
    model = nn.build(fitted(config, task))
    params = jax.jit(model.init)(jax.random.key(0))
    features = jax.random.normal(jax.random.key(1), (7, 5))
    logits = jax.jit(model.head)(params, features)

    own = jax.tree.map(np.asarray, params["decoder"])

    def normed(x: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
        x = x - x.mean(axis=1, keepdims=True)
        return x / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5) * weights["scale"] + weights["bias"]

    angle = np.arange(7)[:, None] / np.array([1.0, 10_000.0])
    x = np.asarray(features[-1]) + np.hstack([np.sin(angle), np.cos(angle), np.zeros((7, 1))])
    for i in range(3):
        linear = own["maps"][f"map_{i}"]
        x = normed(x, own["norms"][f"norm_{i}"]) @ linear["kernel"] + linear["bias"]
        x = x * stats.norm.cdf(x) if i < 2 else x
    np.testing.assert_allclose(logits, x, rtol=1e-9, atol=1e-12)
    measured = task.measure(logits[None, None], jnp.arange(7)[None, None] % 6)
    assert measured["loss"].shape == measured["accuracy"].shape == (1, 1)
    with pytest.raises(ValueError, match="a decoder has no next token"):
        model.generate(params, [1, 2], 3)
    with pytest.raises(ValueError, match="'decoder' needs num_decoded > 0"):
        nn.ModelConfig("ssd", 6, num_decoded=7)
    with pytest.raises(ValueError, match="expected factor 1, got 2"):
        task.lengthened(2)


def test_the_settings_of_the_benchmark() -> None:
    found = mad.difficulties()
    assert Counter(tasks.name_of(one.task) for one in found) == {
        "mad_in_context_recall": 11,
        "mad_fuzzy_recall": 11,
        "mad_noisy_recall": 14,
        "mad_selective_copying": 13,
        "mad_compression": 11,
        "mad_memorization": 6,
    }
    assert len(set(found)) == 66
    for one in found:
        base = type(one.task)()
        differ = [
            name
            for name in tasks.options(tasks.name_of(one.task))
            if getattr(one.task, name) != getattr(base, name)
        ]
        assert differ == ([one.changed] if one.changed not in ("", "train_examples") else [])
    fewer = [one.train_examples for one in found if one.changed == "train_examples"]
    assert sorted(set(fewer)) == [800, 1600, 3200, 6400] and len(fewer) == 20


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mad.InContextRecall(seq_len=7), "even seq_len .* Use seq_len=8"),
        (lambda: mad.InContextRecall(frac_noise=0.5), "noise tokens where it is not 0"),
        (lambda: mad.NoisyRecall(vocab_size=18), "at least 4 more than noise_vocab_size"),
        (lambda: mad.FuzzyRecall(vocab_size=6), "motifs of distinct ones"),
        (lambda: mad.FuzzyRecall(seq_len=17), "Use seq_len=18"),
        (lambda: mad.BlankCopying(seq_len=33), "between 1 and .* = 15, got 16. Use seq_len=34"),
        (lambda: mad.Memorization(seq_len=3), "Use seq_len=4"),
        (lambda: mad.Compression(vocab_size=2), "vocab_size of at least 3"),
    ],
)
def test_what_cannot_be(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
