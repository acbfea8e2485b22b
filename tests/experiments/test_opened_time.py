"""Opened checkpoints next to transformers: the same logits, and a number in every column."""

from pathlib import Path

import pytest

from dsfjax.training.storage import files
from experiments import opened_time


@pytest.mark.slow
def test_every_model_is_measured(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="pip install 'dsfjax[bench]'")
    pytest.importorskip("transformers", reason="pip install 'dsfjax[bench]'")
    out = tmp_path / "opened_time.json"
    rows = opened_time.main(opened_time.Options(length=32, repeats=3, small=True, out=out))
    assert [row.model for row in rows] == list(opened_time.MODELS)
    for row in rows:
        assert 0 < row.our_error < 1e-5 and 0 < row.their_error < 1e-5
        assert row.ratio == row.theirs_ms / row.ours_ms > 0
        assert row.open_seconds > 0 and row.open_memory >= 0
    found = files.read_json(out)
    assert found["rows"] == [row._asdict() for row in rows] and found["length"] == 32
