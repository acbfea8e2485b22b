"""``dsfjax recommend``."""

import json
import re
from typing import Any

from rich import box
from rich.table import Table

from dsfjax import tasks
from dsfjax._util import words
from dsfjax.cli import options
from dsfjax.cli.output import console, say
from dsfjax.cli.usage import UsageError, usage_errors
from dsfjax.guidance import Advice, Profile, of_folder, profile_of, recommend, shipped
from dsfjax.guidance.ranking import Ranking
from dsfjax.tasks import DEMANDS
from dsfjax.training import RunError

_PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}


def main(command: options.Recommend) -> int:
    """Print which architectures did best on the nearest tasks.

    Args:
        command: The options.

    Returns:
        The exit code.

    Raises:
        UsageError: If the profile of the task is incomplete or cannot be, or a folder has no
            results.
    """
    with usage_errors(ValueError, RunError, tasks.data.MissingDataError):
        profile = profile_from(command)
        if command.d_model < 1 or command.num_layers < 1:
            raise ValueError(
                f"expected --d-model and --num-layers >= 1, got {command.d_model} and "
                f"{command.num_layers}"
            )
        evidence = [*shipped(), *(one for each in command.run_dir for one in of_folder(each))]
        advice = recommend(
            profile, evidence, d_model=command.d_model, num_layers=command.num_layers
        )
    if command.json:
        print(json.dumps(advice.to_json(), allow_nan=False, indent=2))
        return 0
    say(f"Asked: {profile}.")
    for ranking in advice.rankings:
        _print(ranking, advice)
    if advice.prices:
        say(f"\n{advice.priced}")
    say(f"\n{advice.answer}")
    return 0


def profile_from(command: options.Recommend) -> Profile:
    """The profile that a command line asks about.

    Args:
        command: The options.

    Raises:
        ValueError: If something is missing, unknown or cannot be.
    """
    given: dict[str, Any] = {}
    if command.length is not None:
        given["length"] = command.length
    if command.vocab is not None or command.channels is not None:
        given |= {"vocab_size": command.vocab or 0, "channels": command.channels or 0}
    if command.demands:
        given["demands"] = tuple(x for word in command.demands for x in word.split(",") if x)
    if command.decode_memory is not None:
        given["decode_memory"] = _amount("--decode-memory", command.decode_memory, ("B",))[0]
    if command.budget is not None:
        value, noun = _amount("--budget", command.budget, ("tokens", "steps"))
        given[noun] = value
    if command.task:
        return profile_of(tasks.get(command.task), **given)
    if missing := [name for name in ("length", "demands") if name not in given]:
        raise UsageError(
            f"expected a TASK ({', '.join(tasks.names())}), or "
            f"{' and '.join(f'--{name}' for name in missing)}; demands are "
            f"{', '.join(tasks.demands())}"
        )
    return Profile(**given)


def _amount(option: str, text: str, nouns: tuple[str, ...]) -> tuple[float, str]:
    """A number with a prefix and a noun; without a noun it is of the first."""
    prefixes = _PREFIXES | _BINARY
    pattern = rf"\s*([\d.]+(?:e\d+)?)\s*({'|'.join(prefixes)})\s*({'|'.join(nouns)})?\s*"
    found = re.fullmatch(pattern, text)
    try:
        number, prefix, noun = found.groups() if found else (text, "", "")
        return float(number) * prefixes[prefix], noun or nouns[0]
    except ValueError:
        such = {"B": "64kB or 1MB"}.get(nouns[0], "10Mtokens or 2000steps")
        raise UsageError(f"expected {option} such as {such}, got {text!r}") from None


def _print(ranking: Ranking, advice: Advice) -> None:
    about = "; ".join(DEMANDS[demand] for demand in ranking.demands if demand in DEMANDS)
    say(f"\n{words.capitalized(ranking.called)}{': ' if about else ''}{about}.")
    if ranking.neighbours:
        console().print(_neighbours(ranking))
    if ranking.places:
        console().print(_places(ranking, advice))
    for doubt in ranking.doubts:
        say(f"- {doubt}")


def _neighbours(ranking: Ranking) -> Table:
    table = _table()
    for head in ("", "nearest task", "next to yours", "best", "of"):
        table.add_column(head, no_wrap=not head)
    for i, each in enumerate(ranking.neighbours, 1):
        mixer, best = next(iter(each.standings.items()))
        said = f"{mixer}, {best.score} ({best.best.setting})"
        table.add_row(f"{i}", each.label, each.why, said, f"{len(each.standings)} mixers")
    return table


def _places(ranking: Ranking, advice: Advice) -> Table:
    table = _table()
    telling = [(i, each) for i, each in enumerate(ranking.neighbours, 1) if each.tells]
    for head in ("rank", "mixer", "gain", *(f"on {i}" for i, _ in telling), "tokens to train"):
        table.add_column(head, no_wrap=True, justify="left" if head == "mixer" else "right")
    if advice.prices:
        for head in ("memory", "parameters", "operations"):
            table.add_column(head, no_wrap=True, justify="right")
    limited = any(advice.over(place) for place in ranking.places)
    if limited:
        table.add_column("too much", no_wrap=True)
    for place in ranking.places:
        scores = []
        for _, each in telling:
            one = place.on.get(each.label)
            top = " (top)" if one is not None and one.top else ""
            scores.append("–" if one is None else f"{one.score}{top}")
        price = advice.prices.get(place.mixer)
        cost = ["–"] * 3
        if price is not None:
            grows = " grows" if price.grows else ""
            memory = f"{words.unit(price.memory, 'B')}{grows}"
            cost = [memory, words.count(price.num_params), words.unit(price.flops)]
        table.add_row(
            f"{place.rank}",
            place.mixer,
            words.percent(place.gain),
            *scores,
            words.unit(place.tokens),
            *(cost if advice.prices else ()),
            *([", ".join(advice.over(place))] if limited else ()),
        )
    return table


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
