"""What surrounds each architecture: in the paper's experiments, and in practice."""

from __future__ import annotations

from dsfjax._util.names import choose
from dsfjax.nn.mixer import BARE
from dsfjax.systems import PRACTICE as DECLARED
from dsfjax.systems import Surrounding
from dsfjax.systems.surrounding import CONVOLVED

_GRIFFIN = Surrounding(project_in=True, conv_width=4, conv_activation="identity", gate="gelu_tanh")
_QLSTM = Surrounding(expand=2, conv_width=4, conv_activation="identity", gate="gelu")

PAPER = {
    # arXiv:2405.15731, experiments: projections only, but for the recurrent networks.
    "qlstm": _QLSTM,
    "qlstm_reversed": _QLSTM,
    "rg_lru": _GRIFFIN,  # arXiv:2402.19427
}

_BIASED = Surrounding(bias=True)

AUTHORS = PAPER | {
    # In their code the map out of attention has a bias.
    "softmax_attention": _BIASED,
    "linear_attention": _BIASED,
    "normalized_attention": _BIASED,
}

PRACTICE = PAPER | {
    "softmax_attention": CONVOLVED,
    "linear_attention": CONVOLVED,
    "normalized_attention": CONVOLVED,
    "s6": Surrounding(expand=2, conv_width=4, gate="silu"),  # Mamba, arXiv:2312.00752
    "ssd": Surrounding(  # Mamba-2, arXiv:2405.21060; the value map of the architecture expands
        conv_width=4, conv_on=("v", "b", "c"), gate="silu", output_norm=True
    ),
    **DECLARED,  # with each architecture of the family
}

_KINDS = {"paper": PAPER, "authors": AUTHORS, "practice": PRACTICE}


def surrounding(mixer: str, kind: str) -> Surrounding:
    """The surroundings of an architecture; bare for one that is not listed.

    Example:
        >>> surrounding("s6", "practice").gate, surrounding("s6", "paper").gate
        ('silu', None)
    """
    return _KINDS[kind].get(mixer, BARE)


def surround(mixer: str, around: Surrounding, kind: str = "practice") -> None:
    """Set the surroundings of an architecture of your own, for all models built from configs.

    Args:
        mixer: Its name (`dsfjax.systems.register`).
        around: The surroundings.
        kind: The value of ``ModelConfig.surroundings`` that asks for them.

    Raises:
        ValueError: For an unknown kind, or an architecture that has surroundings of this kind: what
            a config says must not change.

    Example:
        >>> surround("s6", Surrounding())
        Traceback (most recent call last):
            ...
        ValueError: 's6' has surroundings of the kind 'practice'; register it under another name
    """
    choose("kind of surroundings", kind, _KINDS)
    if _KINDS[kind].setdefault(mixer, around) != around:
        raise ValueError(
            f"{mixer!r} has surroundings of the kind {kind!r}; register it under another name"
        )
