"""Where the data sets are that some tests read: the folder that DSFJAX_DATA names."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def data_dir() -> Path:
    if not (folder := os.environ.get("DSFJAX_DATA")):
        pytest.skip("reads the data sets: set DSFJAX_DATA to their folder")
    return Path(folder)
