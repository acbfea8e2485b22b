"""Smaller states of opened models: what is kept, what is lost, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dsfjax
from dsfjax import InnerOutput, Opened, OuterInput, System
from dsfjax.analysis import Gramians
from dsfjax.interop import published
from dsfjax.interop.published import measure_states, reduce
from dsfjax.interop.published.reducing import Use
from tests.opened import (
    distance,
    gla,
    hgrn2,
    mamba2,
    minimax,
    opened,
    reference,
    retnet,
    s6,
    xlstm,
)

MIXERS = {"falcon_mamba": "mixer", "jamba": "mamba"}
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
        P, Q = (np.einsum("hcii->ci", x) for x in means.gramians)
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


@pytest.mark.parametrize("layers", [None, [1]])
@pytest.mark.parametrize("model_type", ["falcon_mamba", "jamba"])
def test_norms_over_the_states_of_which_some_are_zero(
    model_type: str, layers: list[int] | None, tmp_path: Path
) -> None:
    """S6 with normed B and C: their root mean squares over two states are √2 of those over four."""
    model = dsfjax.open(s6(tmp_path / "folder", model_type), dtype="float64")
    for i, states in enumerate(([0, 2], [1, 2])):
        rows = [row + state for row in (3, 7) for state in states]
        model = changed(model, **zeroed(model, f"{i}.{MIXERS[model_type]}.x_proj.weight", rows))
    measured = measure_states(model, IDS, layers=layers)
    small = reduce(model, 2, measured)
    assert distance(small.model.logits(IDS[::-1]), model.logits(IDS[::-1])) < 1e-12
    assert all(abs(kept - 1) < 1e-12 for kept in small.kept.values())
    size = "mamba_d_state" if model_type == "jamba" else "state_size"
    assert small.model.config[size] == (4 if layers else 2)
    again = dsfjax.open(small.model.save(tmp_path / "small"), dtype="float64")
    assert np.array_equal(again.logits(IDS), small.model.logits(IDS))
    less = reduce(model, 1, measured)
    assert distance(less.model.logits(IDS), model.logits(IDS)) > 1e-4
    whole = reduce(model, 4, measured).model
    assert all(distance(whole.params[n], x) < 1e-15 for n, x in model.params.items())


@pytest.mark.parametrize("model_type", ["falcon_mamba", "jamba"])
def test_norms_over_fewer_states_have_their_factor(model_type: str, tmp_path: Path) -> None:
    """Of what the states give and not of D: root mean squares of what the norms gave, by hand."""
    model = dsfjax.open(s6(tmp_path / "folder", model_type), dtype="float64")
    (system, _), *_ = model.systems(IDS)[0]
    assert isinstance(system, System)
    assert isinstance(system.B, OuterInput) and isinstance(system.C, InnerOutput)
    measured = measure_states(model, IDS)
    small = reduce(model, 2, measured).model
    mixer = next(n for n in model.params if n.endswith("0.mixer.D") or n.endswith("0.mamba.D"))[:-1]
    kept = [
        i
        for i in range(4)
        if any(
            np.array_equal(model.params[f"{mixer}A_log"][:, i], column)
            for column in small.params[f"{mixer}A_log"].T
        )
    ]
    assert len(kept) == 2
    factor = 1.0
    for vectors, name in ((system.B.b, "b"), (system.C.c, "c")):
        weight = model.params.get(f"{mixer}{name}_layernorm.weight", np.ones(4))
        normed = np.square(np.asarray(vectors)[:, 0] / weight)
        factor *= np.sqrt(np.mean(normed[:, kept]) / np.mean(normed))
    assert abs(factor - 1) > 1e-3
    for name, by in (("out_proj.weight", factor), ("D", 1 / factor)):
        expected = by * np.asarray(model.params[mixer + name])
        np.testing.assert_allclose(small.params[mixer + name], expected, rtol=1e-12)


def test_keys_that_heads_share_are_selected_together(tmp_path: Path) -> None:
    """GLA: four heads of queries for two of keys; an unread key is one that neither head reads."""
    grouped = {"num_heads": 4, "num_kv_heads": 2, "expand_k": 1.0, "expand_v": 2.0}
    path = gla(tmp_path / "folder", use_short_conv=False, norm_eps=0.1, **grouped)
    model = dsfjax.open(path, dtype="float64")
    for i, rows in enumerate(([0, 3, 8, 11], [1, 4, 6, 9])):
        model = changed(model, **zeroed(model, f"{i}.attn.q_proj.weight", rows))
    small = reduce(model, 2, measure_states(model, IDS)).model
    assert distance(small.logits(IDS), model.logits(IDS)) < 1e-12
    assert small.config["expand_k"] == pytest.approx(8 / 12)
    again = dsfjax.open(small.save(tmp_path / "small"), dtype="float64")
    assert np.array_equal(again.logits(IDS), small.logits(IDS))


@pytest.mark.parametrize(
    ("build", "tensor", "rows", "states"),
    [
        # Pairs 1 and 3 of the first two heads of queries, 0 and 2 of the others.
        (retnet, "q_proj.weight", [1, 3, 5, 7, 8, 10, 12, 14], 2),
        (hgrn2, "q_proj.weight", [1, 4, 11], 3),
        # The queries of each head, then its keys and its values.
        (minimax, "qkv_proj.weight", [1, 9], 2),
    ],
)
def test_formats_without_a_size_for_the_states_have_zeros(
    build: Callable[[Path], Path], tensor: str, rows: list[int], states: int, tmp_path: Path
) -> None:
    model = dsfjax.open(build(tmp_path / "folder"), dtype="float64")
    model = changed(model, **zeroed(model, tensor, rows))
    measured = measure_states(model, IDS)
    small = reduce(model, states, measured).model
    assert small.config == model.config
    assert distance(small.logits(IDS[::-1]), model.logits(IDS[::-1])) < 1e-12
    less = reduce(model, 2 if states == 3 else 1, measured) if build is not retnet else None
    if less is not None:
        assert less.kept[0] < 1 and distance(less.model.logits(IDS), model.logits(IDS)) > 1e-4
    again = dsfjax.open(small.save(tmp_path / "small"), dtype="float64")
    assert np.array_equal(again.logits(IDS), small.logits(IDS))


def test_rotated_states_go_in_pairs(tmp_path: Path) -> None:
    model = dsfjax.open(retnet(tmp_path / "folder"), dtype="float64")
    measured = measure_states(model, IDS)
    with pytest.raises(ValueError, match="expected an even number of states, .* got 3"):
        reduce(model, 3, measured)
    left = np.asarray(reduce(model, 2, measured).model.params["model.layers.0.attn.k_proj.weight"])
    unused = (left == 0).all(axis=1).reshape(2, 2, 2)  # groups of keys, halves, pairs
    assert np.array_equal(unused[:, 0], unused[:, 1]) and (unused[:, 0].sum(axis=1) == 1).all()


@pytest.mark.parametrize("build", [gla, retnet])
def test_keys_that_would_not_be_zero_are_refused(
    build: Callable[..., Path], tmp_path: Path
) -> None:
    model = dsfjax.open(build(tmp_path / "folder", feature_map="sigmoid"), dtype="float64")
    with pytest.raises(ValueError, match="with features of 0 that are 0, got (Diagonal|Scalar)"):
        measure_states(model, IDS)


@pytest.mark.parametrize(
    ("name", "layers", "message"),
    [
        ("llama", None, "expected a layer with a state, found none"),
        ("llama", [1], "layer 1 of llama: expected S6, SSD, .* got KernelSystem"),
        ("qwen3_next", None, "layer 0 of qwen3_next: expected S6, SSD, .* DiagonalPlusLowRank"),
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
    ones = jnp.ones((1, 8))
    means = Use(Gramians(*[jnp.ones((1, 48, 8, 8))] * 2), (ones, ones))
    with pytest.raises(ValueError, match=message):
        reduce(opened("mamba"), states, {layer: means})


def test_what_is_no_text_is_refused() -> None:
    for ids, shape in (([3], r"\[1\]"), ([[3, 4]], r"\[1, 2\]")):
        with pytest.raises(ValueError, match=rf"expected at least two tokens \(L,\), got {shape}"):
            measure_states(opened("mamba"), ids)
    with pytest.raises(ValueError, match=r"expected layers of \[\], got \[\]"):
        reduce(opened("llama"), 4, {})
