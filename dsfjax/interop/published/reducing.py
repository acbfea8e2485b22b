r"""Smaller states for an opened model: which directions a text uses, folded into the weights.

A state :math:`h_t = a_t h_{t-1} + k_t v_t^\top`, read as :math:`y_t = h_t^\top q_t`, can have fewer
rows. Where the decay is one number per head and q and k are linear maps of the layer's input, any
projection will do: it commutes with the decay, and :math:`q' = R q`, :math:`k' = L k` are the same
maps with other weights. Mean Gramians over a text balance them (`dsfjax.analysis.balancing`), so
that :math:`q'^\top k' ≈ q^\top k`.

Where something that is not linear follows the maps (the SiLU after the convolution of SSD) or every
state has a decay of its own (S6, GLA), a projection has no place in the format. Selecting
states has one: it commutes with everything that works on each state by itself. L and R are then
rows of the identity: those of the states i with the largest
:math:`\sum_c \bar P_{ii} \bar Q_{ii}` over the channels c that share B and C, which measures how
strongly a state is driven and read.

A layer that is reduced further than others has rows of zeros: nothing reads these states, so the
numbers are those of the smaller layer, and a format with one size for all layers has it. So has one
whose states have no size of their own.

Where B and C are divided by their root mean squares over the states of a step, those of fewer
states are others. With :math:`ρ_B^2` the mean square of what the norm of B gives, over the text
and the states that are kept, relative to that over all states, and :math:`ρ_C^2` the same of C, a
factor :math:`ρ_B ρ_C` on what is read sets this right in the mean (`Norms`), and exactly where what
is left out is zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from dsfjax.analysis import Gramians, balancing, mean_gramians
from dsfjax.core import InnerOutput, OuterInput, System
from dsfjax.core.dtypes import state_dtype
from dsfjax.interop.published.naming import REGISTRY
from dsfjax.interop.published.opened import Ids, Opened
from dsfjax.interop.published.reducible import FAMILIES, Rows, States
from dsfjax.interop.published.tensor_files import Config


class Use(NamedTuple):
    """How much a text uses the states of a layer.

    Attributes:
        gramians: `dsfjax.analysis.mean_gramians`, (H, c, n, n).
        squares: Mean squares over the text of what is written to every state and of what reads it,
            b and c, (groups, n) each.
    """

    gramians: Gramians
    squares: tuple[Float[Array, "G n"], Float[Array, "G n"]]


class Reduced(NamedTuple):
    """A model with smaller states.

    Attributes:
        model: The model; `Opened.save` writes it in the format of the one that it came from.
        kept: Per layer, how much of Σ σ² is kept: of the Hankel singular values σ of the mean
            Gramians where they are projected, of √(P_ii Q_ii) where states are selected.
    """

    model: Opened
    kept: dict[int, float]


def measure_states(
    model: Opened, ids: Ids, *, layers: Iterable[int] | None = None
) -> dict[int, Use]:
    """How much the states of layers are driven and read, on a text.

    Args:
        model: A model.
        ids: The text, tokens (L,), at least two.
        layers: Numbers of the layers; by default all that have a `System`.

    Returns:
        `Use` by the number of the layer.

    Raises:
        ValueError: For a layer whose state cannot be made smaller, with its structure: expected
            are a scalar or a diagonal decay of a family that `FAMILIES` knows. If these are not
            tokens (L,).
    """
    if np.ndim(ids) != 1 or np.size(ids) < 2:
        raise ValueError(f"reduce: expected at least two tokens (L,), got {list(np.shape(ids))}.")
    found = model.systems(ids)
    recurrent = [i for i, used in enumerate(found) if any(isinstance(s, System) for s, _ in used)]
    places, chosen = _places(model), recurrent if layers is None else sorted(set(layers))
    for i in chosen:
        if not 0 <= i < len(found):
            raise ValueError(f"reduce: expected layers from 0 to {len(found) - 1}, got {i}.")
        if i not in places:
            structure = ", ".join(
                type(s.A if isinstance(s, System) else s).__name__ for s, _ in found[i]
            )
            raise ValueError(
                f"reduce: layer {i} of {model.config.get('model_type')}: expected S6, SSD, mLSTM, "
                "GLA, HGRN2, retention or lightning attention, with features of 0 that are 0, got "
                f"{structure or 'no mixer'}; choose other layers or another model."
            )
    if not chosen:
        raise ValueError(f"reduce: expected a layer with a state, found none in {model.path}.")
    return {i: _use(next(s for s, _ in found[i] if isinstance(s, System))) for i in chosen}


def _use(system: System) -> Use:
    B, C = system.B, system.C
    assert isinstance(B, OuterInput) and isinstance(C, InnerOutput)
    squares = [jnp.square(x).mean(axis=(0, 1)) for x in (B.vectors(), C.vectors()) if x is not None]
    return Use(mean_gramians(system), (squares[0], squares[1]))


def reduce(model: Opened, states: int, measured: Mapping[int, Use]) -> Reduced:
    """Keep so many states per group of heads, those that a text has used most.

    Args:
        model: A model.
        states: How many are kept, from 1 to N.
        measured: By `measure_states` of this model; these layers are reduced. If they are all that
            have states, and the format has a size for these, the config has the new one; else it
            keeps the old one.

    Returns:
        The smaller model, and how much of every layer is kept.

    Raises:
        ValueError: If there are not so many states, or an odd number where states are rotated in
            pairs.

    Numerics:
        Where states are selected, the tensors have the numbers that they had. Weights of a
        projection are computed in float32 at least. A text of fewer than N tokens does not drive
        all directions: what it leaves out is lost at any size.

    References:
        Moore (1981), IEEE TAC 26(1), with Gramians of a time-varying system.

    Example:
        >>> import dsfjax
        >>> from dsfjax.interop import published
        >>> folder = "tests/golden/checkpoints/mamba"
        >>> model, ids = dsfjax.open(folder), [5, 17, 42, 3, 8, 5, 17]
        >>> measured = published.measure_states(model, ids)
        >>> small = published.reduce(model, 4, measured).model
        >>> model.config["state_size"], small.config["state_size"]
        (8, 4)
    """
    places = _places(model)
    if not measured or measured.keys() - places.keys():
        raise ValueError(f"reduce: expected layers of {sorted(places)}, got {sorted(measured)}.")
    heads, size = next((p.groups * p.readers, p.size) for p in places.values())
    if not 1 <= states <= size:
        raise ValueError(f"reduce: expected from 1 to {size} states, got {states}.")
    if states % 2 and any(places[i].paired for i in measured):
        raise ValueError(
            f"reduce: expected an even number of states, which are rotated in pairs, got {states}."
        )
    family = FAMILIES[model.config["model_type"]]
    shrinks = family.resized is not None and measured.keys() == places.keys()
    rows = states if shrinks else size
    prefix = family.tensor.partition(".")[0]
    params, kept = dict(model.params), {}
    for i, use in measured.items():
        one, names = places[i], model.definition.layers[i].tensors(model.params)
        write, read, kept[i] = _maps(one, use.gramians, states)
        if one.norms is not None:
            own = {name: params[names[f"{prefix}.{name}"]] for name in one.norms.weights or ()}
            factor = states / rows * _share(use, write, list(own.values()))
            for name, by in ((one.norms.skip, 1 / factor), (one.norms.out, factor)):
                name = names[f"{prefix}.{name}"]
                params[name] = (params[name] * by).astype(params[name].dtype)
        write, read = (_filled(maps, rows, one.projected) for maps in (write, read))
        if one.scaled:
            read = read * math.sqrt(rows / size)
        read = jnp.repeat(read, one.readers, axis=0)
        # From the last part of a tensor to the first, so that no place moves before its turn.
        for part in sorted(one.rows, key=lambda part: -part.start):
            name = names[f"{prefix}.{part.tensor}"]
            params[name] = _applied(params[name], part, read if part.reads else write)
    resized = family.resized(rows, model.config, heads) if family.resized and shrinks else {}
    values = {**model.config, **resized}
    config = Config(values, str(model.path / "config.json"))
    shapes = {name: x.shape for name, x in params.items()}
    definition = REGISTRY[values["model_type"]](config, shapes)
    small = Opened(model.path, config, definition, params, model.dtype, model.held)
    return Reduced(small, kept)


def _places(model: Opened) -> dict[int, States]:
    """The layers whose states can be made smaller."""
    family = FAMILIES.get(model.config.get("model_type", ""))
    if family is None:
        return {}
    found = {
        i: family.states(dict(model.definition.layers[i].settings), model.config)
        for i in model.held
        if family.tensor in model.definition.layers[i].tensors(model.params)
    }
    return {i: states for i, states in found.items() if states is not None}


def _maps(
    states: States, means: Gramians, count: int
) -> tuple[Float[Array, "G r n"], Float[Array, "G r n"], float]:
    """L and R of every group, and how much they keep."""
    # Heads of a group are next to each other, and their channels share what writes and reads.
    P, Q = (x.reshape(states.groups, -1, *x.shape[-2:]) for x in means)
    if states.projected:
        values, left, right = balancing(Gramians(P.mean(axis=1), Q.mean(axis=1)), count)
        squares = jnp.square(values)
        return left, right.swapaxes(1, 2), float(squares[:, :count].sum() / squares.sum())
    P, Q = (jnp.diagonal(x, axis1=-2, axis2=-1) for x in (P, Q))
    energy = (P * Q).sum(axis=1)
    if states.paired:  # the states of a pair have the same place in two halves
        halves = energy.reshape(states.groups, 2, -1).sum(axis=1)
        first = jax.lax.top_k(halves, count // 2)[1]
        places = jnp.concatenate([first, first + states.size // 2], axis=-1)
    else:
        places = jax.lax.top_k(energy, count)[1]
    rows = jax.nn.one_hot(jnp.sort(places, axis=-1), states.size, dtype=energy.dtype)
    most = jnp.einsum("gri,gi->", rows, energy, precision="highest")
    return rows, rows, float(most / energy.sum())


def _filled(maps: Float[Array, "G r n"], rows: int, projected: bool) -> Float[Array, "G rows n"]:
    """The maps with rows of zeros; states that are selected stay where they were."""
    if rows == maps.shape[1]:
        return maps
    if projected:
        return jnp.pad(maps, ((0, 0), (0, rows - maps.shape[1]), (0, 0)))
    return jnp.einsum("gri,grj->gij", maps, maps, precision="highest")


def _share(use: Use, kept: Float[Array, "G r n"], weights: list[Array]) -> float:
    """ρ_B ρ_C: root mean squares over the states that are kept, next to those over all."""
    shares = []
    for squares, weight in zip(use.squares, weights or [None, None], strict=True):
        if weight is not None:  # what the norm gave; where it is not known, the mean over all
            scale = jnp.square(weight.astype(squares.dtype))
            squares = jnp.where(scale > 0, squares / jnp.where(scale > 0, scale, 1), 1)
        of_kept = jnp.einsum("gri,gi->gr", kept, squares, precision="highest")
        shares.append(of_kept.mean() / squares.mean())
    return float(jnp.sqrt(shares[0] * shares[1]))


def _applied(x: Array, part: Rows, maps: Float[Array, "G r n"]) -> Array:
    """A tensor with r rows in the place of the n of every group."""
    x, (groups, _, n) = jnp.moveaxis(x, part.axis, 0), maps.shape
    apart = part.apart or n
    end = part.start + (groups - 1) * apart + n
    before, own, after = jnp.split(x, [part.start, end])
    # n rows of every group and then what it has besides; nothing after the last one.
    own = jnp.pad(own, [(0, apart - n), *[(0, 0)] * (x.ndim - 1)]).reshape(groups, apart, -1)
    wide = state_dtype(x.dtype)
    kept = jnp.matmul(maps.astype(wide), own[:, :n].astype(wide), precision="highest")
    own = jnp.concatenate([kept.astype(x.dtype), own[:, n:]], axis=1).reshape(-1, *x.shape[1:])
    own = own[: own.shape[0] - (apart - n)]
    return jnp.moveaxis(jnp.concatenate([before, own, after]), 0, part.axis)
