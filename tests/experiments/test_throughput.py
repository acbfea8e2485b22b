"""The table of throughputs: what is run by hand is right, and every row has its numbers."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dsfjax
from dsfjax import systems, tasks
from experiments import by_hand, throughput
from experiments.comparison import Options
from tests.checks import unchecked
from tests.tasks.conftest import MakeUp
from tests.tasks.conftest import made_up as made_up

REVIEWS = [b"a film that I would gladly see once more " * n for n in (2, 2, 3)] * 8
"""Two of them fill a window of the scale demo: as many are held out."""


@pytest.fixture
def texts(made_up: MakeUp, tmp_path: Path) -> None:
    """A text, and reviews of 24 films."""
    np.savez(tmp_path / "films.npz", unsup=np.arange(len(REVIEWS)))
    made_up(
        {
            "tinyshakespeare/input.txt": b"To be, or not to be:\nthat is the question.\n" * 12,
            "imdb/imdb_unsup.txt": b"".join(review + b"\n" for review in REVIEWS),
            "imdb/imdb_movie_ids.npz": (tmp_path / "films.npz").read_bytes(),
        }
    )


def test_engines_by_hand_give_values_and_gradients_of_the_definition() -> None:
    arch = systems.get("s4d", d_model=3, d_state=4)
    params = arch.init(jax.random.key(0))
    u = jax.random.normal(jax.random.key(1), (20, 3))
    h0 = jax.random.normal(jax.random.key(2), (3, 4, 1)) + 1j

    def outcome(method):
        def loss(params, u, h0):
            y, h = dsfjax.scan(arch.system(params, u), u, h0, method=method)
            return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.abs(h)), y

        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(params, u, h0)

    found = jax.jit(lambda: [outcome(x) for x in ("sequential", *by_hand.BY_HAND)])()
    for each in found[1:]:
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-12), each, found[0])


def test_padded_windows_count_what_is_of_the_document(texts: None) -> None:
    padded = tasks.get("language", corpus="imdb", seq_len=100, packed=False)
    count = padded.size("train")
    assert count
    weights = tasks.examples(padded, "train", count, jax.random.key(0)).weights
    assert weights is not None
    assert throughput._counted(padded) == pytest.approx(float(weights.mean()))
    assert throughput._counted(tasks.get("language", corpus="imdb", seq_len=100)) == 1


@pytest.mark.slow
def test_every_row_is_measured(texts: None, tmp_path: Path) -> None:
    out = tmp_path / "throughput.json"
    with unchecked():  # engines by hand have names that the type of a config does not list
        rows = throughput.COMPARISON.run(Options(scale="demo", repeats=3, out=out), "the command")
    written = json.loads(out.read_text())
    assert written["command"] == "the command"
    assert written["machine"]["versions"]["jax"]
    assert written["rows"] == [row._asdict() for row in rows]
    assert [row.wanted for row in rows] == [1.3, 2, 2, 5, 1, 10, None]
    for row in rows:
        better = row.other / row.ours if row.unit in ("ms", "MiB") else row.ours / row.other
        assert row.ratio == pytest.approx(better) and row.ratio > 0
