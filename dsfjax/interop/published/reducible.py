"""Where the states of published mixers are in their tensors, for `reducing`.

A state has a row (or a column) of its own in every tensor that makes what is written to it, what
reads it and how it decays. `FAMILIES` says for each ``model_type`` which rows these are, and which
setting of the config is their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Rows(NamedTuple):
    """The part of a tensor that has an entry per state.

    Attributes:
        tensor: Its name within the mixer.
        start: Where the part begins on the axis; states are in order within every group.
        reads: Whether it makes what reads the states, such as C, or what is written or kept.
        axis: The axis.
        apart: From the first state of a group to that of the next; by default one group follows
            the other.
    """

    tensor: str
    start: int
    reads: bool = False
    axis: int = 0
    apart: int | None = None


class Norms(NamedTuple):
    r"""Of B and C, divided by their root mean squares over the states of a step.

    With fewer states the means are others, which a factor sets right: for the layer's
    :math:`y = C^\top h + D ⊙ u`, gated and mapped out by W, f W and D / f multiply what is read of
    the states by f and nothing else.

    Attributes:
        weights: Names of what multiplies B and C after the norms; None where nothing does.
        skip: The tensor D.
        out: The tensor W.
    """

    weights: tuple[str, str] | None = None
    skip: str = "D"
    out: str = "out_proj.weight"


class States(NamedTuple):
    """The states of a mixer, and all that is made for them.

    Attributes:
        groups: Of heads that share what is written to their states.
        size: States per group, N.
        rows: Parts of tensors, (groups · size) entries each.
        readers: Heads of a group that have queries of their own.
        paired: Whether state i and state i + N / 2 are rotated as one number.
        projected: Whether a projection can be folded into the tensors; a selection always can.
        scaled: Whether the mixer divides what reads the states by √N.
        norms: Of B and C, if they have some.
    """

    groups: int
    size: int
    rows: tuple[Rows, ...]
    readers: int = 1
    paired: bool = False
    projected: bool = False
    scaled: bool = False
    norms: Norms | None = None


Settings = Mapping[str, Any]


class Family(NamedTuple):
    """How the models of a type hold their states.

    Attributes:
        tensor: By which tensor a layer is known to have them; its prefix is that of the mixer.
        states: From the settings of the layer and the config; None where none can be left out.
        resized: The settings of a config for another size, from it, the config and the number of
            heads that read; None where the format has no size for the states alone.
    """

    tensor: str
    states: Callable[[Settings, Settings], States | None]
    resized: Callable[[int, Settings, int], dict[str, Any]] | None


def _s6(own: Settings, config: Settings) -> States:
    rank, n = own["rank"], own["state"]
    b, c = Rows("x_proj.weight", rank), Rows("x_proj.weight", rank + n, reads=True)
    rows = (Rows("A_log", 0, axis=1), b, c)
    if own.get("norm_eps") is None:
        return States(1, n, rows)
    if own.get("norms") is None:
        return States(1, n, rows, norms=Norms())
    b, c = (f"{name}.weight" for name in own["norms"][1:])
    weights = (Rows(b, 0), Rows(c, 0, reads=True))
    return States(1, n, rows + weights, norms=Norms((b, c)))


def _ssd(own: Settings, config: Settings) -> States:
    own = {**own, **dict(own.get("ssd", ()))}
    inner, groups, n = own["heads"] * own["head_dim"], own["groups"], own["state"]
    # The map in makes gate, values, B, C and Δ; the convolution is over the middle three.
    starts = {"in_proj.weight": 2 * inner, "conv1d.weight": inner}
    starts |= {"in_proj.bias": 2 * inner} if own["bias"] else {}
    starts |= {"conv1d.bias": inner} if own["conv_bias"] else {}
    rows = [(Rows(x, s), Rows(x, s + groups * n, reads=True)) for x, s in starts.items()]
    return States(groups, n, tuple(row for pair in rows for row in pair))


def _mlstm(own: Settings, config: Settings) -> States:
    heads, key = own["heads"], own["key"]
    names = (("qkv_opreact", 0), ("qkv_opreact", key)) if own["fused"] else (("q", 0), ("k", 0))
    kinds = ("weight", "bias") if own["bias"] else ("weight",)
    rows = (
        Rows(f"{name}.{kind}", start, reads=reads)
        for (name, start), reads in zip(names, (True, False), strict=True)
        for kind in kinds
    )
    return States(heads, key // heads, tuple(rows), projected=True, scaled=True)


def _keys(own: Settings, *written: str) -> tuple[Rows, ...]:
    """Rows of the maps to q and to k, of their convolutions and of what else is written."""
    names = ("proj",) if own.get("conv") is None else ("proj", "conv1d")
    reads = tuple(Rows(f"q_{name}.weight", 0, reads=True) for name in names)
    return (
        *reads,
        *(Rows(f"k_{name}.weight", 0) for name in names),
        *(Rows(x, 0) for x in written),
    )


def _gla(own: Settings, config: Settings) -> States | None:
    # A row of zeros leaves nothing out where the feature of 0 is not 0.
    if own["feature"] == "sigmoid":
        return None
    rows, groups = _keys(own, "gk_proj.1.weight", "gk_proj.1.bias"), own["kv_heads"]
    # Through a SiLU no factor passes; but for its ε, the norm of the outputs takes it away.
    linear = own["conv"] is None and own["feature"] is None
    return States(groups, own["key"], rows, own["heads"] // groups, scaled=linear)


def _retention(own: Settings, config: Settings) -> States | None:
    # Layers of attention have maps of the same names, and no keys of another size.
    if "key" not in own or own["feature"] == "sigmoid":
        return None
    groups = own["kv_heads"]
    return States(groups, own["key"], _keys(own), own["heads"] // groups, paired=True)


def _hgrn2(own: Settings, config: Settings) -> States:
    # k is 1 − a: what writes a state is never zero, so it is left unread.
    names = ("q_proj.weight",) if own["conv"] is None else ("q_proj.weight", "q_conv1d.weight")
    rows = tuple(Rows(name, 0, reads=True) for name in names)
    return States(own["heads"], config["hidden_size"] // own["heads"], rows)


def _lightning(own: Settings, config: Settings) -> States | None:
    if own["activation"] == "sigmoid":
        return None
    heads, n = len(own["slopes"]), own["head_dim"]
    # Queries, keys and values of a head follow each other.
    rows = [Rows("qkv_proj.weight", i * n, reads=i == 0, apart=3 * n) for i in (0, 1)]
    return States(heads, n, tuple(rows))


def _named(setting: str) -> Callable[[int, Settings, int], dict[str, Any]]:
    return lambda size, config, heads: {setting: size}


def _factor(setting: str) -> Callable[[int, Settings, int], dict[str, Any]]:
    """Of all keys over the width; what it gives is rounded down."""

    def resized(size: int, config: Settings, heads: int) -> dict[str, Any]:
        width = config.get("hidden_size") or config["embedding_dim"]
        factor = heads * size / width
        exact = int(factor * width) == heads * size
        return {setting: factor if exact else math.nextafter(factor, math.inf)}

    return resized


FAMILIES: dict[str, Family] = {
    "mamba": Family("mixer.A_log", _s6, _named("state_size")),
    "falcon_mamba": Family("mixer.A_log", _s6, _named("state_size")),
    "jamba": Family("mamba.A_log", _s6, _named("mamba_d_state")),
    "mamba2": Family("mixer.A_log", _ssd, _named("state_size")),
    "nemotron_h": Family("mixer.A_log", _ssd, _named("ssm_state_size")),
    "xlstm": Family("mlstm_layer.out_proj.weight", _mlstm, _factor("qk_dim_factor")),
    "gla": Family("attn.gk_proj.1.weight", _gla, _factor("expand_k")),
    "retnet": Family("attn.q_proj.weight", _retention, None),  # rotations depend on the size
    "hgrn2": Family("attn.f_proj.weight", _hgrn2, None),  # as many values as keys
    "minimax": Family("self_attn.qkv_proj.weight", _lightning, None),  # as large as attention's
} | {
    name: Family("mamba.A_log", _ssd, _named("mamba_d_state"))
    for name in ("bamba", "falcon_h1", "granitemoehybrid", "zamba2")
}
"""By ``model_type``."""
