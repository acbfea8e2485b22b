"""Modules of a user's own that make architectures and tasks known by being imported."""

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path


def load(modules: Iterable[str]) -> None:
    """Import modules, also from the working directory, where a user's own are.

    Args:
        modules: Dotted names. Each registers what it defines: ``dsfjax.systems.register``,
            ``dsfjax.tasks.register``.

    Raises:
        ValueError: If a module cannot be found, or fails.

    Example:
        >>> load(["my_modul"])
        Traceback (most recent call last):
            ...
        ValueError: import: expected a module 'my_modul' in the working directory or installed, got
        none (No module named 'my_modul'); run the command where the module is.
    """
    here = str(Path.cwd())
    for module in modules:
        # A console script has its own folder in front instead, where no user's module is.
        if here not in sys.path:
            sys.path.insert(0, here)
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise ValueError(
                f"import: expected a module {module!r} in the working directory or installed, got "
                f"none ({error}); run the command where the module is."
            ) from error
        except Exception as error:
            raise ValueError(
                f"import: expected module {module!r} to register what it defines, but importing "
                f"it failed ({type(error).__name__}: {error})."
            ) from error
