"""Which architectures the quick tests try: the paper's, and one of every structure beyond them."""

from typing import Any

from dsfjax import systems
from dsfjax.training.presets import PAPER_MIXERS
from tests.systems_zoo import slow_unless

PAPER = PAPER_MIXERS
CARRY_MORE = ("lstm", "gru", "slstm", "gsa", "mesa_net", "mlstm", "rwkv4")
"""Those whose steps read the state, or that carry more than it."""
FAMILY = systems.names()[len(PAPER) :]
# One per structure of A, B, C and η that the paper's eight do not have, for the tests that show
# the most in the least time; with the others, what is beyond the paper runs among the slow tests.
REPRESENTATIVES = (
    "gla",
    "rwkv6",
    "mlstm",
    "gated_deltanet",
    "deltaproduct",
    "forgetting_attention",
    "lstm",
)


def all_of_them(*more: str) -> list[Any]:
    """Every architecture as a parameter, slow unless it is of the paper or among ``more``."""
    return slow_unless((*PAPER, *more), systems.names())
