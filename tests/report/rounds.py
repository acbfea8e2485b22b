"""Train two small mixers and write their report, again and again in one process.

Run as ``python rounds.py FOLDER ROUNDS``; it says the number of every round that is done.
"""

import shutil
import sys
from pathlib import Path

from dsfjax.report import write
from dsfjax.training import presets, sweep

MIXERS = ("softmax_attention", "s6")


def main(folder: Path, rounds: int) -> None:
    configs = presets.configs("smoke", "mqar", MIXERS)
    for number in range(1, rounds + 1):
        sweep(configs, folder)
        write(folder, folder / "report")
        shutil.rmtree(folder)
        print(number, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
