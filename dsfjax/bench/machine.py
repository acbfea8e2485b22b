"""What the benchmark ran on: processor, threads, allocator, versions."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import jax

from dsfjax._util import allocation
from dsfjax._util.limits import cores
from dsfjax._util.versions import installed

PACKAGES = (
    "dsfjax",
    "jax",
    "jaxlib",
    "numpy",
    "torch",
    "transformers",
    "fla-core",
    "recurrentgemma",
)
# Page faults of large temporaries cost as much as the work on them: how the C library gives memory
# back decides about them, for every contestant alike.
ALLOCATOR = ("MALLOC_ARENA_MAX", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_")
ALLOCATOR += ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES", "LD_PRELOAD")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "XLA_FLAGS", "NPROC", "JAX_PLATFORMS")


def describe() -> dict[str, Any]:
    """The environment of this process, as JSON data.

    Returns:
        ``device``, ``devices`` (how many), ``backend``, ``processor``, ``cores`` (of the machine),
        ``usable_cores`` (of this process), ``python``, ``platform``, ``versions`` (null where not
        installed), ``allocator`` and ``threads``: what is done with freed memory, and the
        environment variables that are set, of those that matter.

    Example:
        >>> sorted(describe())
        ['allocator', 'backend', 'cores', 'device', 'devices', 'platform', 'processor', 'python',
        'threads', 'usable_cores', 'versions']
    """
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "devices": jax.local_device_count(),
        "backend": device.platform,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "usable_cores": cores(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: installed(name) for name in PACKAGES},
        "allocator": {"freed memory": "kept" if allocation.is_kept() else "given back"}
        | {name: os.environ[name] for name in ALLOCATOR if name in os.environ},
        "threads": {name: os.environ[name] for name in THREADS if name in os.environ},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
