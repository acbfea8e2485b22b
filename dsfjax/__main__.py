"""``python -m dsfjax`` and the ``dsfjax`` command."""

import gc
import sys

from dsfjax._util.allocation import keep_freed_memory
from dsfjax._util.interrupt import end_at_once

_EXTRA = ("rich", "tyro", "matplotlib")


def main() -> int:
    """Run the command line, or say how to install what it needs.

    Returns:
        The exit code of `dsfjax.cli.main`; 2 if the packages of the extra ``cli`` are missing.
    """
    end_at_once()
    keep_freed_memory()
    try:
        from dsfjax.cli import main as run

        # Tracing makes many small objects that live as long as their program. With the usual
        # thresholds the collector walks over all of them, and over all modules, again and again: a
        # tenth of the time until a program is compiled.
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)
        return run()
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


if __name__ == "__main__":
    sys.exit(main())
