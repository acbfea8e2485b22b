"""Freed memory that stays with the process."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource

import numpy as np

from dsfjax._util.allocation import is_kept, keep_freed_memory


def faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        np.ones(2**22)  # 32 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


usual, was = faults(), is_kept()
assert keep_freed_memory()
faults()  # the heap grows once
print(usual, faults(), was, is_kept())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the GNU C library is told")
def test_large_blocks_are_used_again_without_page_faults() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True
    )
    usual, kept, *states = done.stdout.split()
    assert states == ["False", "True"]
    assert int(kept) < int(usual) / 20
