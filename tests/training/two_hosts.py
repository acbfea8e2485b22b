"""One of two processes that train together: its index, the port, the folder, and what.

"sweep" trains one sweep; "cut" trains a run whose sequences are cut over the devices of both.
"""

import json
import sys
from pathlib import Path

import jax


def main(index: int, port: str, folder: str, what: str) -> None:
    jax.distributed.initialize(f"localhost:{port}", 2, index)
    from dsfjax.training import Resources, RunError, devices, sweep, train
    from tests.training.small_config import CONFIG

    assert (jax.process_count(), jax.device_count()) == (2, 4)
    if what == "cut":
        print(json.dumps(train(CONFIG, folder, resources=Resources(sequence_shards=4))))
        return
    assert devices.agree(lambda: {"a": [1, None]}) == {"a": [1, None]}
    rows = sweep({"one": CONFIG}, folder, resources=Resources(at_most=4))
    # What the first process finds wrong with a folder, the others hear too.
    try:
        train(CONFIG, Path(folder).parent)
    except (RunError, ValueError) as error:
        refused = str(error)
    print(json.dumps({"rows": rows, "refused": refused}))


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
