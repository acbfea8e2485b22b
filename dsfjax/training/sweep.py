"""A sweep: many programs, each of many members, in one folder and one table.

What changes a shape (the mixer, widths, lengths, the task) is another program; what does not is an
axis of :class:`~dsfjax.training.config.TrainConfig` and trains in the same one. The folder has a
run per program (:mod:`dsfjax.training.run`) and ``results.sqlite`` with a row per member
(:mod:`dsfjax.training.store`). ``compare.json`` is a view of that table: a row per finished program
of the folder, whichever sweep it was of (:mod:`dsfjax.training.comparison`).

Any number of processes may run the same sweep, or others, in one folder: a program is run by one
process at a time, and each takes those that are free. Where a process dies its programs are free
again, and whoever runs them next goes on from their checkpoints.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsfjax.training import comparison, files, hosts, store
from dsfjax.training import folder as run_folder
from dsfjax.training.config import TrainConfig
from dsfjax.training.launch import Launcher, here
from dsfjax.training.run import EVERYTHING, Listener, Resources, program_of


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
        launcher: Where the runs are run (:mod:`dsfjax.training.launch`).
        retry_failed: Whether to run programs again that failed before; by default they only keep
            their rows.

    Returns:
        A row per config, in the given order, as :func:`~dsfjax.training.comparison.row` makes it,
        with ``status`` "finished"; of a program that failed ``mixer`` (its name), ``status`` and
        ``reason``.

    Raises:
        ValueError: If a model cannot be built; nothing has been trained then.
        RunError: If a folder in ``run_dir`` belongs to another config, or ``results.sqlite`` to
            another program; nothing has been trained then.
    """
    for config in configs.values():
        program_of(config)
    hosts.agree(lambda: _check(configs, Path(run_dir)))
    folder, rows = Path(run_dir), {}
    for name, result in launcher(configs, folder, listener or Listener(), resources, retry_failed):
        rows[name] = comparison.row(name, result)
        if hosts.is_primary():
            store.add(folder, name)
            with files.lock(folder):
                files.write_json(folder / "compare.json", comparison.finished(folder))
    return [rows[name] for name in configs]


def _check(configs: Mapping[str, TrainConfig], folder: Path) -> None:
    store.check(folder)
    for name, config in configs.items():
        run_folder.check(folder / name, config)
