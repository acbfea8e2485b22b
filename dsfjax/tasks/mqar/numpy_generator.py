"""The published data sets, repeated from the same random numbers."""

import numpy as np
from jaxtyping import Int64

from dsfjax.tasks.mqar.examples import IGNORED
from dsfjax.tasks.mqar.recall import MQARConfig


def reference_examples(
    seed: int,
    *,
    vocab_size: int,
    num_examples: int,
    input_seq_len: int,
    num_kv_pairs: int,
    power_a: float = 0.01,
    random_non_queries: bool = False,
) -> tuple[Int64[np.ndarray, "n l"], Int64[np.ndarray, "n l"]]:
    """The examples that the official generator makes from ``seed``, bit for bit.

    All keys are drawn first, then all values, then all gaps, each example in turn from one MT19937
    stream. NumPy's global generator is neither read nor moved.

    Args:
        seed: Seed of the data set, 0 <= seed < 2^32; see :func:`segment_seeds`.
        vocab_size: As in :class:`~dsfjax.tasks.mqar.MQARConfig`, as are the next four.
        num_examples: Number of sequences.
        input_seq_len: ``seq_len`` of the config.
        num_kv_pairs: Pairs and queries per sequence.
        power_a: Exponent of the power law of the gaps.
        random_non_queries: The official generator can fill the gaps with random tokens. They come
            from PyTorch's generator, so this must be False.

    Returns:
        ``(inputs, labels)``, both ``(num_examples, input_seq_len)`` int64, with label -100 where
        nothing is asked.

    Raises:
        ValueError: If the sizes do not fit together, or ``random_non_queries`` is set.

    Numerics:
        One permutation of the whole vocabulary per example, as the stream demands: about 0.15 ms
        per example with a vocabulary of 8192.

    Examples:
        >>> inputs, labels = reference_examples(
        ...     0, vocab_size=32, num_examples=1, input_seq_len=8, num_kv_pairs=2)
        >>> inputs[0].tolist()
        [2, 18, 7, 30, 2, 0, 7, 0]
        >>> labels[0].tolist()
        [-100, -100, -100, -100, 18, -100, 30, -100]
    """
    if random_non_queries:
        raise ValueError(
            "reference_examples: expected random_non_queries=False, got True. The official filler "
            "tokens are drawn by PyTorch's generator, which NumPy cannot repeat; the configs of "
            "the paper do not use them."
        )
    if num_examples < 1:
        raise ValueError(f"reference_examples: expected num_examples >= 1, got {num_examples}.")
    config = MQARConfig(vocab_size, input_seq_len, num_kv_pairs, power_a)
    random = np.random.RandomState(seed)
    first_value = vocab_size // 2
    keys, values, gaps = np.empty((3, num_examples, num_kv_pairs), np.int64)
    for row in keys:
        row[:] = random.permutation(first_value - 1)[:num_kv_pairs] + 1
    for row in values:
        row[:] = random.permutation(vocab_size - first_value)[:num_kv_pairs] + first_value
    probabilities = config.gap_probabilities()
    for row in gaps:
        row[:] = random.choice(config.num_gaps, num_kv_pairs, replace=False, p=probabilities)

    inputs = np.zeros((num_examples, input_seq_len), np.int64)
    inputs[:, 0 : 2 * num_kv_pairs : 2] = keys
    inputs[:, 1 : 2 * num_kv_pairs : 2] = values
    labels = np.full_like(inputs, IGNORED)
    positions = 2 * num_kv_pairs + 2 * gaps
    np.put_along_axis(inputs, positions, keys, axis=1)
    np.put_along_axis(labels, positions, values, axis=1)
    return inputs, labels


def segment_seeds(
    config_seed: int, *, num_train: int = 1, num_test: int = 1
) -> tuple[Int64[np.ndarray, " train"], Int64[np.ndarray, " test"]]:
    """Seeds of the data sets of one official configuration, to give to :func:`reference_examples`.

    Args:
        config_seed: The ``seed`` of the configuration's data section; 0 throughout the paper.
        num_train: Number of training sets.
        num_test: Number of test sets.

    Returns:
        Seeds in [0, 2^31) for the training sets and in [2^31, 2^32) for the test sets, int64.

    Examples:
        >>> train, test = segment_seeds(0)
        >>> int(train[0]), int(test[0])
        (209652396, 2546248239)
    """
    random = np.random.RandomState(config_seed)
    train = random.randint(0, 2**31, size=num_train, dtype=np.int64)
    test = random.randint(2**31, 2**32, size=num_test, dtype=np.int64)
    return train, test
