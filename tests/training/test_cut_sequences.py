"""Training on sequences that are cut over devices, in processes that have eight."""

import json

import pytest

from tests.training.cut_sequences import ARCHITECTURES
from tests.training.processes import ROOT, start


def eight_devices(what: str, **variables: str) -> str:
    """What the program of this name prints."""
    process = start(str(ROOT / "tests/training/cut_sequences.py"), what, devices=8, **variables)
    out, err = process.communicate(timeout=1500)
    assert process.returncode == 0, out + err
    return out


@pytest.mark.slow
def test_a_run_is_that_of_one_device_and_resumes() -> None:
    eight_devices("resumes", JAX_ENABLE_X64="1")


@pytest.mark.slow
def test_every_architecture_trains_as_on_one_device() -> None:
    done = eight_devices("every_architecture", JAX_ENABLE_X64="1")
    assert done.split() == ARCHITECTURES


@pytest.mark.slow
def test_a_language_model_of_70_million_parameters_compiles() -> None:
    found = json.loads(eight_devices("language_model"))
    assert 65e6 < found["parameters"] < 80e6
    # Parameters, their moments and gradients are on every device, a quarter of the activations.
    assert found["bytes of a device"] < 16 * 4 * found["parameters"]
