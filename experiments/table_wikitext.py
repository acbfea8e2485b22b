"""Language: perplexity on WikiText-2 at an equal number of parameters.

Claims: softmax attention leads in language, and normalized attention lies between linear and
softmax attention. (The paper has WikiText-103 and models of 70M parameters: scale paper.)
Varied: the architecture. At scale small models of 84,000 parameters predict bytes; the perplexity
is per word of the text all the same.

    python -m experiments.table_wikitext --scale small --data-dir FOLDER
"""

import functools

from experiments import plots
from experiments.claims import Claim
from experiments.experiment import Experiment, main
from experiments.rows import Row, configs

ROWS = (
    Row(
        "WikiText-2",
        "language",
        {"corpus": "wikitext2"},
        {
            "tokens": "bytes",
            "seq_len": 256,
            "batch_size": 16,
            "steps": 1200,
            "eval_every": 200,
            "eval_examples": 256,
            "learning_rates": (5e-3,),
            "d_model": 108,
        },
        # Widths for an equal number of parameters, which `tests/experiments` checks.
        {"s6": {"d_model": 64}, "ssd": {"d_model": 70}},
    ),
)


def _better(one: str, other: str) -> Claim:
    words = f"{one} predicts text better than {other}.".replace("_", " ").capitalize()
    # Widths differ where the number of parameters is the same.
    width = {"d_model": "largest"}
    return Claim(words, better={"series": one, **width}, worse={"series": other, **width})


EXPERIMENT = Experiment(
    "table_wikitext",
    __doc__,
    configs(ROWS),
    functools.partial(plots.bars, by=("where",)),
    (
        _better("softmax_attention", "linear_attention"),
        _better("softmax_attention", "normalized_attention"),
        _better("normalized_attention", "linear_attention"),
        _better("softmax_attention", "s6"),
        _better("softmax_attention", "ssd"),
    ),
    after=True,
)

if __name__ == "__main__":
    main(EXPERIMENT)
