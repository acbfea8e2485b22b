"""Where commands print to."""

from rich.console import Console


def console() -> Console:
    """Standard output: a terminal as wide as it is, or a pipe as wide as the tables need.

    Returns:
        A console.

    Examples:
        >>> console().width >= 20
        True
    """
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=160)
