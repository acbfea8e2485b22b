"""Which mixers are in which layer of a hybrid, written as one word."""

from __future__ import annotations

import re
from itertools import groupby

Layer = tuple[str, ...]
"""Names of the mixers of a layer. Several of them read the same input; their outputs are added."""

_TIMES = re.compile(r"(?:(\d+)x)?(.+?)(?:\*(\d+))?")
_NO_NAME = re.compile(r".*[\s*].*|[-+.\d]+x.+")
"""What is left in place of a name where a repetition is written in another way."""


def layers_of(mixer: str) -> tuple[Layer, ...]:
    """The layers of one period of a pattern.

    Args:
        mixer: Name of an architecture, or layers joined by "+". A layer is a name, or names joined
            by "&" for mixers next to each other; "3x" before it, or "*3" after it, repeats it, but
            not both.

    Returns:
        The mixers of each layer.

    Raises:
        ValueError: If a part is empty, repeated 0 times, or repeated in another way.

    Example:
        >>> layers_of("gated_deltanet*3+softmax_attention")[2:]
        (('gated_deltanet',), ('softmax_attention',))
        >>> layers_of("ssd&softmax_attention")
        (('ssd', 'softmax_attention'),)
    """
    found: list[Layer] = []
    for part in mixer.split("+"):
        said = _TIMES.fullmatch(part.strip())
        before, names, after = said.groups() if said else (None, "", None)
        layer = tuple(name.strip() for name in names.split("&"))
        times = int(before or 1) * int(after or 1)
        wrong = not all(layer) or any(map(_NO_NAME.fullmatch, layer))
        if wrong or times < 1 or (before and after):
            raise ValueError(
                "mixer: expected a name, or a pattern of layers such as 3xssd+softmax_attention "
                "or ssd&softmax_attention, with a whole number before a layer (3xssd) or after it "
                f"(ssd*3) that repeats it, got {mixer!r}"
            )
        found += [layer] * times
    return tuple(found)


def name_of(layers: tuple[Layer, ...]) -> str:
    """The pattern of layers as one word, which may be part of the name of a file.

    Example:
        >>> name_of(layers_of("ssd*2+ssd+softmax_attention"))
        '3xssd+softmax_attention'
        >>> name_of(layers_of("2xssd"))
        'ssd'
    """
    if len(set(layers)) == 1:
        layers = layers[:1]
    runs = [("&".join(layer), len(list(same))) for layer, same in groupby(layers)]
    return "+".join(name if times == 1 else f"{times}x{name}" for name, times in runs)


def canonical(mixer: str) -> str:
    """The one way to write a pattern: its shortest, and safe in the name of a file.

    Example:
        >>> canonical("ssd*3 + softmax_attention")
        '3xssd+softmax_attention'
    """
    return name_of(layers_of(mixer))
