"""The language of ListOps: nested operations on lists of digits, such as ``[MAX 2 [SM 4 9 ] 7 ]``.

An operator opens a list, its arguments follow, and a bracket closes it. Long Range Arena's files
have parentheses that say how the text was nested in pairs, which mean nothing, and its loaders
rename the closing bracket to ``X``: both ways of writing are read here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Integer, UInt8

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
CLOSE = "X"
DIGITS = tuple("0123456789")

SPECIAL = ("<pad>", "<unk>", "<eos>")
"""Ids 0, 1, 2, as in the loaders of S4 and S5: padding, an unknown symbol, the end."""

SYMBOLS = (*SPECIAL, *OPERATORS, CLOSE, *DIGITS)
"""What each token id is: 18 of them."""

PAD, EOS = SYMBOLS.index("<pad>"), SYMBOLS.index("<eos>")

_IDS = {symbol: i for i, symbol in enumerate(SYMBOLS)} | {"]": SYMBOLS.index(CLOSE)}


def tokens(text: str) -> list[str]:
    """The symbols of an expression, without parentheses, with `X` for ``]``.

    Args:
        text: Symbols with blanks between them.

    Example:
        >>> tokens("( ( ( [MAX 2 ) 9 ) ] )")
        ['[MAX', '2', '9', 'X']
    """
    return [CLOSE if each == "]" else each for each in text.split() if each not in "()"]


def encode(symbols: Sequence[str]) -> UInt8[np.ndarray, " l"]:
    """Token ids of symbols; no end is appended.

    Args:
        symbols: The symbols, such as `tokens` gives.

    Example:
        >>> encode(["[MAX", "2", "9", "X"]).tolist()
        [4, 10, 17, 7]
    """
    unknown = SYMBOLS.index("<unk>")
    return np.array([_IDS.get(symbol, unknown) for symbol in symbols], np.uint8)


def decode(ids: Integer[np.ndarray, " l"]) -> str:
    """The text of token ids, without padding and end.

    Args:
        ids: Token ids.

    Example:
        >>> decode(np.array([4, 10, 17, 7, 2, 0, 0]))
        '[MAX 2 9 ]'
    """
    symbols = (SYMBOLS[i] for i in ids if SYMBOLS[i] not in ("<pad>", "<eos>"))
    return " ".join("]" if symbol == CLOSE else symbol for symbol in symbols)


def _value(operator: str, arguments: Sequence[int]) -> int:
    """The value of one list; the median of an even number of values is truncated."""
    if operator == "[MIN":
        return min(arguments)
    if operator == "[MAX":
        return max(arguments)
    if operator == "[SM":
        return sum(arguments) % 10
    ordered, n = sorted(arguments), len(arguments)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) // 2


def evaluate(expression: str | Sequence[str]) -> int:
    """The value of an expression, 0 to 9.

    Args:
        expression: A text, with or without parentheses, or its symbols.

    Raises:
        ValueError: If it is not an expression; the message names the symbol.

    Example:
        >>> evaluate("[MAX 2 [SM 4 9 ] [MED 1 4 ] ]")
        3
        >>> evaluate("[MAX 2 ] ]")
        Traceback (most recent call last):
            ...
        ValueError: evaluate: expected one expression, got more from symbol 3, ']', on.
    """
    symbols = tokens(expression) if isinstance(expression, str) else expression
    open_lists: list[tuple[str, list[int]]] = []
    result: int | None = None
    for i, symbol in enumerate(symbols):
        shown = "]" if symbol == CLOSE else symbol
        if result is not None:
            raise ValueError(
                f"evaluate: expected one expression, got more from symbol {i}, {shown!r}, on."
            )
        if symbol in OPERATORS:
            open_lists.append((symbol, []))
            continue
        if symbol in DIGITS:
            value = int(symbol)
        elif symbol in (CLOSE, "]") and open_lists and open_lists[-1][1]:
            value = _value(*open_lists.pop())
        else:
            raise ValueError(
                f"evaluate: expected an operator, a digit or the end of a list that has arguments "
                f"as symbol {i}, got {shown!r}."
            )
        if open_lists:
            open_lists[-1][1].append(value)
        else:
            result = value
    if result is None:
        raise ValueError(
            f"evaluate: expected a closed expression, got {len(open_lists)} open lists at its end."
        )
    return result
