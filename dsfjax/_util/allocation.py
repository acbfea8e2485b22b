"""How the C library keeps memory that the process has freed."""

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of glibc's malloc.h
_kept = False


def keep_freed_memory() -> bool:
    """Let large blocks that are freed stay with this process, to be used again.

    By default the GNU C library maps every large block anew and gives it back when it is freed.
    XLA on a CPU allocates its temporaries at every call, so that every training step would pay for
    a page fault, and for the zeros of a new page, at every 4 KiB it writes. The price is that
    memory once used is not given back to the system before the process ends: this is for processes
    that are our own, such as a command's, and is never called by the library.

    Returns:
        Whether the C library knows of it; others are left as they are.
    """
    global _kept
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        _kept = bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))
    return _kept


def is_kept() -> bool:
    """Whether `keep_freed_memory` holds in this process."""
    return _kept
