"""docs/architectures.md is what the registry says; ``DSFJAX_WRITE_DOCS=1`` writes it anew."""

import inspect
import re

from dsfjax import systems
from dsfjax.nn.surroundings import surrounding
from dsfjax.systems import Surrounding, registry
from tests import pages

PAGE = pages.DOCS / "architectures.md"
BEGIN, END = "<!-- table: written by tests/systems/test_docs.py -->\n", "<!-- end of table -->\n"


def source(name: str) -> str:
    """The first sentence of an architecture's file, with links to the papers."""
    module = inspect.getmodule(registry._REGISTRY[name])
    assert module is not None and module.__doc__
    line = module.__doc__.split("\n")[0].rstrip(".")
    return re.sub(r"(?:arXiv:)?(\d{4}\.\d{5})", r"[\1](https://arxiv.org/abs/\1)", line)


def around(name: str) -> str:
    """What surrounds an architecture in practice, in words."""
    found, said = surrounding(name, "practice"), []
    if found.expand > 1 or found.project_in:
        said.append(f"map to {found.expand}d")
    if found.token_shift:
        said.append(f"token shift of {', '.join(found.token_shift)}")
    if found.conv_width:
        said.append(f"convolution of {', '.join(found.conv_on) or 'the token'}")
    elif found.conv_on:
        said.append(f"{found.conv_activation} of {', '.join(found.conv_on)}")
    if found.head_norm:
        said.append(f"{found.head_norm} norm per head")
    if found.whole_norm:
        said.append(f"{found.whole_norm} norm over all heads")
    if found.gate:
        low = " of low rank" if found.gate_rank else ""
        said.append(
            f"gate{low}, {found.gate} inside" if found.gate_inside else found.gate + " gate" + low
        )
    if found.output_activation != "identity":
        said.append(found.output_activation)
    said += ["rms norm"] * found.output_norm + ["GELU and GLU"] * found.glu
    assert said or found == Surrounding()
    return "; ".join(said) or "none"


def table() -> str:
    """The table of all architectures."""
    heads = ("name", "what", "A", "state size N", "A and B share", "range of λ", "η", "in practice")
    rows = [heads, ["---"] * len(heads)]
    for name in systems.names():
        traits = systems.get(name, d_model=64).traits
        rows.append([f"`{name}`", source(name), *traits, around(name)])
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def test_the_page_is_current() -> None:
    pages.check(PAGE, BEGIN, table(), END)
