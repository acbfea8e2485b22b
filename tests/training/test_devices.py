"""Members on many devices. The machine of a test has one, so another process makes eight of it."""

import pytest

from tests.training.processes import ROOT, python


@pytest.mark.slow
def test_on_eight_devices() -> None:
    python("-m", "unittest", "-v", "tests.training.eight_devices", devices=8, cwd=ROOT)
