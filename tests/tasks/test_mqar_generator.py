"""The device generator has the law of the published one: exact laws, tested by chi-square."""

import inspect
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dsfjax.tasks import Example, mqar

# Seeds are fixed, so a test below this level is wrong for good and not by bad luck.
LEVEL = 1e-3

Draw = Callable[[mqar.MQARConfig, int], Example]


def on_device(config: mqar.MQARConfig, count: int) -> Example:
    return jax.jit(lambda key: mqar.batch(key, config, count))(jax.random.key(11))


def published(config: mqar.MQARConfig, count: int) -> Example:
    inputs, labels = mqar.reference_examples(
        11,
        vocab_size=config.vocab_size,
        num_examples=count,
        input_seq_len=config.seq_len,
        num_kv_pairs=config.num_kv_pairs,
        power_a=config.power_a,
    )
    return mqar.from_labels(inputs, labels)


def parts(batch: Example) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys, values and gaps, each ``(count, n)``, read back from the sequences."""
    inputs, n = np.asarray(batch.inputs), batch.targets.shape[-1]
    gaps = (np.asarray(batch.query_positions) - 2 * n) // 2
    return inputs[:, 0 : 2 * n : 2], inputs[:, 1 : 2 * n : 2], gaps


def successive_law(p: np.ndarray, n: int) -> dict[tuple[int, ...], float]:
    """Probability of every ordered n-tuple drawn one by one, renormalised over those left."""
    law = {}
    for chosen in itertools.permutations(range(p.size), n):
        probability, rest = 1.0, 1.0
        for g in chosen:
            probability *= p[g] / rest
            rest -= p[g]
        law[chosen] = probability
    return law


def p_value(rows: np.ndarray, law: dict[tuple[int, ...], float]) -> float:
    """Chi-square of the ordered tuples in ``rows`` against ``law``."""
    index = {chosen: i for i, chosen in enumerate(law)}
    found = np.bincount([index[tuple(row)] for row in rows.tolist()], minlength=len(index))
    expected = len(rows) * np.array(list(law.values()))
    assert expected.min() > 5
    return float(stats.chisquare(found, expected).pvalue)


def independence(table: np.ndarray) -> float:
    """Chi-square p-value of rows and columns being independent."""
    return stats.chi2_contingency(table).pvalue  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("draw", "count"),
    [pytest.param(on_device, 200_000, id="device"), pytest.param(published, 20_000, id="numpy")],
)
@pytest.mark.parametrize("power_a", [0.01, 2.5])
def test_joint_law_of_the_gaps_in_order(draw: Draw, count: int, power_a: float) -> None:
    config = mqar.MQARConfig(vocab_size=17, seq_len=16, num_kv_pairs=3, power_a=power_a)
    weights = np.array([(g + 1.0) ** (power_a - 1.0) for g in range(5)])
    law = successive_law(weights / weights.sum(), 3)
    assert p_value(parts(draw(config, count))[2], law) > LEVEL


def test_gaps_at_the_size_of_the_paper() -> None:
    """Each place in the order of drawing, against the published generator."""
    config = mqar.MQARConfig()
    mine, theirs = (
        parts(draw(config, count))[2] for draw, count in ((on_device, 200_000), (published, 10_000))
    )
    for place in range(config.num_kv_pairs):
        table = [np.bincount(gaps[:, place], minlength=28) for gaps in (mine, theirs)]
        assert independence(np.array(table)) > LEVEL
    first = np.bincount(mine[:, 0], minlength=28)
    assert stats.chisquare(first, first.sum() * config.gap_probabilities()).pvalue > LEVEL


@pytest.mark.parametrize(
    ("draw", "count"),
    [pytest.param(on_device, 100_000, id="device"), pytest.param(published, 20_000, id="numpy")],
)
def test_keys_and_values_are_uniform_over_ordered_tuples(draw: Draw, count: int) -> None:
    config = mqar.MQARConfig(vocab_size=17, seq_len=16, num_kv_pairs=3)
    keys, values, _ = parts(draw(config, count))
    for tokens, low, size in ((keys, 1, 7), (values, 8, 9)):
        uniform = successive_law(np.full(size, 1 / size), 3)
        assert p_value(tokens - low, uniform) > LEVEL


def test_tokens_at_the_size_of_the_paper_are_uniform() -> None:
    config = mqar.MQARConfig(seq_len=512, num_kv_pairs=64)
    keys, values, _ = parts(on_device(config, 4_000))
    for tokens, low, size in ((keys, 1, 4095), (values, 4096, 4096)):
        for column in (tokens, tokens[:, :8], tokens[:, -8:]):
            found = np.bincount(column.ravel() - low, minlength=size)
            assert found.size == size
            assert stats.chisquare(found).pvalue > LEVEL


def test_keys_values_and_gaps_are_independent() -> None:
    config = mqar.MQARConfig(vocab_size=17, seq_len=16, num_kv_pairs=2)
    keys, values, gaps = parts(on_device(config, 50_000))
    columns = [x[:, place] for x in (keys - 1, values - 8, gaps) for place in (0, 1)]
    for i, j in ((0, 2), (0, 3), (0, 4), (1, 5), (2, 4), (3, 4)):
        table = np.zeros((9, 9), np.int64)
        np.add.at(table, (columns[i], columns[j]), 1)
        table = table[table.any(axis=1)][:, table.any(axis=0)]
        assert independence(table) > LEVEL


@pytest.mark.parametrize(
    "config",
    [
        mqar.MQARConfig(),
        mqar.MQARConfig(seq_len=512, num_kv_pairs=64),
        mqar.MQARConfig(vocab_size=64, seq_len=32, num_kv_pairs=4),
        mqar.MQARConfig(vocab_size=33, seq_len=32, num_kv_pairs=8),
        mqar.MQARConfig(vocab_size=5, seq_len=4, num_kv_pairs=1),
    ],
    ids=str,
)
def test_sequences_are_well_formed(config: mqar.MQARConfig) -> None:
    batch = on_device(config, 500)
    keys, values, gaps = parts(batch)
    half, n = config.vocab_size // 2, config.num_kv_pairs
    for tokens, low, high in (
        (keys, 1, half),
        (values, half, config.vocab_size),
        (gaps, 0, config.num_gaps),
    ):
        assert tokens.min() >= low and tokens.max() < high
        assert (np.diff(np.sort(tokens, axis=1), axis=1) > 0).all()
    positions = np.asarray(batch.query_positions)
    inputs = np.asarray(batch.inputs)
    assert (positions % 2 == 0).all()
    np.testing.assert_array_equal(np.take_along_axis(inputs, positions, 1), keys)
    np.testing.assert_array_equal(batch.targets, values)
    # The rest is filler: 2n tokens of the pairs and n queries, nothing else.
    assert ((inputs != 0).sum(axis=1) == 3 * n).all()
    # The dense labels lead back to the same batch.
    dense = mqar.labels(batch)
    assert ((np.asarray(dense) != mqar.IGNORED).sum(axis=1) == n).all()
    for a, b in zip(mqar.from_labels(inputs, np.asarray(dense)), batch, strict=True):
        np.testing.assert_array_equal(a, b)


def test_jit_vmap_and_a_loop_agree() -> None:
    config = mqar.MQARConfig(seq_len=128, num_kv_pairs=8)
    key = jax.random.key(5)
    looped = [mqar.sample(k, config) for k in jax.random.split(key, 3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *looped)
    jitted = jax.jit(mqar.batch, static_argnums=(1, 2))(key, config, 3)
    for batch in (mqar.batch(key, config, 3), jitted):
        for a, b in zip(batch[:3], stacked[:3], strict=True):
            assert a.dtype == jnp.int32
            np.testing.assert_array_equal(a, b)


def test_precision_mode_changes_nothing() -> None:
    config, key = mqar.MQARConfig(seq_len=128, num_kv_pairs=8), jax.random.key(5)
    wide = mqar.batch(key, config, 4)
    with jax.enable_x64(False):
        narrow = mqar.batch(key, config, 4)
    assert wide.weights is narrow.weights is None
    for a, b in zip(wide[:3], narrow[:3], strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_keys_decide_the_batch() -> None:
    config = mqar.MQARConfig()
    a, b, c = (mqar.batch(jax.random.key(s), config, 2).inputs for s in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()
    assert (a[0] != a[1]).any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_kv_pairs": 17}, r"got 17. Use num_kv_pairs=16 or seq_len=68\."),
        ({"num_kv_pairs": 0}, r"got 0. Use num_kv_pairs=1\."),
        ({"seq_len": 63}, r"even seq_len .* got 63. Use seq_len=64\."),
        ({"seq_len": 2}, r"got 2. Use seq_len=4\."),
        ({"vocab_size": 64}, r"vocab_size > seq_len = 64, got 64. Use vocab_size=65"),
        ({"power_a": 0.0}, "finite power_a > 0, got 0.0"),
        ({"power_a": float("inf")}, "finite power_a > 0, got inf"),
    ],
)
def test_impossible_sizes_name_the_nearest_choice(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mqar.MQARConfig(**fields)


def test_a_size_that_is_no_number_is_refused() -> None:
    # Past the type check of the fields, which is on under pytest only.
    config = mqar.MQARConfig()
    for name, value in (("seq_len", 64.0), ("num_kv_pairs", True), ("power_a", "0.01")):
        object.__setattr__(config, name, value)
        with pytest.raises(TypeError, match=f"{name}, got {value!r}"):
            inspect.unwrap(mqar.MQARConfig.__post_init__)(config)
        object.__setattr__(config, name, getattr(mqar.MQARConfig(), name))


@given(st.integers(-3, 40), st.integers(-3, 20), st.integers(-3, 60))
def test_the_remedy_in_the_message_works(seq_len: int, pairs: int, vocab: int) -> None:
    """Following the messages, one field at a time, ends at a config that constructs."""
    fields = {"seq_len": seq_len, "num_kv_pairs": pairs, "vocab_size": vocab}
    for _ in range(3):
        try:
            mqar.MQARConfig(**fields)
            return
        except ValueError as error:
            name, value = str(error).split("Use ")[1].split()[0].rstrip(".").split("=")
            fields[name] = int(value)
    mqar.MQARConfig(**fields)
