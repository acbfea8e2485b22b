"""A checkpoint gives every bit back, or says by name what is wrong with it."""

import logging
import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax.training.storage import checkpoint
from dsfjax.training.storage.checkpoint import CheckpointError, DamagedError, read, restore, save


class Pair(NamedTuple):
    params: dict
    key: jax.Array


def tree(seed: int) -> Pair:
    key = jax.random.key(seed)
    params = {
        "layers": [{"w": jax.random.normal(key, (3, 5), jnp.float32)}, {"w": jnp.float64(0.1)}],
        "half": jnp.asarray([1.5, -jnp.inf, jnp.nan], jnp.bfloat16),
        "count": jnp.int32(seed),
    }
    return Pair(params, jax.vmap(jax.random.key)(jnp.arange(2) + seed))


def assert_same(a: Pair, b: Pair) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
    assert bool((a.key == b.key).all())


def biggest(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_round_trip_keeps_every_bit(tmp_path: Path) -> None:
    path = save(tmp_path / "new", 7, tree(3))
    assert path == tmp_path / "new" / "step_00000007"
    found = restore(tmp_path / "new", jax.eval_shape(lambda: tree(0)))
    assert found is not None
    assert found.step == 7
    assert_same(found.tree, tree(3))


def test_notes_are_kept_with_the_arrays(tmp_path: Path) -> None:
    notes = [{"step": 3, "loss": 0.1}, {"step": 3, "loss": None}]
    path = save(tmp_path, 7, {"a": jnp.ones(2)}, notes=notes)
    assert read(path, {"a": jnp.ones(2)}).notes == notes
    meta = path / "meta" / "metadata"
    meta.write_text(meta.read_text().replace("0.1", "0.2"))
    with pytest.raises(DamagedError, match="checksum"):
        read(path, {"a": jnp.ones(2)})


def test_nothing_there(tmp_path: Path) -> None:
    assert restore(tmp_path / "absent", tree(0)) is None
    assert restore(tmp_path, tree(0)) is None


def test_keeps_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        save(tmp_path, step, tree(step))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000002", "step_00000010"]
    found = restore(tmp_path, tree(0))
    assert found is not None
    assert found.step == 10


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 4, tree(1))
    save(tmp_path, 4, tree(2))
    assert_same(read(tmp_path / "step_00000004", tree(0)).tree, tree(2))


def truncate(path: Path) -> None:
    victim = biggest(path / "state")
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])


def remove_arrays(path: Path) -> None:
    shutil.rmtree(path / "state")


def empty(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def alter(path: Path) -> None:
    other = path.with_name("elsewhere")
    save(other, 2, tree(9))
    shutil.rmtree(path / "state")
    shutil.copytree(other / "step_00000002" / "state", path / "state")
    shutil.rmtree(other)


@pytest.mark.parametrize("damage", [truncate, remove_arrays, empty, alter])
def test_damage_is_set_aside_by_name_and_the_one_before_is_used(
    damage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1, tree(1))
    damage(save(tmp_path, 2, tree(2)))
    with caplog.at_level(logging.WARNING, logger="dsfjax"):
        found = restore(tmp_path, tree(0))
    assert found is not None
    assert found.step == 1
    assert_same(found.tree, tree(1))
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["broken_step_00000002", "step_00000001"]
    (record,) = [r for r in caplog.records if r.name == "dsfjax"]
    assert "step_00000002 set aside as broken_step_00000002" in record.getMessage()


def test_all_broken_means_from_the_start(tmp_path: Path) -> None:
    truncate(save(tmp_path, 1, tree(1)))
    assert restore(tmp_path, tree(0)) is None
    # A second time there is nothing to say, and a new break takes the name over.
    truncate(save(tmp_path, 1, tree(1)))
    assert restore(tmp_path, tree(0)) is None
    assert [p.name for p in tmp_path.iterdir()] == ["broken_step_00000001"]


def test_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    save(tmp_path, 1, tree(1))
    save(tmp_path, 2, {"w": jnp.ones(2)})
    truncate(save(tmp_path, 3, tree(3), keep=3))
    with pytest.raises(CheckpointError, match="missing|not part of this program"):
        restore(tmp_path, tree(0))
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["step_00000001", "step_00000002", "step_00000003"]


def test_an_unfinished_one_is_set_aside_and_a_stranger_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save(tmp_path, 3, tree(1))
    path.rename(tmp_path / "step_00000003.orbax-checkpoint-tmp-12")
    save(tmp_path, 1, tree(5))
    (tmp_path / "mine").mkdir()
    with caplog.at_level(logging.WARNING, logger="dsfjax"):
        found = restore(tmp_path, tree(0))
    assert found is not None
    assert found.step == 1
    assert (tmp_path / "broken_step_00000003.orbax-checkpoint-tmp-12").is_dir()
    assert (tmp_path / "mine").is_dir()
    assert "step_00000003.orbax-checkpoint-tmp-12" in caplog.text


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({"a": jnp.ones(2), "b": jnp.ones(1)}, "'b' is missing"),
        ({}, "'a' is not part of this program"),
        ({"a": jnp.ones(3)}, r"'a': expected float64\[3\], got float64\[2\]"),
        ({"a": jnp.ones(2, jnp.float32)}, r"expected float32\[2\], got float64\[2\]"),
    ],
)
def test_other_structure_is_named(template: dict, message: str, tmp_path: Path) -> None:
    path = save(tmp_path, 1, {"a": jnp.ones(2)})
    with pytest.raises(CheckpointError, match=message):
        read(path, template)


def test_format_of_the_future_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT", 4)
    path = save(tmp_path, 1, {"a": jnp.ones(2)})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="expected format 3, got 4"):
        read(path, {"a": jnp.ones(2)})


def test_format_2_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It had no notes, and its checksum was of the arrays alone, as that of no notes is now."""
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    path = save(tmp_path, 1, {"a": jnp.ones(2)})
    monkeypatch.undo()
    found = read(path, {"a": jnp.ones(2)})
    assert (found.step, found.notes) == (1, None)
