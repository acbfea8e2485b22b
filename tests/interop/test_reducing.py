"""Smaller states of opened models: what is kept, what is lost, and what is refused."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dsfjax
from dsfjax import Opened
from dsfjax.analysis import Gramians
from dsfjax.interop import published
from dsfjax.interop.published import measure_states, reduce
from tests.opened import distance, gla, mamba2, opened, reference, xlstm

IDS = jnp.asarray(np.random.default_rng(1).integers(0, 9, 24))


def changed(model: Opened, **tensors: jax.Array) -> Opened:
    """A model with other tensors, by the ends of their names."""
    names = {name: end for end in tensors for name in model.params if name.endswith(end)}
    params = {
        name: tensors[names[name]] if name in names else x for name, x in model.params.items()
    }
    config = published.inspect(model.path).config
    return Opened(model.path, config, model.definition, params, model.dtype, model.held)


def zeroed(model: Opened, name: str, rows: list[int]) -> dict[str, jax.Array]:
    """The tensor with zeros in these rows."""
    x = next(x for own, x in model.params.items() if own.endswith(name))
    return {name: x.at[jnp.asarray(rows)].set(0)}


def test_a_selection_keeps_the_numbers_of_the_states_that_it_keeps() -> None:
    """S6: columns of A_log and rows of what makes B and C, after the two of Δ."""
    model, ids = opened("mamba"), reference("mamba")["input_ids_a"][0]
    measured = measure_states(model, ids)
    small = reduce(model, 5, measured)
    assert small.model.config["state_size"] == 5
    for i, means in measured.items():
        P, Q = (np.einsum("hcii->ci", x) for x in means)
        kept = np.sort(np.argsort((P * Q).sum(0))[-5:])
        mixer = f"backbone.layers.{i}.mixer."
        expected = model.params[mixer + "A_log"][:, kept]
        assert np.array_equal(small.model.params[mixer + "A_log"], expected)
        rows = [0, 1, *(2 + kept), *(10 + kept)]
        expected = model.params[mixer + "x_proj.weight"][jnp.asarray(rows)]
        assert np.array_equal(small.model.params[mixer + "x_proj.weight"], expected)
        assert abs(small.kept[i] - (P * Q).sum(0)[kept].sum() / (P * Q).sum()) < 1e-12


def test_a_written_folder_has_the_loss_of_the_model_that_was_written(tmp_path: Path) -> None:
    model, ids = opened("mamba"), reference("mamba")["input_ids_a"][0]
    measured = measure_states(model, ids)
    small = reduce(model, 3, measured).model
    again = dsfjax.open(small.save(tmp_path / "small"), dtype="float64")
    assert again.config["state_size"] == 3 and again.definition == small.definition
    assert np.array_equal(again.logits(ids), small.logits(ids))
    # All states change nothing, and one layer alone is as if its others were not read.
    whole = reduce(model, 8, measured).model
    assert all(np.array_equal(whole.params[n], x) for n, x in model.params.items())
    alone = reduce(model, 3, {1: measured[1]}).model
    assert alone.config["state_size"] == 8
    below, above = (each.hidden(ids) for each in (alone, small))
    assert distance(below[1], model.hidden(ids)[1]) == 0
    part = small.layer(1)(below[1])
    assert distance(below[2], part) < 1e-14 and distance(above[2], part) > 1e-6


def test_states_that_nothing_reads_are_not_missed(tmp_path: Path) -> None:
    """SSD: in each of two groups, one of four channels of C is zero."""
    model = dsfjax.open(mamba2(tmp_path / "folder"), dtype="float64")
    rows = [17, 22]  # of the convolution: after 8 values, then B and C of 2 groups of 4
    model = changed(model, **zeroed(model, "conv1d.weight", rows))
    model = changed(model, **zeroed(model, "conv1d.bias", rows))
    small = reduce(model, 3, measure_states(model, IDS)).model
    assert distance(small.logits(IDS), model.logits(IDS)) < 1e-14
    kept = [i for i in range(24) if i not in (9, 14, *rows)]
    expected = model.params["backbone.layers.0.mixer.conv1d.weight"][jnp.asarray(kept)]
    found = small.params["backbone.layers.0.mixer.conv1d.weight"]
    assert np.array_equal(found, expected)


def test_a_projection_keeps_what_queries_read(tmp_path: Path) -> None:
    """mLSTM: all sizes from that of the space in which the queries are, on any text."""
    model = dsfjax.open(xlstm(tmp_path / "folder"), dtype="float64")
    everything = reduce(model, 3, measure_states(model, IDS))
    assert distance(everything.model.logits(IDS[::-1]), model.logits(IDS[::-1])) < 1e-12
    assert abs(everything.kept[0] - 1) < 1e-12
    # Queries of each head in a plane, none of whose axes is an axis of the channels.
    plane = np.linalg.qr(np.random.default_rng(2).normal(size=(2, 3, 2)))[0]
    into = jax.scipy.linalg.block_diag(*(plane @ plane.swapaxes(1, 2)))
    tensors = {
        f"qkv_opreact.{kind}": x.at[:6].set(into @ x[:6])
        for kind in ("weight", "bias")
        for name, x in model.params.items()
        if name.endswith(f"qkv_opreact.{kind}")
    }
    model = changed(model, **tensors)
    measured = measure_states(model, IDS)
    small = reduce(model, 2, measured).model
    assert small.config["qk_dim_factor"] == pytest.approx(4 / 12)
    assert distance(small.logits(IDS[::-1]), model.logits(IDS[::-1])) < 1e-12
    less = reduce(model, 1, measured)
    assert less.kept[0] < 1 and distance(less.model.logits(IDS), model.logits(IDS)) > 1e-4
    again = dsfjax.open(small.save(tmp_path / "small"), dtype="float64")
    assert np.array_equal(again.logits(IDS), small.logits(IDS))


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("layers", [None, [1]])
def test_keys_of_gla_that_nothing_reads_are_not_missed(
    layers: list[int] | None, conv: bool, tmp_path: Path
) -> None:
    """A decay per key; q is divided by the root of the number of keys, 3 in each of 2 heads."""
    # A factor on q passes through no SiLU; the norm that then takes it away would see it by its ε.
    own = {"use_short_conv": conv, "norm_eps": 1e-20 if conv else 0.1}
    model = dsfjax.open(gla(tmp_path / "folder", **own), dtype="float64")
    model = changed(model, **zeroed(model, "0.attn.q_proj.weight", [0, 4]))
    model = changed(model, **zeroed(model, "1.attn.q_proj.weight", [2, 3]))
    reduced = reduce(model, 2, measure_states(model, IDS, layers=layers)).model
    assert distance(reduced.logits(IDS), model.logits(IDS)) < 1e-12
    assert reduced.config["expand_k"] == pytest.approx((3 if layers else 2) * 2 / 12)
    again = dsfjax.open(reduced.save(tmp_path / "small"), dtype="float64")
    assert np.array_equal(again.logits(IDS), reduced.logits(IDS))
    less = reduce(model, 1, measure_states(model, IDS, layers=layers)).model
    assert distance(less.logits(IDS), model.logits(IDS)) > 1e-6


def test_keys_of_gla_that_would_not_be_zero_are_refused(tmp_path: Path) -> None:
    model = dsfjax.open(gla(tmp_path / "folder", feature_map="sigmoid"), dtype="float64")
    with pytest.raises(ValueError, match="or GLA with a key per head, got Diagonal"):
        measure_states(model, IDS)


@pytest.mark.parametrize(
    ("name", "layers", "message"),
    [
        ("llama", None, "expected a layer with a state, found none"),
        ("llama", [1], "layer 1 of llama: expected S6 or SSD .* got KernelSystem"),
        ("qwen3_next", None, "layer 0 of qwen3_next: expected S6 or SSD .* DiagonalPlusLowRank"),
        ("mamba", [2], "expected layers from 0 to 1, got 2"),
    ],
)
def test_other_structures_are_refused(name: str, layers: list[int] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure_states(opened(name), reference(name)["input_ids_a"][0], layers=layers)


@pytest.mark.parametrize(
    ("states", "layer", "message"),
    [
        (0, 0, "expected from 1 to 8 states, got 0"),
        (9, 0, "expected from 1 to 8 states, got 9"),
        (4, 7, r"expected layers of \[0, 1\], got \[7\]"),
    ],
)
def test_sizes_that_cannot_be(states: int, layer: int, message: str) -> None:
    means = Gramians(*[jnp.ones((1, 48, 8, 8))] * 2)
    with pytest.raises(ValueError, match=message):
        reduce(opened("mamba"), states, {layer: means})


def test_what_is_no_text_is_refused() -> None:
    for ids, shape in (([3], r"\[1\]"), ([[3, 4]], r"\[1, 2\]")):
        with pytest.raises(ValueError, match=rf"expected at least two tokens \(L,\), got {shape}"):
            measure_states(opened("mamba"), ids)
    with pytest.raises(ValueError, match=r"expected layers of \[\], got \[\]"):
        reduce(opened("llama"), 4, {})
