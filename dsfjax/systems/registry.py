"""Architectures by name."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Any

from dsfjax._util.names import choose, unknown
from dsfjax.systems import (
    based,
    comba,
    deltanet,
    deltaproduct,
    forgetting_attention,
    gated_deltanet,
    gdn2,
    gla,
    gru,
    gsa,
    hgrn2,
    kda,
    lightning,
    lru,
    lstm,
    mamba3,
    mesa_net,
    min_gru,
    min_lstm,
    mlstm,
    momentum_delta,
    performer,
    rebased,
    retnet,
    rwkv4,
    rwkv6,
    rwkv7,
    s4,
    s4d,
    s5,
    sliding_window_attention,
    slstm,
)
from dsfjax.systems.architecture import Architecture
from dsfjax.systems.contract import check
from dsfjax.systems.linear_attention import linear_attention
from dsfjax.systems.normalized_attention import normalized_attention
from dsfjax.systems.qlstm import qlstm, qlstm_reversed
from dsfjax.systems.rg_lru import rg_lru
from dsfjax.systems.s6 import s6
from dsfjax.systems.softmax_attention import softmax_attention
from dsfjax.systems.ssd import ssd
from dsfjax.systems.surrounding import Surrounding

_FAMILY: dict[str, tuple[Callable[..., Architecture], Surrounding]] = {
    "sliding_window_attention": (
        sliding_window_attention.sliding_window_attention,
        sliding_window_attention.PRACTICE,
    ),
    "forgetting_attention": (
        forgetting_attention.forgetting_attention,
        forgetting_attention.PRACTICE,
    ),
    "lru": (lru.lru, lru.PRACTICE),
    "s4": (s4.s4, s4.PRACTICE),
    "s4d": (s4d.s4d, s4d.PRACTICE),
    "s5": (s5.s5, s5.PRACTICE),
    "lstm": (lstm.lstm, lstm.PRACTICE),
    "gru": (gru.gru, gru.PRACTICE),
    "slstm": (slstm.slstm, slstm.PRACTICE),
    "min_gru": (min_gru.min_gru, min_gru.PRACTICE),
    "min_lstm": (min_lstm.min_lstm, min_lstm.PRACTICE),
    "mamba3": (mamba3.mamba3, mamba3.PRACTICE),
    "retnet": (retnet.retnet, retnet.PRACTICE),
    "lightning": (lightning.lightning, lightning.PRACTICE),
    "gla": (gla.gla, gla.PRACTICE),
    "hgrn2": (hgrn2.hgrn2, hgrn2.PRACTICE),
    "gsa": (gsa.gsa, gsa.PRACTICE),
    "mlstm": (mlstm.mlstm, mlstm.PRACTICE),
    "rwkv4": (rwkv4.rwkv4, rwkv4.PRACTICE),
    "rwkv6": (rwkv6.rwkv6, rwkv6.PRACTICE),
    "rwkv7": (rwkv7.rwkv7, rwkv7.PRACTICE),
    "deltanet": (deltanet.deltanet, deltanet.PRACTICE),
    "gated_deltanet": (gated_deltanet.gated_deltanet, gated_deltanet.PRACTICE),
    "deltaproduct": (deltaproduct.deltaproduct, deltaproduct.PRACTICE),
    "kda": (kda.kda, kda.PRACTICE),
    "gdn2": (gdn2.gdn2, gdn2.PRACTICE),
    "comba": (comba.comba, comba.PRACTICE),
    "momentum_delta": (momentum_delta.momentum_delta, momentum_delta.PRACTICE),
    "mesa_net": (mesa_net.mesa_net, mesa_net.PRACTICE),
    "based": (based.based, based.PRACTICE),
    "rebased": (rebased.rebased, rebased.PRACTICE),
    "performer": (performer.performer, performer.PRACTICE),
}
"""The architectures beyond the paper: a line each, with what surrounds them in practice."""

_REGISTRY: dict[str, Callable[..., Architecture]] = {
    "softmax_attention": softmax_attention,
    "linear_attention": linear_attention,
    "normalized_attention": normalized_attention,
    "s6": s6,
    "ssd": ssd,
    "qlstm": qlstm,
    "qlstm_reversed": qlstm_reversed,
    "rg_lru": rg_lru,
    **{name: build for name, (build, _) in _FAMILY.items()},
}
PRACTICE = {name: around for name, (_, around) in _FAMILY.items()}
"""What surrounds the architectures beyond the paper in practice."""
_BUILT_IN = frozenset(_REGISTRY.values())
_D_MODEL = 64  # divisible by all usual numbers of heads


def names() -> tuple[str, ...]:
    """Names of all architectures, those of the paper first and in its order.

    Example:
        >>> names()[:3]
        ('softmax_attention', 'linear_attention', 'normalized_attention')
    """
    return tuple(_REGISTRY)


def register(name: str, build: Callable[..., Architecture]) -> None:
    """Make an architecture known by name in this process: to `get`, models, sweeps and reports.

    Its functions are tried on abstract tokens: here with its default options, and in `get` with
    those that are given.

    Args:
        name: Its name, a word for the command line.
        build: Function of keyword arguments, ``d_model`` among them, to an `Architecture`.
            Registering a function of the same module and name again replaces it, so a notebook's
            cell runs twice.

    Raises:
        ValueError: If the name is taken by another function, or the functions of the architecture
            do not fit together.
        TypeError: If ``build`` does not take ``d_model``, or something is of a wrong type.
    """
    if not callable(build) or "d_model" not in inspect.signature(build).parameters:
        raise TypeError(
            f"register: expected {name!r} to be a function with a keyword d_model that returns an "
            f"Architecture, got {build!r}."
        )
    known = _REGISTRY.get(name)
    if known is not None and _qualified(known) != _qualified(build):
        raise ValueError(f"register: {name!r} is taken by {_qualified(known)}; use another name.")
    parameters = inspect.signature(build).parameters.values()
    needed = {x.name for x in parameters if x.default is inspect.Parameter.empty}
    if needed == {"d_model"}:
        check(name, build(d_model=_D_MODEL), _D_MODEL)
    _REGISTRY[name] = build


def options(name: str) -> tuple[str, ...]:
    """Keyword arguments that an architecture takes, ``d_model`` first."""
    return tuple(inspect.signature(_find(name)).parameters)


def option_types(name: str) -> dict[str, Any]:
    """The annotation of each keyword argument of an architecture; ``Any`` where there is none.

    Example:
        >>> option_types("s6")["scalar"]
        <class 'bool'>
    """
    hints = typing.get_type_hints(_find(name))
    return {keyword: hints.get(keyword, Any) for keyword in options(name)}


def get(name: str, *, d_model: int, **own: Any) -> Architecture:
    """An architecture by name.

    Args:
        name: One of `names`.
        d_model: d, width of the tokens.
        **own: The architecture's own keywords (`options`), such as ``d_state`` and ``num_heads``;
            one without state expansion or heads rejects those words.

    Returns:
        The `Architecture`.

    Raises:
        ValueError: For an unknown name, with the nearest one, and for a size below 1, which is any
            keyword of type int but a seed or one that may be 0 by default; for an architecture of
            your own, as `register` does.
        TypeError: For a keyword that the architecture does not have.

    Example:
        >>> get("ssd", d_model=8, d_state=4, num_heads=2).traits.structure
        'scalar'
    """
    build = _find(name)
    known = options(name)
    for keyword in own:
        if keyword not in known:
            raise TypeError(unknown(f"{name} has no option", keyword, known))
    for keyword, value in {"d_model": d_model, **own}.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        if whole and value < 1 and _is_size(name, keyword):
            raise ValueError(f"{name}: expected {keyword} >= 1, got {value}")
    arch = build(d_model=d_model, **own)
    if build not in _BUILT_IN:
        check(name, arch, d_model)
    return arch


def _is_size(name: str, keyword: str) -> bool:
    """Whether a keyword is a number of something that there must be."""
    default = inspect.signature(_find(name)).parameters[keyword].default
    if keyword.endswith("seed") or (isinstance(default, int) and default < 1):
        return False
    return keyword == "d_model" or option_types(name)[keyword] in (int, int | None)


def _find(name: str) -> Callable[..., Architecture]:
    return _REGISTRY[choose("architecture", name, _REGISTRY)]


def _qualified(build: Callable[..., Architecture]) -> str:
    parts = getattr(build, "__module__", None), getattr(build, "__qualname__", None)
    return ".".join(str(x) for x in parts) if all(parts) else repr(build)
