"""Rotary positions of longer contexts, against the values of transformers in float64."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

import dsfjax
from dsfjax.interop.published.rotary import Rotation, rotation_of
from dsfjax.interop.published.tensor_files import Config
from tests.opened import HERE, distance

with np.load(HERE.parent / "rope_scaling.npz") as _file:
    KNOWN = dict(_file)
CASES = ("linear", "llama3", "yarn", "yarn_set", "yarn_factor")


def settings(case: str) -> dict:
    """What the config of a case says under ``rope_parameters``."""
    return json.loads(str(KNOWN[f"{case}_config"]))


def rotation(rope: dict, head_dim: int = 8) -> Rotation:
    """Of a config that says this."""
    found = rotation_of(Config({"rope_parameters": rope}), head_dim)
    assert found is not None
    return found


@pytest.mark.parametrize("case", CASES)
def test_frequencies(case: str) -> None:
    small, given = rotation(settings(case)), settings(case)
    np.testing.assert_allclose(small.frequencies(), KNOWN[f"{case}_frequencies"], rtol=1e-14)
    assert math.isclose(small.amplitude, KNOWN[f"{case}_amplitude"], rel_tol=1e-15)
    if "original_max_position_embeddings" in given:
        given["original_max_position_embeddings"] = 4096
    large = rotation(given, 128).frequencies()
    np.testing.assert_allclose(large, KNOWN[f"{case}_frequencies_128"], rtol=1e-14)
    if case.startswith("yarn"):  # some waves are kept, some stretched, and some mixed
        plain = rotation({"rope_theta": given["rope_theta"]}, 128).frequencies()
        kept, stretched = np.isclose(large, plain), np.isclose(large, plain / given["factor"])
        assert kept.any() and stretched.any() and not (kept | stretched).all()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_logits(case: str, tmp_path: Path) -> None:
    """Of the small Llama, with other positions."""
    folder = Path(shutil.copytree(HERE / "llama", tmp_path / "llama"))
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = settings(case)
    (folder / "config.json").write_text(json.dumps(config))
    model = dsfjax.open(folder, dtype="float64")
    found = model.logits(KNOWN["ids"])
    assert distance(found, KNOWN[f"{case}_logits"]) < 1e-12
    others = [KNOWN[f"{other}_logits"] for other in CASES if other != case]
    assert all(distance(found, other) > 1e-3 for other in others)


@pytest.mark.parametrize("case", CASES)
def test_older_names_say_the_same(case: str) -> None:
    own = settings(case)
    theta, name = own.pop("rope_theta"), own.pop("rope_type")
    older = Config({"rope_theta": theta, "rope_scaling": {"type": name, **own}})
    assert rotation_of(older, 8) == rotation(settings(case))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_type": "longrope"}, "rope_type: 'longrope' has no exact equivalent here; expected"),
        ({"factor": None}, "factor: expected a value, got none"),
        ({"factor": 0}, "factor: expected a finite number above 0, got 0"),
        ({"beta_slow": 40.0}, "beta_fast: expected a number above beta_slow, 40.0, got 32.0"),
        ({"truncate": 1}, "truncate: expected true or false, got 1"),
        ({"rope_theta": 1.0}, "rope_theta: expected a number above 1 for YaRN, got 1.0"),
        ({"attention_factor": -1.0}, "attention_factor: expected a finite number above 0"),
        ({"partial_rotary_factor": 1.5}, "factor: expected a finite number above 0 and at most 1"),
        ({"original_max_position_embeddings": None}, "embeddings: expected a value, got none"),
    ],
)
def test_settings_that_do_not_fit(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rotation({**settings("yarn"), **change})


def test_bands_in_the_wrong_order() -> None:
    with pytest.raises(ValueError, match="high_freq_factor: expected a number above low_freq"):
        rotation({**settings("llama3"), "low_freq_factor": 4.0})
