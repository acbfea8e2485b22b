"""A batch cut over devices gives the outputs and gradients of the batch; in a process with four."""

import os
import subprocess
import sys

import jax
import pytest

from dsfjax.bench.contest import contest
from dsfjax.bench.contestant import prepare
from dsfjax.bench.measure import compare, cotangent_of, reference_outcome
from tests.bench.small import small


@pytest.mark.slow
def test_on_four_devices() -> None:
    """Also for signals that all sequences share, whose gradients are sums over the devices."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"


def main() -> None:
    jax.config.update("jax_num_cpu_devices", 4)
    for name in ("ssd", "s6", "mamba2"):
        found = contest(small(name))
        case = found.case._replace(sizes=found.case.sizes._replace(batch=4))
        found = contest(case, baselines=False)
        expected = reference_outcome(found, cotangent_of(found))
        for contestant in found.contestants:
            ready = prepare(
                contestant, found.signals, cotangent_of(found), shared=found.shared,
                with_forward=True,
            )  # fmt: skip
            assert ready.forward is not None
            assert len(ready.forward().sharding.device_set) == 4
            value, gradient = compare(ready.outcome(), expected)
            assert value < 2e-6 and gradient < 1e-5, (name, contestant.name, value, gradient)
    print("done")


if __name__ == "__main__":
    main()
