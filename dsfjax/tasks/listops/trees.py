r"""Random ListOps expressions by the law of Long Range Arena, thousands at a time.

*The law.* An expression is a tree whose root has depth 1. A node of depth d < 10 is an operator
with probability 1/4, and else a digit, as all nodes of depth 10 are. An operator has 2 to 10
arguments, each number as likely as the others; digits and operators are uniform. The length of a
digit is 1, and of an operator 2 (itself and the closing bracket) plus the lengths of its arguments.
Trees whose length lies strictly between two limits are accepted.

*How it is drawn.* The length depends on the shape of a tree alone. Shapes are therefore drawn
first, for all trees at once and one depth after the other, and only the accepted third of them gets
digits and operators. A tree that has reached the upper limit stops growing. The nodes of a depth
lie in one array, the arguments of an operator next to each other, so that sizes and values are
sums over stretches of the next array, from the deepest to the first, and places in the text follow
from the first to the deepest.

A root that is a digit is shorter than every limit: it is never accepted, and roots are drawn as
operators.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Integer, UInt8

from dsfjax.tasks.listops.expressions import CLOSE, EOS, OPERATORS, PAD, SYMBOLS

DEEPEST = 10
FEWEST, MOST = 2, 10
"""The depth at which all nodes are digits, and the numbers of arguments that an operator may have.
"""

SHORTEST = FEWEST + 2
"""Length of the shortest tree that is not a digit."""

_MIN, _MAX, _MED, _SM = range(len(OPERATORS))
_FIRST_OPERATOR, _CLOSE, _FIRST_DIGIT = (SYMBOLS.index(s) for s in (OPERATORS[0], CLOSE, "0"))
_ROOTS = 4_000
# Rounds of `_ROOTS` in which nothing new was found, after which there is nothing left to find.
_PATIENCE = 20


class Expressions(NamedTuple):
    """Expressions and their values.

    Attributes:
        ids: Token ids, one row each: the expression, ``<eos>``, padding.
        values: Their values, 0 to 9.
    """

    ids: UInt8[np.ndarray, "trees l"]
    values: UInt8[np.ndarray, " trees"]


class _Nodes(NamedTuple):
    """The nodes of one depth, tree by tree, the arguments of an operator next to each other."""

    tree: Int[np.ndarray, " nodes"]
    arity: UInt8[np.ndarray, " nodes"]  # number of arguments; 0 for a digit


def _shapes(
    random: np.random.Generator, roots: int, longer_than: int, shorter_than: int
) -> tuple[list[_Nodes], int]:
    """The accepted among ``roots`` random trees, and how many they are."""
    tree = np.arange(roots, dtype=np.int32)
    length = np.zeros(roots, np.int64)
    depths: list[_Nodes] = []
    for depth in range(1, DEEPEST + 1):
        if depth == 1:
            arity = random.integers(FEWEST, MOST, tree.size, np.uint8, endpoint=True)
        elif depth == DEEPEST:
            arity = np.zeros(tree.size, np.uint8)
        else:
            # One number decides both: 9 of 36 are operators, of 2 to 10 arguments.
            drawn = random.integers(0, 4 * (MOST - FEWEST + 1), tree.size, np.uint8)
            arity = np.where(drawn <= MOST - FEWEST, drawn + np.uint8(FEWEST), np.uint8(0))
        depths.append(_Nodes(tree, arity))
        length += np.bincount(tree, minlength=roots)
        length += np.bincount(tree[arity > 0], minlength=roots)
        tree = np.repeat(tree, np.where(length[tree] < shorter_than, arity, 0))
    accepted = (longer_than < length) & (length < shorter_than)
    number = np.cumsum(accepted, dtype=np.int32) - 1
    kept = [_Nodes(number[n.tree[k]], n.arity[k]) for n in depths for k in (accepted[n.tree],)]
    return kept, int(accepted.sum())


def _medians(
    values: UInt8[np.ndarray, " arguments"],
    starts: Int[np.ndarray, " lists"],
    arity: Int[np.ndarray, " lists"],
) -> Integer[np.ndarray, " lists"]:
    """Median of each stretch of ``values``, truncated."""
    # Sorting list number and value together sorts the values of every list in their place.
    ordered = np.sort(np.repeat(np.arange(len(arity)), arity) * 10 + values) % 10
    return (ordered[starts + (arity - 1) // 2] + ordered[starts + arity // 2]) // 2


def _evaluate(
    operators: UInt8[np.ndarray, " lists"],
    arity: Int[np.ndarray, " lists"],
    values: UInt8[np.ndarray, " arguments"],
) -> UInt8[np.ndarray, " lists"]:
    """The value of each list of arguments."""
    starts = np.cumsum(arity) - arity
    result = np.empty(len(operators), np.uint8)
    for operator in range(len(OPERATORS)):
        lists = operators == operator
        if operator == _MED:
            theirs = values[np.repeat(lists, arity)]
            counts = arity[lists]
            result[lists] = _medians(theirs, np.cumsum(counts) - counts, counts)
            continue
        ufunc = {_MIN: np.minimum, _MAX: np.maximum, _SM: np.add}[operator]
        # A list of ten nines has the sum 90: it fits a byte.
        reduced = ufunc.reduceat(values, starts)[lists]
        result[lists] = reduced % 10 if operator == _SM else reduced
    return result


def _label(
    random: np.random.Generator, depths: list[_Nodes], trees: int, seq_len: int
) -> Expressions:
    """Give the nodes of accepted trees digits and operators, and write the trees as rows."""
    symbols = [
        np.where(
            nodes.arity > 0,
            random.integers(0, len(OPERATORS), nodes.arity.size, np.uint8),
            random.integers(0, 10, nodes.arity.size, np.uint8),
        )
        for nodes in depths
    ]
    # Sizes and values from the deepest nodes up.
    sizes, values = [], np.empty(0, np.uint8)
    for nodes, symbol in zip(reversed(depths), reversed(symbols), strict=True):
        lists = nodes.arity > 0
        arity = nodes.arity[lists].astype(np.int64)
        size, value = np.ones(nodes.arity.size, np.int32), symbol.copy()
        if arity.size:
            size[lists] = 2 + np.add.reduceat(sizes[-1], np.cumsum(arity) - arity)
            value[lists] = _evaluate(symbol[lists], arity, values)
        sizes.append(size)
        values = value
    sizes.reverse()

    # Places from the root down: an argument begins where the one before it ends.
    ids = np.full((trees, seq_len), PAD, np.uint8)
    flat = ids.reshape(-1)
    place = np.arange(trees) * seq_len
    flat[place + sizes[0]] = EOS
    for depth, (nodes, symbol, size) in enumerate(zip(depths, symbols, sizes, strict=True)):
        lists = nodes.arity > 0
        flat[place] = symbol + np.where(lists, _FIRST_OPERATOR, _FIRST_DIGIT).astype(np.uint8)
        flat[place[lists] + size[lists] - 1] = _CLOSE
        if not lists.any():
            break
        arity = nodes.arity[lists].astype(np.int64)
        before = np.cumsum(sizes[depth + 1]) - sizes[depth + 1]
        place = before + np.repeat(place[lists] + 1 - before[np.cumsum(arity) - arity], arity)
    return Expressions(ids, values)


def sample(
    random: np.random.Generator, roots: int, *, longer_than: int, shorter_than: int, seq_len: int
) -> Expressions:
    """The accepted ones of ``roots`` random trees whose root is an operator.

    Args:
        random: Source of randomness.
        roots: Trees to draw. Long Range Arena draws four for each of these: three of four roots
            are digits.
        longer_than: Trees are longer than this.
        shorter_than: Trees are shorter than this.
        seq_len: Length of the rows, at least ``shorter_than``.

    Example:
        >>> from dsfjax.tasks.listops import decode
        >>> some = sample(np.random.default_rng(0), 50, longer_than=3, shorter_than=12, seq_len=12)
        >>> decode(some.ids[0]), int(some.values[0])
        ('[MIN 7 8 0 7 8 ]', 0)
    """
    depths, trees = _shapes(random, roots, longer_than, shorter_than)
    return _label(random, depths, trees, seq_len)


def distinct(
    seed: int, count: int, *, longer_than: int, shorter_than: int, seq_len: int
) -> Expressions:
    """Distinct expressions in the order in which they are found.

    The first ones are the same whatever ``count``.

    Args:
        seed: Seed.
        count: How many.
        longer_than: They are longer than this.
        shorter_than: They are shorter than this.
        seq_len: Length of the rows, at least ``shorter_than``.

    Raises:
        ValueError: If there are not that many.
    """
    random = np.random.default_rng(seed)
    ids = np.empty((count, seq_len), np.uint8)
    values = np.empty(count, np.uint8)
    seen: set[bytes] = set()
    filled = fruitless = 0
    while filled < count:
        some = sample(
            random, _ROOTS, longer_than=longer_than, shorter_than=shorter_than, seq_len=seq_len
        )
        new = []
        for i, row in enumerate(some.ids):
            digest = hashlib.blake2b(row.tobytes(), digest_size=16).digest()
            if digest not in seen:
                seen.add(digest)
                new.append(i)
        new = new[: count - filled]
        fruitless = 0 if new else fruitless + 1
        if fruitless == _PATIENCE:
            raise ValueError(
                f"listops: expected {count:,} distinct expressions of {longer_than + 1} to "
                f"{shorter_than - 1} symbols, found {filled:,} and no more; allow longer ones or "
                "take fewer."
            )
        ids[filled : filled + len(new)] = some.ids[new]
        values[filled : filled + len(new)] = some.values[new]
        filled += len(new)
    return Expressions(ids, values)
