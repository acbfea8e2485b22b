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


def say(text: str) -> None:
    """Print a line at once, as it is: neither wrapped nor coloured.

    Args:
        text: The line.
    """
    screen = console()
    screen.print(text, soft_wrap=True, highlight=False, markup=False)
    screen.file.flush()


def say_of_report(text: str) -> None:
    """Print how far a report is.

    Args:
        text: What is done.
    """
    say(f"report: {text}")
