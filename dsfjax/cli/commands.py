"""Which commands there are."""

from dsfjax.cli import opened_options, options

COMMANDS: dict[str, type[options.Command]] = {
    "train": options.Train,
    "compare": options.Compare,
    "sweep": options.Sweep,
    "results": options.Results,
    "systems": options.Systems,
    "explain": options.Explain,
    "analyze": opened_options.Analyze,
    "inspect": opened_options.Inspect,
    "convert": opened_options.Convert,
    "reduce": opened_options.Reduce,
    "finetune": opened_options.Finetune,
    "data": options.Data,
    "lengths": options.Lengths,
    "recommend": options.Recommend,
    "bench": options.Bench,
    "selfcheck": options.Selfcheck,
}
"""Name to options."""
