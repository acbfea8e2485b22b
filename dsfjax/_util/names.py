"""What to say of a name that is not known."""

import difflib
from collections.abc import Iterable


def choose(kind: str, given: str, known: Iterable[str]) -> str:
    """Return ``given`` if it is one of ``known``, else raise naming the nearest.

    Args:
        kind: What the name is a name of, for the message.
        given: The name to look up.
        known: All names there are, in the order in which the message lists them.

    Returns:
        ``given``.

    Raises:
        ValueError: If it is not among them.

    Example:
        >>> choose("preset", "dmeo", ["demo", "smoke"])
        Traceback (most recent call last):
            ...
        ValueError: unknown preset 'dmeo'; did you mean 'demo'? Known: demo, smoke.
    """
    names = list(known)
    if given not in names:
        raise ValueError(unknown(f"unknown {kind}", given, names))
    return given


def unknown(what: str, given: object, known: Iterable[str]) -> str:
    """The sentence about a name that is not known, for an exception of any type.

    Args:
        what: How the sentence begins.
        given: The name.
        known: All names there are.

    Returns:
        The sentence, with the nearest name and the list of all.

    Example:
        >>> unknown("ssd has no option", "num_head", ["d_model", "num_heads"])
        "ssd has no option 'num_head'; did you mean 'num_heads'? Known: d_model, num_heads."
    """
    names = list(known)
    return f"{what} {given!r}{hint(given, names)} Known: {', '.join(names)}."


def hint(given: object, known: Iterable[str]) -> str:
    """The end of a sentence about a name: the nearest of those that are known, or a full stop.

    Args:
        given: The name. Dashes at its beginning, as options have them, do not count.
        known: The names that it may have been meant to be.

    Returns:
        "; did you mean …?", or "." if none is near.

    Example:
        >>> hint("--sed", ["--seeds", "--steps"]), hint("xyz", ["seeds"])
        ("; did you mean '--seeds'?", '.')
    """
    # Prefixes would count as letters in common and make every option near to every other.
    bare = {name.lstrip("-"): name for name in known}
    near = difflib.get_close_matches(str(given).lstrip("-"), bare, n=1, cutoff=0.4)
    return f"; did you mean {bare[near[0]]!r}?" if near else "."
