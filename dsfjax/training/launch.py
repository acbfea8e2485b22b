"""Where the programs of a sweep are run: here, or on the workers of a Ray cluster.

A *launcher* runs every config in its folder and yields ``(name, result)`` in the order in which
they are done. It is a function of ``(configs, folder, listener, resources)``.

One program that is to span several hosts needs no launcher of its own: after
``jax.distributed.initialize()`` in each process :func:`here` cuts the members over the devices of
all of them.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dsfjax.training.config import TrainConfig
from dsfjax.training.folder import read_metrics
from dsfjax.training.layout import reserve
from dsfjax.training.run import Listener, Resources, attempt, train

Launcher = Callable[
    [Mapping[str, TrainConfig], Path, Listener, Resources], Iterator[tuple[str, dict[str, Any]]]
]


def here(
    configs: Mapping[str, TrainConfig], folder: Path, listener: Listener, resources: Resources
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run one program after another in this process.

    A program that another process is running is put off; when only such are left, it is waited
    for.

    Args:
        configs: Name to config.
        folder: Folder of the sweep.
        listener: Is told of the progress.
        resources: What each run may use.

    Yields:
        Name and result of each run when it is done.
    """
    pending, wait = list(configs), False
    while pending:
        busy = []
        for name in pending:
            result = attempt(
                configs[name],
                folder / name,
                name=name,
                listener=listener,
                resources=resources,
                wait=wait,
            )
            if result is None:
                busy.append(name)
            else:
                wait = False
                yield name, result
        wait = len(busy) == len(pending)
        pending = busy


def on_ray(
    configs: Mapping[str, TrainConfig],
    folder: Path,
    listener: Listener,
    resources: Resources,
    *,
    poll_seconds: float = 0.5,
    max_retries: int = 3,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run each program as a Ray task; the folder must be the same one for all workers.

    It connects to the cluster that ``RAY_ADDRESS`` names, or starts one on this machine. A task
    takes ``resources.num_devices`` GPUs (one by default) where the cluster has any, else one CPU.
    The task of a worker that dies is run again by another, from its last checkpoint.

    Args:
        configs: Name to config.
        folder: Folder of the sweep.
        listener: Is told of the progress, as it is read from the folder.
        resources: What each run may use.
        poll_seconds: Seconds between two looks at the folder.
        max_retries: How often a task whose worker died is run again.

    Yields:
        Name and result of each run when it is done.

    Raises:
        ModuleNotFoundError: If Ray is not installed.
    """
    try:
        import ray  # type: ignore[import-not-found]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "expected Ray for this launcher, which is not installed: pip install 'dsfjax[ray]'"
        ) from error
    ray.init(ignore_reinit_error=True, log_to_driver=False)
    gpus = (resources.num_devices or 1) if ray.cluster_resources().get("GPU") else 0
    task = ray.remote(num_cpus=0 if gpus else 1, num_gpus=gpus, max_retries=max_retries)(_task)
    where = folder.absolute()
    pending = {
        task.remote(config, where / name, name, resources): name for name, config in configs.items()
    }
    seen: dict[str, int] = {}
    while pending:
        done, _ = ray.wait(list(pending), timeout=poll_seconds)
        for name in pending.values():
            _tell(listener, name, configs[name], where / name, seen)
        for reference in done:
            name, result = pending.pop(reference), ray.get(reference)
            listener.finished(name, result)
            yield name, result


def _task(config: TrainConfig, path: Path, name: str, resources: Resources) -> dict[str, Any]:
    reserve(resources.num_devices)
    return train(config, path, name=name, resources=resources)


def _tell(
    listener: Listener, name: str, config: TrainConfig, path: Path, seen: dict[str, int]
) -> None:
    """Tell of what a run has written since the last time."""
    if not (path / "config.json").exists():
        return
    if name not in seen:
        seen[name] = 0
        listener.started(name, config)
    blocks: dict[int, list[dict[str, Any]]] = {}
    for line in read_metrics(path):
        if line["step"] > seen[name]:
            blocks.setdefault(line["step"], []).append(line)
    for step, lines in blocks.items():
        seen[name] = step
        listener.evaluated(name, lines)


LAUNCHERS: dict[str, Launcher] = {"here": here, "ray": on_ray}
"""Name to launcher."""
