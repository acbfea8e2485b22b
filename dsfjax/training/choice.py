"""One message for every name that is not known."""

import difflib
from collections.abc import Iterable


def choose(kind: str, given: str, known: Iterable[str]) -> str:
    """Return ``given`` if it is one of ``known``, else raise naming the nearest.

    Args:
        kind: What the name is a name of, for the message.
        given: The name to look up.
        known: All names there are.

    Returns:
        ``given``.

    Raises:
        ValueError: If it is not among them.

    Examples:
        >>> choose("preset", "dmeo", ["demo", "smoke"])
        Traceback (most recent call last):
            ...
        ValueError: unknown preset 'dmeo'; did you mean 'demo'? Known: demo, smoke.
    """
    names = sorted(known)
    if given in names:
        return given
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise ValueError(f"unknown {kind} {given!r}{hint} Known: {', '.join(names)}.")
