"""Which rows of a data set train and which are held out, and what simple answers reach on them."""

import functools

import numpy as np
from jaxtyping import Int, Integer, Num

TEST, VALIDATION = "test", "validation"
"""What models may be judged on: the test split, or a part of the training split."""

_FRACTION, _SEED = 0.1, 42  # for validation, in the splits of S4 and S5


@functools.lru_cache(maxsize=16)
def permutation(seed: int, size: int) -> Int[np.ndarray, " size"]:
    """``torch.randperm(size)`` of a CPU generator with this seed, without PyTorch.

    Both libraries seed the Mersenne Twister in the same way; PyTorch shuffles from the front, with
    a remainder of 32 bits. So the splits are those of published results.

    Args:
        seed: The seed.
        size: Number of rows, below 2^31.

    Returns:
        The permutation, read-only.

    Example:
        >>> permutation(42, 10).tolist()
        [2, 6, 1, 8, 4, 5, 0, 9, 3, 7]
    """
    bits = np.random.RandomState(seed).randint(0, 2**32, size=size, dtype=np.uint32)
    order = list(range(size))
    for i, ahead in enumerate((bits.astype(np.int64) % np.arange(size, 0, -1)).tolist()):
        order[i], order[i + ahead] = order[i + ahead], order[i]
    found = np.array(order)
    found.flags.writeable = False
    return found


def divided(size: int) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " validation"]]:
    """The rows that train and those for validation: a tenth, drawn with seed 42 as in S4 and S5.

    Args:
        size: Rows of the training split of the files.

    Example:
        >>> [len(rows) for rows in divided(50_000)]
        [45000, 5000]
    """
    order, first = permutation(_SEED, size), int(size * (1 - _FRACTION))
    return order[:first], order[first:]


def rows_of(
    held_out: bool, judged_on: str, train: int, test: int, *, apart: bool = False
) -> tuple[str, Int[np.ndarray, " rows"]]:
    """The part of the files that a split of a task comes from, and its rows there.

    Held-out rows are shuffled once and for all: files are often sorted by class, and an evaluation
    may take the first of them only.

    Args:
        held_out: Whether the held-out split is meant.
        judged_on: `TEST` or `VALIDATION`.
        train: Rows of the training part.
        test: Rows of the test part.
        apart: Whether the rows for validation never train, as where a benchmark divides its data
            in three.

    Returns:
        "train" or "test", and the rows.

    Example:
        >>> part, rows = rows_of(True, "validation", train=50, test=10)
        >>> part, len(rows)
        ('train', 5)
    """
    if held_out and judged_on == TEST:
        return "test", permutation(0, test)
    if not held_out and judged_on == TEST and not apart:
        return "train", np.arange(train)
    return "train", divided(train)[held_out]


def most_frequent(
    known: Integer[np.ndarray, " m"], answers: Integer[np.ndarray, " n"]
) -> tuple[int, float]:
    """The most frequent class of the training rows, and the accuracy of always naming it.

    Args:
        known: Classes of the training rows.
        answers: Classes of the held-out rows.

    Example:
        >>> most_frequent(np.array([2, 2, 1]), np.array([2, 1, 2, 0]))
        (2, 0.5)
    """
    usual = int(np.bincount(known).argmax())
    return usual, float((answers == usual).mean())


def least_squares(
    seen: Num[np.ndarray, "m d"],
    labels: Integer[np.ndarray, " m"],
    held_out: Num[np.ndarray, "n d"],
    answers: Integer[np.ndarray, " n"],
) -> float:
    """Accuracy of a linear map of whole inputs, fitted to the classes by least squares.

    Columns that are constant or repeat each other make no harm: a ridge of a millionth of the mean
    square is added.

    Args:
        seen: Training inputs.
        labels: Their classes.
        held_out: Inputs to be judged on.
        answers: Their classes.

    Returns:
        The accuracy.

    Example:
        >>> x = np.array([[0.0], [1.0], [2.0], [3.0]])
        >>> least_squares(x, np.array([0, 0, 1, 1]), x, np.array([0, 0, 1, 0]))
        0.75
    """
    mean = seen.mean(axis=0, dtype=np.float64).astype(np.float32)
    x, z = (np.c_[part - mean, np.ones(len(part), np.float32)] for part in (seen, held_out))
    wanted = np.eye(int(max(labels.max(), answers.max())) + 1, dtype=np.float32)[labels]
    # The smaller of the two equivalent systems of equations.
    wide = x.shape[1] > x.shape[0]
    square = (x @ x.T if wide else x.T @ x).astype(np.float64)
    square[np.diag_indices_from(square)] += 1e-6 * np.trace(square) / len(square)
    weights = (
        x.T @ np.linalg.solve(square, wanted) if wide else np.linalg.solve(square, x.T @ wanted)
    )
    return float(((z @ weights).argmax(axis=1) == answers).mean())
