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

A layer that is reduced further than others has rows of zeros: nothing writes or reads these states,
so the numbers are those of the smaller layer, and a format with one size for all layers has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from dsfjax.analysis import Gramians, balancing, mean_gramians
from dsfjax.core import System
from dsfjax.core.dtypes import state_dtype
from dsfjax.interop.published.naming import REGISTRY
from dsfjax.interop.published.opened import Ids, Opened
from dsfjax.interop.published.tensor_files import Config


class Rows(NamedTuple):
    """The part of a tensor that has an entry per state.

    Attributes:
        tensor: Its name within the mixer.
        start: Where the part begins on the axis; states are in order within every group.
        reads: Whether it makes what reads the states, such as C, or what is written or kept.
        axis: The axis.
    """

    tensor: str
    start: int
    reads: bool = False
    axis: int = 0


class States(NamedTuple):
    """The states of a mixer, and all that is made for them.

    Attributes:
        groups: Of heads that share what writes and reads their states.
        size: States per group, N.
        rows: Parts of tensors, (groups · size) entries each.
        projected: Whether a projection can be folded into them; a selection always can.
        scaled: Whether the mixer divides what reads the states by √N.
    """

    groups: int
    size: int
    rows: tuple[Rows, ...]
    projected: bool = False
    scaled: bool = False


class Family(NamedTuple):
    """How the models of a type hold their states.

    Attributes:
        tensor: By which tensor a layer is known to have them; its prefix is that of the mixer.
        states: From the settings of the layer; None where none can be left out.
        resized: The settings of a config for another size, from it, the config and the groups.
    """

    tensor: str
    states: Callable[[Mapping[str, Any]], States | None]
    resized: Callable[[int, Mapping[str, Any], int], dict[str, Any]]


def _s6(own: Mapping[str, Any]) -> States:
    rank, n = own["rank"], own["state"]
    b, c = Rows("x_proj.weight", rank), Rows("x_proj.weight", rank + n, reads=True)
    return States(1, n, (Rows("A_log", 0, axis=1), b, c))


def _ssd(own: Mapping[str, Any]) -> States:
    own = {**own, **dict(own.get("ssd", ()))}
    inner, groups, n = own["heads"] * own["head_dim"], own["groups"], own["state"]
    # The map in makes gate, values, B, C and Δ; the convolution is over the middle three.
    starts = {"in_proj.weight": 2 * inner, "conv1d.weight": inner}
    starts |= {"in_proj.bias": 2 * inner} if own["bias"] else {}
    starts |= {"conv1d.bias": inner} if own["conv_bias"] else {}
    rows = [(Rows(x, s), Rows(x, s + groups * n, reads=True)) for x, s in starts.items()]
    return States(groups, n, tuple(row for pair in rows for row in pair))


def _mlstm(own: Mapping[str, Any]) -> States:
    heads, key = own["heads"], own["key"]
    names = (("qkv_opreact", 0), ("qkv_opreact", key)) if own["fused"] else (("q", 0), ("k", 0))
    kinds = ("weight", "bias") if own["bias"] else ("weight",)
    rows = (
        Rows(f"{name}.{kind}", start, reads=reads)
        for (name, start), reads in zip(names, (True, False), strict=True)
        for kind in kinds
    )
    return States(heads, key // heads, tuple(rows), projected=True, scaled=True)


def _gla(own: Mapping[str, Any]) -> States | None:
    """None where heads share keys or where what is not read or written would not be zero."""
    if own["kv_heads"] != own["heads"] or own["feature"] == "sigmoid":
        return None
    written = ["k_proj.weight", "gk_proj.1.weight", "gk_proj.1.bias"]
    read = ["q_proj.weight"]
    if own["conv"] is not None:
        written, read = [*written, "k_conv1d.weight"], [*read, "q_conv1d.weight"]
    rows = [Rows(name, 0) for name in written] + [Rows(name, 0, reads=True) for name in read]
    # Through a SiLU no factor passes; but for its ε, the norm of the outputs takes it away.
    linear = own["conv"] is None and own["feature"] is None
    return States(own["heads"], own["key"], tuple(rows), scaled=linear)


def _named(setting: str) -> Callable[[int, Mapping[str, Any], int], dict[str, Any]]:
    return lambda size, config, groups: {setting: size}


def _factor(setting: str) -> Callable[[int, Mapping[str, Any], int], dict[str, Any]]:
    """Of all keys over the width; what it gives is rounded down."""

    def resized(size: int, config: Mapping[str, Any], groups: int) -> dict[str, Any]:
        width = config.get("hidden_size") or config["embedding_dim"]
        factor = groups * size / width
        exact = int(factor * width) == groups * size
        return {setting: factor if exact else math.nextafter(factor, math.inf)}

    return resized


FAMILIES: dict[str, Family] = {
    "mamba": Family("mixer.A_log", _s6, _named("state_size")),
    "mamba2": Family("mixer.A_log", _ssd, _named("state_size")),
    "nemotron_h": Family("mixer.A_log", _ssd, _named("ssm_state_size")),
    "xlstm": Family("mlstm_layer.out_proj.weight", _mlstm, _factor("qk_dim_factor")),
    "gla": Family("attn.gk_proj.1.weight", _gla, _factor("expand_k")),
} | {
    name: Family("mamba.A_log", _ssd, _named("mamba_d_state"))
    for name in ("bamba", "falcon_h1", "granitemoehybrid", "zamba2")
}
"""By ``model_type``."""


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
) -> dict[int, Gramians]:
    """How much the states of layers are driven and read, on a text.

    Args:
        model: A model.
        ids: The text, tokens (L,), at least two.
        layers: Numbers of the layers; by default all that have a `System`.

    Returns:
        `dsfjax.analysis.mean_gramians` by the number of the layer.

    Raises:
        ValueError: For a layer whose state cannot be made smaller, with its structure: expected
            are S6, SSD, mLSTM and GLA, without norms of B and C. If these are not tokens (L,).
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
                f"reduce: layer {i} of {model.config.get('model_type')}: expected S6 or SSD "
                "without norms of B and C, mLSTM, or GLA with a key per head, got "
                f"{structure or 'no mixer'}; choose other layers or another model."
            )
    if not chosen:
        raise ValueError(f"reduce: expected a layer with a state, found none in {model.path}.")
    return {i: mean_gramians(next(s for s, _ in found[i] if isinstance(s, System))) for i in chosen}


def reduce(model: Opened, states: int, measured: Mapping[int, Gramians]) -> Reduced:
    """Keep so many states per group of heads, those that a text has used most.

    Args:
        model: A model.
        states: How many are kept, from 1 to N.
        measured: By `measure_states` of this model; these layers are reduced. If they are all that
            have states, the config has the new size; else it keeps the old one.

    Returns:
        The smaller model, and how much of every layer is kept.

    Raises:
        ValueError: If there are not so many states.

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
    groups, size = next((p.groups, p.size) for p in places.values())
    if not 1 <= states <= size:
        raise ValueError(f"reduce: expected from 1 to {size} states, got {states}.")
    rows = states if measured.keys() == places.keys() else size
    family = FAMILIES[model.config["model_type"]]
    prefix = family.tensor.partition(".")[0]
    params, kept = dict(model.params), {}
    for i, means in measured.items():
        one, names = places[i], model.definition.layers[i].tensors(model.params)
        write, read, kept[i] = _maps(one, means, states)
        fill = ((0, 0), (0, rows - states), (0, 0))
        write, read = jnp.pad(write, fill), jnp.pad(read, fill)
        if one.scaled:
            read = read * math.sqrt(rows / size)
        # From the last part of a tensor to the first, so that no place moves before its turn.
        for part in sorted(one.rows, key=lambda part: -part.start):
            name = names[f"{prefix}.{part.tensor}"]
            params[name] = _applied(params[name], part, read if part.reads else write)
    values = {**model.config, **family.resized(rows, model.config, groups)}
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
        i: family.states(dict(model.definition.layers[i].settings))
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
    most, places = jax.lax.top_k(energy, count)
    rows = jax.nn.one_hot(jnp.sort(places, axis=-1), states.size, dtype=energy.dtype)
    return rows, rows, float(most.sum() / energy.sum())


def _applied(x: Array, part: Rows, maps: Float[Array, "G r n"]) -> Array:
    """A tensor with r rows in the place of the n of every group."""
    x, (groups, _, n) = jnp.moveaxis(x, part.axis, 0), maps.shape
    before, own, after = jnp.split(x, [part.start, part.start + groups * n])
    own = own.astype(state_dtype(x.dtype)).reshape(groups, n, -1)
    own = jnp.matmul(maps.astype(own.dtype), own, precision="highest").astype(x.dtype)
    own = own.reshape(-1, *x.shape[1:])
    return jnp.moveaxis(jnp.concatenate([before, own, after]), 0, part.axis)
