"""Processors and memory of a container, from the files in which Linux writes its limits."""

import os
from pathlib import Path

import pytest

from dsfjax._util import limits

GIB = 2**30
MACHINE_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def root(folder: Path, groups: str, **files: str) -> Path:
    """A root with these control groups and files; "__" stands for a slash in their names."""
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = folder / "sys/fs/cgroup" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return folder


V1 = "4:memory:/docker/ab\n2:cpu,cpuacct:/docker/ab\n1:name=systemd:/\n0::/\n"


@pytest.mark.parametrize(
    ("groups", "files", "memory"),
    [
        # v2: a container that sees its own group as the top
        ("0::/\n", {"memory.max": str(GIB)}, GIB),
        # v2: the least limit from the own group up to the top
        (
            "0::/a/b\n",
            {"a__b__memory.max": "max", "a__memory.max": str(GIB), "memory.max": str(2 * GIB)},
            GIB,
        ),
        # v1, with the host's path, which is not mounted here
        (V1, {"memory__memory.limit_in_bytes": str(GIB)}, GIB),
        (V1, {"memory__docker__ab__memory.limit_in_bytes": str(GIB)}, GIB),
        ("4:memory:/\n0::/x\n", {"unified__x__memory.max": str(GIB)}, GIB),
        # no limits
        (V1, {"memory__memory.limit_in_bytes": str(2**63 - 4096)}, None),
        ("0::/\n", {"memory.max": "max"}, None),
        ("", {}, None),
    ],
)
def test_memory(groups: str, files: dict[str, str], memory: int | None, tmp_path: Path) -> None:
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert limits.memory(root(tmp_path, groups, **files)) == (memory or whole)


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "100000 100000"}, 1),
        ("0::/\n", {"cpu.max": "50000 100000"}, 1),  # half a processor is one
        ("0::/a\n", {"a__cpu.max": "max 100000", "cpu.max": "150000 100000"}, 1),
        (
            V1,
            {
                "cpu,cpuacct__docker__ab__cpu.cfs_quota_us": "100000",
                "cpu,cpuacct__docker__ab__cpu.cfs_period_us": "100000",
            },
            1,
        ),
        (V1, {"cpu__cpu.cfs_quota_us": "99000", "cpu__cpu.cfs_period_us": "50000"}, 1),
        (V1, {"cpu__cpu.cfs_quota_us": "-1", "cpu__cpu.cfs_period_us": "100000"}, MACHINE_CORES),
        ("0::/\n", {"cpu.max": "max 100000"}, MACHINE_CORES),
        ("", {}, MACHINE_CORES),
    ],
)
def test_cores(groups: str, files: dict[str, str], cores: int, tmp_path: Path) -> None:
    assert limits.cores(root(tmp_path, groups, **files)) == cores


def test_no_control_groups_at_all(tmp_path: Path) -> None:
    assert limits.cores(tmp_path) == MACHINE_CORES
    assert limits.memory(tmp_path) > GIB / 4
