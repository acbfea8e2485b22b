"""What the installed packages are, where their releases differ."""

import functools
import re
from importlib.metadata import PackageNotFoundError, version


@functools.cache
def at_least(package: str, *release: int) -> bool:
    """Whether an installed package is of a release or a later one.

    Args:
        package: Its name.
        *release: The release, such as 0, 11, 1.

    Returns:
        Whether it is.

    Example:
        >>> at_least("jax", 0, 4), at_least("jax", 1_000)
        (True, False)
    """
    found = re.findall(r"\d+", version(package))
    return tuple(int(number) for number in found[: len(release)]) >= release


def installed(package: str) -> str | None:
    """The version of a package, or None if it is not installed.

    Args:
        package: Its name.

    Example:
        >>> installed("no_such_package") is None
        True
    """
    try:
        return version(package)
    except PackageNotFoundError:
        return None
