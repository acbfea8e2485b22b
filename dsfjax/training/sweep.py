"""A sweep: many programs, each of many members, in one folder and one table.

What changes a shape (the mixer, widths, lengths, the task) is another program; what does not is an
axis of :class:`~dsfjax.training.config.TrainConfig` and trains in the same one. The folder has a
run per program (:mod:`dsfjax.training.run`), ``compare.json`` with a row per program
(:mod:`dsfjax.training.comparison`) and ``results.sqlite`` with a row per member
(:mod:`dsfjax.training.store`).

Any number of processes may run the same sweep, or others, in one folder: a program is run by one
process at a time, and each takes those that are free. Where a process dies its programs are free
again, and whoever runs them next goes on from their checkpoints.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsfjax.training import files, hosts, store
from dsfjax.training.comparison import row
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
) -> list[dict[str, Any]]:
    """Train each config in a folder of its own, and write the tables of all of them.

    A finished run is not run again and an unfinished one goes on, so an interrupted sweep is
    resumed by calling this again.

    Args:
        configs: Name (a folder's) to config.
        run_dir: Folder of the sweep.
        listener: Is told of the progress.
        resources: What each run may use.
        launcher: Where the runs are run (:mod:`dsfjax.training.launch`).

    Returns:
        A row per config, in the given order, as :func:`~dsfjax.training.comparison.row` makes it.
        ``compare.json`` has the same, and is written anew after each run.

    Raises:
        ValueError: If a model cannot be built; nothing has been trained then.
        RunError: If a folder in ``run_dir`` belongs to another config.
    """
    for config in configs.values():
        program_of(config)
    folder, rows = Path(run_dir), {}
    for name, result in launcher(configs, folder, listener or Listener(), resources):
        rows[name] = row(name, result)
        if hosts.is_primary():
            store.add(folder, name)
            with files.lock(folder):
                files.write_json(folder / "compare.json", _in_order(configs, rows))
    return _in_order(configs, rows)


def _in_order(
    configs: Mapping[str, TrainConfig], rows: Mapping[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    return [rows[name] for name in configs if name in rows]
