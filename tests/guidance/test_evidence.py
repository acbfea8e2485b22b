"""Results as records: those that come with the package, and a user's own."""

import zipfile
from pathlib import Path

import jax
import pytest

from dsfjax.guidance import of_folder, shipped
from dsfjax.guidance.evidence import from_lines, to_lines
from dsfjax.tasks import MSE
from experiments import page
from tests.guidance.results import evidence


def test_the_file_is_what_the_command_makes_of_the_committed_results() -> None:
    made = list(page.evidence(page.HERE / "results"))
    assert page.EVIDENCE.read_text(encoding="utf-8") == to_lines(made), (
        "run python -m experiments.page"
    )
    assert list(shipped()) == made
    assert {one.scale for one in made} <= {*page.SCALES}


def test_records_of_errors_are_read_as_they_were_written() -> None:
    own = {"task": "forecast", "demands": ("smoothing", "forecasting"), "options": {"horizon": 96}}
    one = evidence("ssd", 0.4, 0.1, metric=MSE, trivial=1.25, **own)
    lost = evidence("s6", float("inf"), 0.0, metric=MSE, trivial=float("inf"), **own)
    assert from_lines(to_lines([one, lost])) == [one, lost]


def test_own_results(tmp_path: Path) -> None:
    before = Path(__file__).parents[1] / "training" / "storage" / "sweep_of_before.zip"
    with zipfile.ZipFile(before) as archive:
        archive.extractall(tmp_path / "mine")
    with jax.enable_x64(False):
        (found,) = of_folder(tmp_path / "mine")
        (single,) = of_folder(tmp_path / "mine" / "one")
    assert (found.mixer, found.task, found.length) == ("linear_attention", "mqar", 8)
    assert (found.demands, found.source, found.scale) == (("recall",), "mine", "")
    assert (found.seeds, found.steps, found.tokens) == (2, 4, 4 * 2 * 8)
    assert found.label == "mqar, L = 8, vocab size 16, num kv pairs 2"
    assert (single.mean, single.source) == (found.mean, "one")
    with pytest.raises(ValueError, match="found no results.sqlite in nowhere"):
        of_folder("nowhere")
