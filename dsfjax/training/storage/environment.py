"""What a run ran on: versions, device, and the git state of the working directory."""

import platform
import subprocess
from typing import Any

import jax

from dsfjax._util.limits import cores
from dsfjax._util.versions import installed

PACKAGES = ("dsfjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def describe() -> dict[str, Any]:
    """The environment of this process, as JSON data.

    Returns:
        ``versions`` (package to version, null if it is not installed as a package), ``python``,
        ``platform``, ``cpu_count`` (that this process may use), ``backend``, ``device_kind``,
        ``device_count``, and ``git``: ``{"commit", "dirty"}``, or null outside a repository with a
        commit.

    Examples:
        >>> sorted(describe())
        ['backend', 'cpu_count', 'device_count', 'device_kind', 'git', 'platform', 'python',
        'versions']
    """
    devices = jax.devices()
    return {
        "versions": {name: installed(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": cores(),
        "backend": devices[0].platform,
        "device_kind": devices[0].device_kind,
        "device_count": len(devices),
        "git": _git(),
    }


def _git() -> dict[str, Any] | None:
    def ask(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *words], capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = ask("rev-parse", "--verify", "--quiet", "HEAD")
    status = ask("status", "--porcelain", "--untracked-files=no")
    return None if commit is None else {"commit": commit, "dirty": bool(status)}
