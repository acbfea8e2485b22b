"""Tokenizers in files, which are read by the package tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILE = "tokenizer.json"
"""The file of a tokenizer in the folder of a model."""


def read(file: Path) -> Tokenizer:
    """The tokenizer of a file.

    Args:
        file: A ``tokenizer.json``, as the package tokenizers writes it.

    Raises:
        FileNotFoundError: If it is not there.
        ImportError: If the package is not installed.
        ValueError: If the file is no tokenizer.
    """
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: expected a tokenizer, found none; give token ids instead of text."
        )
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ImportError("tokenizer: tokenizers is missing: pip install 'dsfjax[open]'") from error
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises the class itself
        raise ValueError(f"{file}: expected a tokenizer, got: {error}.") from error
