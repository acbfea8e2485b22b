"""Run-time type checks of all that the package names; users run without them."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

# An int passes where a float is expected, as PEP 484 says and pyright does.
CHECK = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Callable) -> Callable:
    """``function`` with its annotations checked, by code that is made when it is first called.

    A check takes a millisecond to make, and most are never called: jaxtyping has a second one per
    function for its messages, and a function within another is new at every call of the outer one,
    so those are not checked. Together that was a sixth of the time of all tests.
    """
    if "<locals>" in function.__qualname__:
        return function

    @functools.cache
    def made() -> Callable:
        return CHECK(function)

    @functools.wraps(function)
    def check(*args: Any, **kwargs: Any) -> Any:
        return made()(*args, **kwargs)

    return check


@contextmanager
def unchecked() -> Iterator[None]:
    """No checks, as for users: misuse then meets our own errors."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
