"""A long text, piece by piece: the numbers are those of the whole text at once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dsfjax
from dsfjax.interop.published import mean_loss
from dsfjax.report import along
from tests.opened import HERE

IDS = np.random.default_rng(0).integers(64, size=13)


@pytest.fixture(scope="module")
def mamba() -> dsfjax.Opened:
    return dsfjax.open(HERE / "mamba", dtype=jnp.float64)


def test_bits_and_moduli_of_every_piece(mamba: dsfjax.Opened) -> None:
    said: list[str] = []
    found = along.read(mamba, IDS, piece=5, said=said.append)
    assert found.begins.tolist() == [0, 5, 10] and found.ends.tolist() == [5, 10, 13]
    assert found.columns == (1, 2) and len(said) == 3
    logs = jax.nn.log_softmax(mamba.logits(IDS))[:-1]
    bits = -np.asarray(logs)[np.arange(12), IDS[1:]] / np.log(2)
    expected = [bits[:4].mean(), bits[4:9].mean(), bits[9:].mean()]
    np.testing.assert_allclose(found.bits, expected, rtol=1e-6)
    whole = float(mean_loss(mamba.logits(IDS), jnp.asarray(IDS))) / np.log(2)
    assert np.average(found.bits, weights=[4, 5, 3]) == pytest.approx(whole, rel=1e-6)
    for i, layer in enumerate(mamba.systems(IDS)):
        ((system, _),) = layer
        assert isinstance(system, dsfjax.System) and isinstance(system.A, dsfjax.Diagonal)
        moduli = np.exp(np.asarray(system.A.log_decay()))
        for j, (begin, end) in enumerate(zip(found.begins, found.ends, strict=True)):
            # Quantiles are read off a histogram, whose bins are narrow.
            assert found.kept[j, i] == pytest.approx(np.median(moduli[begin:end]), abs=0.01)
    rows = list(along.rows([found]))
    assert len(rows) == 6 and rows[3]["begin"] == 5 and rows[3]["mixer"] == 2
    assert rows[3]["median_modulus"] == found.kept[1, 1] and rows[3]["bits"] == found.bits[1]


def test_the_section(mamba: dsfjax.Opened) -> None:
    found = along.read(mamba, IDS, piece=7, name="one")
    other = dataclasses.replace(found, mixer="two", columns=(), kept=np.zeros((2, 0)))
    page = along.shown([found, other])
    assert "Along the text" in page and page.count("<figure>") == 2  # bits, and what "one" keeps
    assert [row["mixer"] for row in along.rows([other])] == [0, 0]


def test_attention_has_bits_alone() -> None:
    model = dsfjax.open(HERE / "llama", dtype=jnp.float64)
    found = along.read(model, IDS, piece=5)
    assert found.columns == () and found.kept.shape == (3, 0)
    whole = float(mean_loss(model.logits(IDS), jnp.asarray(IDS))) / np.log(2)
    assert np.average(found.bits, weights=[4, 5, 3]) == pytest.approx(whole, rel=1e-6)
