"""A long text, piece by piece: how well a model predicts it, and what its layers keep, along it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from dsfjax import aspects
from dsfjax.aspects.eigenvalues import EIGENVALUES, QUANTILES
from dsfjax.aspects.style import LINES, SEQUENTIAL, SETTINGS, colormap, colors, small, turn
from dsfjax.core import System
from dsfjax.interop.published.opened import Opened, mean_loss
from dsfjax.report.html import figure, grid, section

_MEDIAN = QUANTILES.index(0.5)


@dataclasses.dataclass(frozen=True)
class Along:
    """What was seen of a model along a text.

    Attributes:
        mixer: The name of the model.
        begins: The first token of every piece.
        ends: The token after the last of every piece.
        bits: Mean of −log₂ p of the tokens of every piece, given all before them.
        kept: Median |λ| of every piece, a column per System.
        columns: Which mixers these are, counted through all layers from 1.
    """

    mixer: str
    begins: Int[np.ndarray, " pieces"]
    ends: Int[np.ndarray, " pieces"]
    bits: Float[np.ndarray, " pieces"]
    kept: Float[np.ndarray, "pieces systems"]
    columns: tuple[int, ...]


def read(
    model: Opened,
    ids: ArrayLike | Sequence[int],
    *,
    piece: int = 512,
    name: str = "",
    said: Callable[[str], Any] = str,
) -> Along:
    """Let a model read a text of any length, and look at every piece of it.

    States pass from piece to piece, so that nothing of the text is forgotten that the model would
    remember; no more than a piece is in memory beside them and the caches of attention.

    Args:
        model: The model.
        ids: The text, (L,), at least two tokens.
        piece: Tokens of a piece; the last one may be shorter.
        name: What the model is called; its folder by default.
        said: Told of every piece.

    Returns:
        What was seen.
    """
    begins, ends, bits, kept = [], [], [], []
    columns: tuple[int, ...] = ()
    ended: tuple[Array, Array] | None = None  # the last logits and token of the piece before
    for part in model.pieces(np.asarray(ids), piece):
        begin, end = part.begin, part.begin + len(part.ids)
        # The first token of a piece is predicted by the last logits of the piece before.
        own = part.logits, part.ids
        joined = (
            own if ended is None else [jnp.concatenate(x) for x in zip(ended, own, strict=True)]
        )
        ended = part.logits[-1:], part.ids[-1:]
        bits.append(float(mean_loss(*joined) / np.log(2)))
        begins.append(begin)
        ends.append(end)
        used = [each for layer in part.systems for each in layer]
        recurrent = {i: (s, u) for i, (s, u) in enumerate(used, 1) if isinstance(s, System)}
        columns = tuple(recurrent)
        kept.append(_kept(tuple(recurrent.values())) if recurrent else np.zeros(0))
        said(f"tokens {begin:,} to {end:,}: {bits[-1]:.2f} bits per token")
    return Along(
        name or model.path.resolve().name,
        np.array(begins),
        np.array(ends),
        np.array(bits),
        np.stack(kept),
        columns,
    )


def _kept(used: tuple[tuple[System, Array], ...]) -> np.ndarray:
    """Median |λ| of every System."""
    dy = [jnp.zeros((len(u), 0)) for _, u in used]  # gradients, for which this aspect does not ask
    found = []
    for stack in aspects.stacks(used, dy):
        one = jax.tree.map(lambda x: x[None], stack)
        found += jax.tree.map(np.asarray, _eigenvalues(one))
    layers = aspects.summarise((EIGENVALUES,), found).get(EIGENVALUES.name, ())
    known = {i: layer.quantiles[_MEDIAN] for i, layer in aspects.numbered(layers)}
    return np.array([known.get(i, np.nan) for i in range(1, len(used) + 1)])


@jax.jit
def _eigenvalues(stack: aspects.Stack) -> Any:
    asked = aspects.Asked(jnp.zeros((1, 1), jnp.int32), None)
    return aspects.measure((EIGENVALUES,), (stack,), asked)


def rows(models: Sequence[Along]) -> Iterator[Mapping[str, Any]]:
    """A row per model and piece, for a file.

    Args:
        models: What was seen of each.
    """
    for each in models:
        for i, begin in enumerate(each.begins):
            own = {"model": each.mixer, "begin": int(begin), "end": int(each.ends[i])}
            moduli = zip(each.columns, each.kept[i], strict=True)
            for mixer, modulus in moduli if each.columns else ((0, None),):
                yield {**own, "bits": each.bits[i], "mixer": mixer, "median_modulus": modulus}


def shown(models: Sequence[Along]) -> str:
    """The section of a page.

    Args:
        models: What was seen of each.

    Returns:
        HTML.
    """
    parts = [
        figure(
            draw_bits(models),
            "along-bits",
            "bits per token along the text",
            "Mean of −log₂ p of the tokens of every piece, given all before them.",
            "along.csv",
        )
    ]
    parts += [
        figure(
            draw_kept(each),
            f"along-kept-{i}",
            f"what a step keeps in {each.mixer} along the text",
            "Row: recurrent mixer; column: piece of the text; colour: median |λ|.",
            "along.csv",
        )
        for i, each in enumerate(models)
        if each.columns
    ]
    how = (
        "How to read: the whole text, read piece by piece with the states that the piece before "
        "has left. Where the line falls, what was read before helps; where it rises behind the "
        "length of training, the model does not generalise to it. Below, a mixer whose row changes "
        "colour adapts what it forgets to the text."
    )
    return section("Along the text", how, grid("pair", parts))


def draw_bits(models: Sequence[Along]) -> Any:
    """Bits per token of every piece, a line per model.

    Args:
        models: What was seen of each.

    Returns:
        The figure.
    """
    import matplotlib

    names = [each.mixer for each in models]
    palette = colors(names)
    with matplotlib.rc_context(SETTINGS):
        drawn, ax = small(6.6, 2.4, (0.6, 0.5, 0.15, 0.15))
        for each in models:
            style = LINES[turn(names, each.mixer) % len(LINES)]
            middle = (each.begins + each.ends) / 2
            ax.plot(
                middle,
                each.bits,
                color=palette[each.mixer],
                linestyle=style,
                marker=".",
                label=each.mixer,
            )
        ax.set_ylabel("bits per token")
        ax.set_xlabel("token")
        ax.set_ylim(bottom=0)
        if len(models) > 1:
            ax.legend(frameon=False)
    return drawn


def draw_kept(each: Along) -> Any:
    """Median |λ| of every piece, a row per recurrent mixer.

    Args:
        each: What was seen of a model.

    Returns:
        The figure.
    """
    import matplotlib

    with matplotlib.rc_context(SETTINGS):
        height = min(max(len(each.columns), 5), 32) * 0.2
        drawn, ax = small(6.6, height + 0.85, (0.5, 0.5, 0.15, 0.35))
        image = ax.imshow(
            each.kept.T,
            cmap=colormap(SEQUENTIAL),
            vmin=0,
            vmax=max(1.0, float(np.nanmax(each.kept))),
            interpolation="none",
            aspect="auto",
            extent=(float(each.begins[0]), float(each.ends[-1]), len(each.columns) + 0.5, 0.5),
        )
        step = max(1, len(each.columns) // 12)
        numbers = list(enumerate(each.columns, 1))[::step]
        ax.set_yticks([i for i, _ in numbers], [str(mixer) for _, mixer in numbers])
        ax.set_ylabel("mixer")
        ax.set_xlabel("token")
        ax.set_title(each.mixer)
        drawn.colorbar(image, ax=ax, fraction=0.05, pad=0.02)
    return drawn
