"""What this process may use of the machine: processors and memory, container limits included.

A container sees the whole machine; what it may use of it is written in its control group. Linux
has two versions of these (v2: one tree; v1: a tree per resource), and a limit of any group holds
for all groups below it.
"""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path


def cores(root: Path = Path("/")) -> int:
    """Processors that this process may use, at least 1.

    Args:
        root: Where /proc and /sys are.

    Returns:
        The least of the processors that the process may run on and those that the quota of its
        control group pays for; half a processor more is not used.

    Examples:
        >>> 1 <= cores() <= os.cpu_count()
        True
    """
    affinity = getattr(os, "sched_getaffinity", None)
    found = [os.cpu_count() or 1] if affinity is None else [len(affinity(0))]
    for group in _groups(root, "cpu"):
        quota, period = [*_words(group / "cpu.max"), "max", "max"][:2]  # v2: "150000 100000"
        if quota == "max":
            # v1; -1 means no limit, and so does a file that is not there
            quota = next(iter(_words(group / "cpu.cfs_quota_us")), "-1")
            period = next(iter(_words(group / "cpu.cfs_period_us")), "max")
        if quota.isdigit() and period.isdigit() and int(period):
            found.append(int(quota) // int(period))
    return max(1, min(found))


def memory(root: Path = Path("/")) -> int:
    """Bytes of memory that this process may use.

    Args:
        root: Where /proc and /sys are.

    Returns:
        The least of the machine's memory and the limits of the control group.

    Examples:
        >>> memory() > 2**20
        True
    """
    found = [_of_machine()]
    for group in _groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            found += [int(word) for word in _words(group / name) if word.isdigit()]
    return min(found)


def _of_machine() -> int:
    """Bytes of memory of the machine."""
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # Windows: MEMORYSTATUSEX is two numbers of 32 bits, the size and the load, then seven of 64.
    status = (ctypes.c_uint64 * 8)()
    ctypes.c_uint32.from_buffer(status).value = ctypes.sizeof(status)
    ctypes.windll.kernel32.GlobalMemoryStatusEx(status)  # type: ignore[attr-defined]
    return int(status[1])


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's control groups for a resource, from its own up to the top.

    In a container the path in /proc may be the host's, of which only the top is mounted: a group
    without a folder is passed over.
    """
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        tops = [root / "sys/fs/cgroup"]
        if not controllers:
            tops.append(root / "sys/fs/cgroup/unified")  # v2 next to v1
        elif controller in controllers.split(","):
            tops = [root / "sys/fs/cgroup" / controllers, root / "sys/fs/cgroup" / controller]
        else:
            continue
        for top in tops:
            group = top / path.strip("/")
            yield group
            while group != top:
                group = group.parent
                yield group


def _words(path: Path) -> list[str]:
    return [word for line in _lines(path) for word in line.split()]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
