"""Architectures by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from dsfjax._util.names import choose, unknown
from dsfjax.systems.architecture import Architecture
from dsfjax.systems.linear_attention import linear_attention
from dsfjax.systems.normalized_attention import normalized_attention
from dsfjax.systems.qlstm import qlstm, qlstm_reversed
from dsfjax.systems.rg_lru import rg_lru
from dsfjax.systems.s6 import s6
from dsfjax.systems.softmax_attention import softmax_attention
from dsfjax.systems.ssd import ssd

_REGISTRY: dict[str, Callable[..., Architecture]] = {
    "softmax_attention": softmax_attention,
    "linear_attention": linear_attention,
    "normalized_attention": normalized_attention,
    "s6": s6,
    "ssd": ssd,
    "qlstm": qlstm,
    "qlstm_reversed": qlstm_reversed,
    "rg_lru": rg_lru,
}


def names() -> tuple[str, ...]:
    """Names of all architectures, in the order of the paper.

    Example:
        >>> names()[:3]
        ('softmax_attention', 'linear_attention', 'normalized_attention')
    """
    return tuple(_REGISTRY)


def register(name: str, build: Callable[..., Architecture]) -> None:
    """Make an architecture known by name in this process: to `get`, models, sweeps and reports.

    Args:
        name: A new name.
        build: Function of keyword arguments, ``d_model`` among them.

    Raises:
        ValueError: If the name is taken.
    """
    if name in _REGISTRY:
        raise ValueError(f"register: {name!r} is taken; choose another name.")
    _REGISTRY[name] = build


def options(name: str) -> tuple[str, ...]:
    """Keyword arguments that an architecture takes, ``d_model`` first."""
    return tuple(inspect.signature(_find(name)).parameters)


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
        ValueError: For an unknown name, with the nearest one, and for a size below 1.
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
        # Every integer keyword is a number of something that there must be.
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise ValueError(f"{name}: expected {keyword} >= 1, got {value}")
    return build(d_model=d_model, **own)


def _find(name: str) -> Callable[..., Architecture]:
    return _REGISTRY[choose("architecture", name, _REGISTRY)]
