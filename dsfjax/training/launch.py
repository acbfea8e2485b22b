"""Where the programs of a sweep are run: here, or on the workers of a Ray cluster.

A *launcher* runs every config in its folder and yields ``(name, result)`` in the order in which
they are done. It is a function of ``(configs, folder, listener, resources, retry)``. A run that
fails does not end the others: its result is ``failure.json``, with the status "failed" and a
reason, and it is not run again unless ``retry`` is set.

One program that is to span several hosts needs no launcher of its own: after
``jax.distributed.initialize()`` in each process :func:`here` cuts the members over the devices of
all of them.
"""

import contextlib
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from dsfjax.training import folder as run_folder
from dsfjax.training import hosts
from dsfjax.training.config import TrainConfig, from_json, to_json
from dsfjax.training.folder import RunError, read_metrics
from dsfjax.training.layout import reserve
from dsfjax.training.memory import MemoryShortage
from dsfjax.training.run import Listener, Resources, attempt, prepare

Launcher = Callable[
    [Mapping[str, TrainConfig], Path, Listener, Resources, bool],
    Iterator[tuple[str, dict[str, Any]]],
]


def here(
    configs: Mapping[str, TrainConfig],
    folder: Path,
    listener: Listener,
    resources: Resources,
    retry: bool = False,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run one program after another in this process; the next is compiled while one trains.

    A program that another process is running is put off; when only such are left, it is waited
    for.

    Args:
        configs: Name to config.
        folder: Folder of the sweep.
        listener: Is told of the progress.
        resources: What each run may use.
        retry: Whether to run those again that have failed before.

    Yields:
        Name and result of each run when it is done.
    """
    pending, wait = list(configs), False
    while pending:
        busy = []
        for place, name in enumerate(pending):
            # What cannot be compiled says so when its own turn comes.
            with contextlib.suppress(Exception):
                for following in pending[place : place + 2]:
                    prepare(configs[following], folder / following, resources)
            result = _outcome(
                configs[name],
                folder / name,
                name,
                listener=listener,
                resources=resources,
                wait=wait,
                retry=retry,
            )
            if result is None:
                busy.append(name)
            else:
                wait = False
                yield name, result
        wait = len(busy) == len(pending)
        pending = busy


def _outcome(
    config: TrainConfig,
    path: Path,
    name: str,
    *,
    listener: Listener,
    resources: Resources,
    wait: bool,
    retry: bool,
) -> dict[str, Any] | None:
    """The result of a run, or why it has none; None if another process has its folder."""
    found = None if retry else hosts.agree(lambda: run_folder.failure(path, config))
    if found is None:
        try:
            return attempt(
                config, path, name=name, listener=listener, resources=resources, wait=wait
            )
        except RunError:
            raise  # a mistake of the caller, not of this run: nothing in the folder was changed
        except Exception as error:
            # Several processes go on together only from what is the same in all of them.
            if jax.process_count() > 1 and not isinstance(error, MemoryShortage):
                raise
            reason, whole = _sentence(error), "".join(traceback.format_exception(error))
            found = hosts.agree(lambda: run_folder.fail(path, config, reason, whole))
    listener.failed(name, found["reason"])
    return found


def _sentence(error: Exception) -> str:
    """What went wrong, in a line: the frameworks below say more than a table can show."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:500]


def on_ray(
    configs: Mapping[str, TrainConfig],
    folder: Path,
    listener: Listener,
    resources: Resources,
    retry: bool = False,
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
        retry: Whether to run those again that have failed before.
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
        task.remote(to_json(config), where / name, name, resources, retry): name
        for name, config in configs.items()
    }
    seen: dict[str, int] = {}
    while pending:
        done, _ = ray.wait(list(pending), timeout=poll_seconds)
        for name in pending.values():
            _tell(listener, name, configs[name], where / name, seen)
        for reference in done:
            name = pending.pop(reference)
            try:
                result = ray.get(reference)
            except ray.exceptions.RayTaskError:
                raise
            except ray.exceptions.RayError as error:  # its workers died, as for want of memory
                reason = _sentence(error)
                result = run_folder.fail(where / name, configs[name], reason)
            if result.get("status") == "failed":
                listener.failed(name, result["reason"])
            else:
                listener.finished(name, result)
            yield name, result


def _task(text: str, path: Path, name: str, resources: Resources, retry: bool) -> dict[str, Any]:
    # As text, since a pickled config would need the modules that it names before they are imported.
    config = from_json(text)
    reserve(resources.num_devices)
    quiet = Listener()
    result = _outcome(
        config, path, name, listener=quiet, resources=resources, wait=True, retry=retry
    )
    assert result is not None
    return result


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
