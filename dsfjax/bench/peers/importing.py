"""Other packages' modules, if they are installed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
import warnings
from types import ModuleType


def is_installed(package: str) -> bool:
    """Whether a top-level package can be found. Imports nothing.

    Example:
        >>> is_installed("numpy"), is_installed("no_such_package")
        (True, False)
    """
    return importlib.util.find_spec(package) is not None


def load(name: str) -> ModuleType:
    """Import a module of another package as usual, without showing the package's warnings.

    Args:
        name: Dotted name.

    Returns:
        The module.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def load_alone(name: str) -> ModuleType:
    """Import a module without running the ``__init__`` files of the packages around it.

    Some packages import GPU kernels, whole model families or pinned versions of other packages
    there, which a module of plain functions does without. The module is the installed one.

    Args:
        name: Dotted name of a module whose own imports are all it needs.

    Returns:
        The module.

    Raises:
        ModuleNotFoundError: If the package or the module is not installed.

    Example:
        >>> load_alone("json.decoder").__name__
        'json.decoder'
    """
    root, *_ = parts = name.split(".")
    spec = importlib.util.find_spec(root)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"No package named {root!r}", name=root)
    folders, added = list(spec.submodule_search_locations), []
    try:
        for depth in range(1, len(parts)):
            parent = ".".join(parts[:depth])
            if parent not in sys.modules:
                bare = types.ModuleType(parent)
                bare.__path__ = ["/".join((folder, *parts[1:depth])) for folder in folders]
                sys.modules[parent] = bare
                added.append(parent)
        return load(name)
    finally:
        # A later, ordinary import of the package must find the package itself.
        for parent in added:
            del sys.modules[parent]
