"""Mistakes of the user, told from mistakes of ours."""

import contextlib
from collections.abc import Iterator


class UsageError(Exception):
    """What the user asked for cannot be done; the message says what to change."""


@contextlib.contextmanager
def usage_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Report exceptions of these kinds as the user's mistake, in one line without a traceback.

    Only around code that checks what the user gave: elsewhere such an exception is a defect, and
    its traceback is wanted.

    Args:
        kinds: Exception types.

    Raises:
        UsageError: In the place of an exception of these kinds.

    Examples:
        >>> with usage_errors(ValueError):
        ...     raise ValueError("expected two heads")
        Traceback (most recent call last):
            ...
        dsfjax.cli.usage.UsageError: expected two heads
    """
    try:
        yield
    except kinds as error:
        raise UsageError(str(error)) from error
