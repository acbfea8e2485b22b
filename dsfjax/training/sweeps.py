"""A sweep: many programs, each of many members, in one folder and one table.

What changes a shape (the mixer, widths, lengths, the task) is another program; what does not is an
axis of :class:`~dsfjax.training.config.TrainConfig` and trains in the same one. The folder has a
run per program (:mod:`dsfjax.training.runs`) and ``results.sqlite`` with a row per member
(:mod:`dsfjax.training.storage.store`). ``compare.json`` is a view of that table: a row per finished
program of the folder, whichever sweep it was of.

Any number of processes may run the same sweep, or others, in one folder: a program is run by one
process at a time, and each takes those that are free. Where a process dies its programs are free
again, and whoever runs them next continues from their checkpoints.

A *launcher* says where the programs are run: here, or on the workers of a Ray cluster. It runs
every config in its folder and yields ``(name, result)`` in the order in which they are done. It is
a function of ``(configs, folder, listener, resources, retry)``. A run that fails does not end the
others: its result is ``failure.json``, with the status "failed" and a reason, and it is not run
again unless ``retry`` is set.

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

from dsfjax.training import devices
from dsfjax.training.compilation import MemoryShortage
from dsfjax.training.config import TrainConfig, from_json, to_json
from dsfjax.training.devices import reserve
from dsfjax.training.runs import EVERYTHING, Busy, Listener, Resources, prepare, program_of, train
from dsfjax.training.storage import files, record, store
from dsfjax.training.storage import folder as run_folder
from dsfjax.training.storage.folder import RunError, by_step, read_metrics

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
    found = None if retry else devices.agree(lambda: run_folder.failure(path, config))
    if found is None:
        try:
            return train(config, path, name=name, listener=listener, resources=resources, wait=wait)
        except Busy:
            return None
        except RunError:
            raise  # a mistake of the caller, not of this run: nothing in the folder was changed
        except Exception as error:
            # Several processes go on together only from what is the same in all of them.
            if jax.process_count() > 1 and not isinstance(error, MemoryShortage):
                raise
            reason, whole = _sentence(error), "".join(traceback.format_exception(error))
            found = devices.agree(lambda: run_folder.fail(path, config, reason, whole))
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
        listener.compiling(name)
    for lines in by_step(line for line in read_metrics(path) if line["step"] > seen[name]):
        seen[name] = lines[0]["step"]
        listener.evaluated(name, lines)


LAUNCHERS: dict[str, Launcher] = {"here": here, "ray": on_ray}
"""Name to launcher."""


def sweep(
    configs: Mapping[str, TrainConfig],
    run_dir: Path | str,
    *,
    listener: Listener | None = None,
    resources: Resources = EVERYTHING,
    launcher: Launcher = here,
    retry_failed: bool = False,
) -> list[dict[str, Any]]:
    """Train each config in a folder of its own, and write the tables of all of them.

    A finished run is not run again and an unfinished one continues, so an interrupted sweep is
    resumed by calling this again. A program that fails, for instance for want of memory, is a row
    with the status "failed" and a reason, and the sweep continues with the next.

    Args:
        configs: Name (a folder's) to config.
        run_dir: Folder of the sweep.
        listener: Is told of the progress.
        resources: What each run may use.
        launcher: Where the runs are run (:mod:`dsfjax.training.sweeps`).
        retry_failed: Whether to run programs again that failed before; by default they only keep
            their rows.

    Returns:
        A row per config, in the given order, as `dsfjax.training.storage.record.row` makes it, with
        ``status`` "finished"; of a program that failed ``mixer`` (its name), ``status`` and
        ``reason``.

    Raises:
        ValueError: If a model cannot be built; nothing has been trained then.
        RunError: If a folder in ``run_dir`` belongs to another config, or ``results.sqlite`` to
            another program; nothing has been trained then.
    """
    for config in configs.values():
        program_of(config)
    devices.agree(lambda: _check(configs, Path(run_dir)))
    folder, rows = Path(run_dir), {}
    for name, result in launcher(configs, folder, listener or Listener(), resources, retry_failed):
        rows[name] = record.row(record.results(name, configs[name], result))
        if devices.is_primary():
            store.add(folder, name)
            with files.lock(folder):
                files.write_json(folder / "compare.json", store.programs(folder))
    return [rows[name] for name in configs]


def _check(configs: Mapping[str, TrainConfig], folder: Path) -> None:
    store.check(folder)
    for name, config in configs.items():
        run_folder.check(folder / name, config)
