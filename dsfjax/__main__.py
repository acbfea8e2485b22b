"""``python -m dsfjax`` and the ``dsfjax`` command."""

import sys

from dsfjax._util.interrupt import end_at_once

_EXTRA = ("rich", "tyro", "matplotlib")


def main() -> int:
    """Run the command line, or say how to install what it needs.

    Returns:
        The exit code of `dsfjax.cli.main`; 2 if the packages of the extra ``cli`` are missing.
    """
    end_at_once()
    try:
        from dsfjax.cli import main as run
    except ModuleNotFoundError as error:
        # The library alone needs neither a terminal nor figures, so these are an extra.
        if error.name is None or error.name.partition(".")[0] not in _EXTRA:
            raise
        print(
            f"dsfjax: the commands need {error.name}, which is not installed; "
            "pip install 'dsfjax[cli]' installs it",
            file=sys.stderr,
        )
        return 2
    return run()


if __name__ == "__main__":
    sys.exit(main())
