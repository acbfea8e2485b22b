"""The small figures hold the values that were put in, one artist for each layer."""

import numpy as np
import pytest
from matplotlib.colors import LogNorm, SymLogNorm

from dsfjax.aspects import Layers, eigenvalues, gradient_flow, memory_curves, phi_maps, state_use
from dsfjax.aspects.style import panel
from tests.report.synthetic import LENGTH, PAIRS, comparison

ENTRIES = comparison().entries


def layers(entry: int, aspect: str) -> Layers:
    findings = ENTRIES[entry].findings
    assert findings is not None
    return findings[aspect]


def test_panels_draw_a_line_per_layer() -> None:
    memory = layers(2, "memory")
    for draw, own, read in (
        (memory_curves.draw_survival, memory, lambda layer: layer.survival),
        (memory_curves.draw_retention, memory, lambda layer: layer.state),
        (gradient_flow.draw, layers(2, "stability"), lambda layer: layer.gradient),
    ):
        (ax,) = draw("ssd", own, "#0072b2").axes
        named = [x for x in ax.lines if str(x.get_label()).startswith("layer")]
        assert [x.get_label() for x in named] == ["layer 1", "layer 2"]
        for line, layer in zip(named, own, strict=True):
            np.testing.assert_array_equal(np.asarray(line.get_ydata()), read(layer))
    (ax,) = memory_curves.draw_retention("ssd", memory, "#0072b2").axes
    dots = [line for line in ax.lines if line.get_marker() == "."]
    np.testing.assert_array_equal(np.asarray(dots[1].get_ydata()), memory[1].predicted)


def test_outlines_are_the_shares() -> None:
    own = layers(0, "eigenvalues")
    for draw, name in ((eigenvalues.draw_moduli, "moduli"), (eigenvalues.draw_phases, "phases")):
        (ax,) = draw("x", own, "#0072b2").axes
        drawn = [patch.get_data().values for patch in ax.patches if patch.get_label()]
        for layer in own:
            assert any(np.array_equal(values, getattr(layer, name)) for values in drawn)


def test_use_is_relative_to_the_largest_and_to_n() -> None:
    own = layers(2, "state_use")
    line = state_use.draw("ssd", own, "#0072b2").axes[0].lines[0]
    values = np.asarray(own[0].use)
    x, y = np.asarray(line.get_xydata()).T
    np.testing.assert_allclose(x, np.arange(1, values.size + 1) / values.size)
    np.testing.assert_allclose(y, np.maximum(values / values[0], state_use.FLOOR))


@pytest.mark.parametrize("signed", [False, True])
def test_kernel_map(signed: bool) -> None:
    kernel = np.tril(np.random.default_rng(0).uniform(0.1, 3.0, (LENGTH, LENGTH)))
    if signed:
        kernel[5, 2] = -6.0
    ax = phi_maps.kernel_map("ssd", kernel, PAIRS).axes[0]
    (image,) = ax.images
    shown = image.get_array()
    assert isinstance(shown, np.ma.MaskedArray)
    np.testing.assert_array_equal(shown.mask, np.triu(np.ones((LENGTH, LENGTH), bool), 1))
    past = np.tri(LENGTH, dtype=bool)
    np.testing.assert_allclose(shown.data[past], (kernel / np.abs(kernel).max())[past])
    assert isinstance(image.norm, SymLogNorm if signed else LogNorm)
    rings = next(line for line in ax.lines if line.get_marker() == "o")
    np.testing.assert_array_equal(rings.get_xydata(), [(s, t) for t, s in PAIRS])


def test_kernel_of_zeros_is_drawn() -> None:
    shown = phi_maps.kernel_map("none", np.zeros((4, 4)), ()).axes[0].images[0].get_array()
    assert shown is not None
    np.testing.assert_array_equal(np.ma.compressed(shown), [phi_maps.FLOOR] * 10)


def test_what_is_not_finite_in_a_kernel_stays_blank() -> None:
    kernel = np.tril(np.ones((4, 4)))
    kernel[2, 1] = np.nan
    shown = phi_maps.kernel_map("none", kernel, ()).axes[0].images[0].get_array()
    assert isinstance(shown, np.ma.MaskedArray)
    assert np.asarray(shown.mask)[2, 1] and np.ma.compressed(shown).tolist() == [1.0] * 9


def test_areas_of_many_layers_together_hide_no_line() -> None:
    few = layers(0, "eigenvalues")
    for count in (2, 12):
        found = eigenvalues.draw_moduli("mixer", [few[0]] * count, "#0072b2")
        opacity = [x.get_alpha() for x in found.axes[0].patches if x.get_fill()]
        assert len(opacity) == count
        assert 1 - np.prod(1 - np.asarray(opacity)) < 0.35  # of all areas upon one another


def test_of_many_layers_the_first_and_the_last_are_named() -> None:
    def draw(ax, layer, style):
        ax.plot([0, 1], [0, layer], **style)

    for count, named in ((4, 4), (12, 2)):
        (ax,) = panel("mixer", list(range(count)), "#0072b2", draw, lambda ax: None, "x").axes
        legend = ax.get_legend()
        assert legend is not None and len(legend.get_texts()) == named
        assert legend.get_texts()[-1].get_text() == f"layer {count}"
        alphas = [x.get_alpha() for x in ax.lines]
        assert alphas == ([None] * 4 if count == 4 else sorted(set(alphas)))
