"""The sections of the page, an aspect each, with every mixer in it side by side."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from dsfjax._util.words import capitalized, count, number, percent, rate
from dsfjax.aspects import Aspect, Panel, SomeLayers, numbered, registered
from dsfjax.aspects.aspect import MODEL
from dsfjax.aspects.style import colors
from dsfjax.cost import PHASES
from dsfjax.guidance.ranking import Standing
from dsfjax.report import dynamics
from dsfjax.report.entries import Comparison, Seen
from dsfjax.report.html import Cell, Column, bullets, figure, grid, lead, note, section, table
from dsfjax.report.joint import (
    TaskScores,
    baselines,
    better,
    known_baselines,
    mixers,
    scores_called,
)
from dsfjax.tasks import ACCURACY, Metric


def results(comparison: Comparison) -> str:
    """The scores, and what they took: a table and four figures."""
    metric, *others = comparison.measured
    timed = metric == ACCURACY
    columns = (
        Column("mixer", "ascending", "text"),
        _score_column(metric),
        *[Column(other.heading, _direction(other)) for other in others],
        Column("best lr", "ascending"),
        *([Column("steps to 90 %", "ascending")] if timed else []),
        Column("diverged", "ascending"),
        Column("state size N", "ascending"),
        Column("parameters", "ascending"),
        Column("tokens/s"),
        Column("|λ| by construction", "ascending", "text"),
    )
    color = colors([entry.mixer for entry in comparison.entries])
    rows = [
        (
            Cell(e.mixer, e.mixer, color=color[e.mixer]),
            _score_cell(metric, e.score_mean, e.score_std),
            *[_score_cell(other, *e.also[other.name]) for other in others],
            Cell(rate(e.learning_rate), e.learning_rate),
            *([Cell(count(e.steps_to_90), e.steps_to_90)] if timed else []),
            Cell(f"{e.num_diverged} of {len(e.outcomes)}", e.num_diverged),
            Cell(count(e.state_size), e.state_size, "grows" if e.grows else ""),
            Cell(count(e.num_params), e.num_params),
            Cell(count(e.tokens_per_second), e.tokens_per_second),
            Cell(e.bounds, e.bounds),
        )
        for e in comparison.entries
    ]
    share = ": share of the queries that are answered right," if timed else ":"
    best = "highest" if metric.higher_is_better else "lowest"
    explained = (
        f"{capitalized(metric.called)}{share} mean ± standard deviation over "
        f"seeds at the best learning rate (the one with the {best} mean). A member is one model: "
        f"one learning rate and one seed; one that diverged counts as {_worst(metric)}. "
        + ("Steps to 90 %: mean over seeds, if all of them got there. " if timed else "")
        + "Diverged: how many of all members. N: how many numbers "
        "all layers together keep after the last token of a sequence, the memory of the past; "
        "“grows”: with the length of the sequence. Tokens/s: in training, of all members together. "
        "A click on a heading sorts."
    )
    return section(
        capitalized(metric.called),
        "",
        table("Results, scrollable", columns, rows),
        note(explained),
        grid("pair", _score_figures(comparison)),
    )


def _direction(metric: Metric) -> str:
    """In which the best comes first."""
    return "descending" if metric.higher_is_better else "ascending"


def _score_column(metric: Metric) -> Column:
    """The column by which the rows arrive ordered; a click turns them round."""
    return Column(metric.heading, sorted=_direction(metric))


def _score_cell(metric: Metric, mean: float, std: float | None = None) -> Cell:
    """A mean with its standard deviation; what is not finite sorts to the end."""
    spread = "" if std is None else metric.deviation(mean, std)
    return Cell(metric.show(mean), mean if math.isfinite(mean) else None, spread)


def _worst(metric: Metric) -> str:
    return f"{100 * metric.worst:.0f} %" if metric.percent else metric.show(metric.worst)


def joint(tasks: Sequence[TaskScores]) -> str:
    """All tasks in one table: a row per mixer and per baseline."""
    columns = (
        Column("mixer", "ascending", "text"),
        *[Column(_headed(task), _direction(task.metric)) for task in tasks],
        *[Column(f"N, {task.name}", "ascending") for task in tasks],
        *[Column(f"parameters, {task.name}", "ascending") for task in tasks],
    )
    names = mixers(tasks)
    color = colors(names)
    rows = []
    for mixer in names:
        scores = [task.scores.get(mixer) for task in tasks]
        sizes = [None if score is None else score.state_size for score in scores]
        params = [None if score is None else score.num_params for score in scores]
        rows.append(
            (
                Cell(mixer, mixer, color=color[mixer]),
                *[_joint_cell(task, mixer) for task in tasks],
                *[Cell(count(value), value) for value in (*sizes, *params)],
            )
        )
    for name, known in known_baselines(tasks).items():
        cells = [
            Cell("–", None) if each is None else _score_cell(task.metric, each.score)
            for task, each in zip(tasks, known, strict=True)
        ]
        rows.append((Cell(name, name), *cells, *[Cell("–", None)] * (2 * len(tasks))))
    worst = " or ".join(dict.fromkeys(_worst(task.metric) for task in tasks))
    explained = (
        f"{scores_called(tasks)}: mean ± standard deviation over seeds at the best learning rate "
        f"of the mixer on the task; a member that diverged counts as {worst}. Not learnt: not "
        f"clearly {better(tasks)} the trivial answer. {baselines(tasks)} N: numbers of state in "
        "all layers after the last token of a sequence. A click on a heading sorts, baselines "
        "included."
    )
    return section(
        "Every mixer on every task",
        "",
        table("Results on all tasks, scrollable", columns, rows),
        note(explained),
    )


def _headed(task: TaskScores) -> str:
    return task.name if task.metric == ACCURACY else f"{task.name}, {task.metric.heading}"


def _joint_cell(task: TaskScores, mixer: str) -> Cell:
    if (score := task.scores.get(mixer)) is None:
        return Cell("–", None)
    cell = _score_cell(task.metric, score.mean, score.std)
    if task.learnt(mixer):
        return cell
    said = f"{cell.spread}, not learnt" if cell.spread else "not learnt"
    return dataclasses.replace(cell, spread=said)


def _lines(comparison: Comparison) -> str:
    """What the lines of the baselines in a figure are."""
    metric, chance = comparison.metric, comparison.chance
    what = "guessing among all answers" if metric == ACCURACY else "guessing"
    said = [] if chance is None else [f"Dashed: {what} ({metric.show(chance)})."]
    if comparison.linear is not None and not metric.percent:
        linear = metric.show(comparison.linear.score)
        said.append(f"Dash-dotted: a linear model of the whole input ({linear}).")
    if comparison.trivial:
        said.append(
            f"Dotted: {comparison.trivial} ({metric.show(comparison.unbound)}); only what is "
            f"clearly {metric.better} it has learnt the task, and what is not is not put in an "
            "order."
        )
    return " ".join(said)


def _score_figures(comparison: Comparison) -> list[str]:
    from dsfjax.report import figures  # Matplotlib is imported where something is drawn

    entries, metric, guess = comparison.entries, comparison.metric, _lines(comparison)
    called, named = metric.called, capitalized(metric.called)
    drawn = [
        figure(
            figures.learning_curves(comparison),
            "curves",
            f"{named} over training",
            f"{named} on held-out examples while training. Line: mean over seeds at the best "
            "learning rate; band: lowest to highest seed; the dot marks where training ended, a "
            f"cross a seed that diverged. Further left and steeper is learnt faster. {guess}",
            "curves.csv",
        ),
        figure(
            figures.score_bars(comparison),
            "bars",
            f"Final {called}",
            f"Final {called}{' in per cent' if metric.percent else ''}. "
            "Bar: mean over seeds; whisker: one standard deviation; "
            "dots: the seeds, crosses those that diverged. Where whiskers overlap, this run "
            f"does not say which is better. {guess}",
            "members.csv",
        ),
    ]
    rises, up = ("rises", "up") if metric.higher_is_better else ("falls", "down")
    where = "at 0" if metric == ACCURACY else "at the edge"
    if len({one.point.learning_rate for entry in entries for one in entry.outcomes}) > 1:
        drawn.append(
            figure(
                figures.rates(comparison),
                "rates",
                f"{named} by learning rate",
                f"Every member that was trained: final {called} against its learning rate, a line "
                f"through the means over seeds, a cross {where} for one that diverged. Where a "
                f"line still {rises} at its end, a learning rate beyond it may be better.",
                "members.csv",
            )
        )
    if len(entries) > 1:
        drawn.append(
            figure(
                figures.trade_off(comparison),
                "trade-off",
                f"{named} by state size",
                f"What the {called} costs in memory: mean ± standard deviation over seeds against "
                "the state size; squares grow with the length of the sequence. Further "
                f"{up} and left is better.",
                "summary.csv",
            )
        )
    return drawn


def inside(comparison: Comparison) -> str:
    """What the aspects found in the best member of each mixer, in one table."""
    metric = comparison.metric
    scores = {entry.mixer: (_score_cell(metric, entry.score_mean),) for entry in comparison.entries}
    shown = side_by_side(
        comparison.entries,
        (_score_column(metric),),
        scores,
        "Of the best seed at the best learning rate, on held-out sequences.",
        "– where there is no finite state or no member that did not diverge.",
    )
    lost = [
        f"{e.mixer}: every member at its best learning rate diverged, there is no model to look at."
        for e in comparison.entries
        if e.findings is None
    ]
    return section("Side by side", "", *shown, bullets("warnings", lost))


def side_by_side(
    entries: Sequence[Seen],
    own: Sequence[Column],
    cells: Mapping[str, Sequence[Cell]],
    *said: str,
) -> tuple[str, str]:
    """The numbers that aspects have for a model, a row per model.

    Args:
        entries: The models.
        own: Columns before those of the aspects.
        cells: Their cells, by model.
        said: Sentences before and after those of the columns.

    Returns:
        The table, and what is said under it.
    """
    read = [
        (aspect.name, head, column)
        for aspect in registered()
        for head, column in aspect.all_columns().items()
    ]
    columns = (
        Column("mixer", "ascending", "text"),
        *own,
        *[Column(head, column.first) for _, head, column in read],
    )
    color = colors([entry.mixer for entry in entries])
    rows = []
    for entry in entries:
        found = entry.findings or {}
        values = [column.read(found[name]) if name in found else None for name, _, column in read]
        rows.append(
            (
                Cell(entry.mixer, entry.mixer, color=color[entry.mixer]),
                *cells[entry.mixer],
                *[
                    Cell("–" if value is None else column.show(value), value)
                    for value, (_, _, column) in zip(values, read, strict=True)
                ],
            )
        )
    first, *last = said
    explained = [first, *[column.about for _, _, column in read if column.about], *last]
    return table("Analysis, scrollable", columns, rows), note(" ".join(explained))


def of_aspect(entries: Sequence[Seen], aspect: Aspect) -> str:
    """The section of an aspect: a figure per panel and model, and what looks wrong."""
    parts, drawn, any_drawn = [], [], False
    for panel in aspect.all_panels():
        if panel.how:
            parts += [grid("panels", drawn), lead(panel.how)]
            drawn = []
        drawn += _figures(entries, aspect, panel)
        any_drawn |= bool(drawn)
    parts.append(grid("panels", drawn))
    found = {e.mixer: e.findings for e in entries if e.findings is not None}
    own = {
        mixer: findings[aspect.name] for mixer, findings in found.items() if aspect.name in findings
    }
    if aspect.warn is not None and own:
        said = [f"{mixer}, {text}" for mixer, layers in own.items() for text in aspect.warn(layers)]
        parts.append(bullets("warnings", said) or note("Nothing looks wrong in any model."))
        any_drawn = True
    return section(aspect.title, aspect.how, *parts) if any_drawn else ""


def _figures(entries: Sequence[Seen], aspect: Aspect, panel: Panel) -> list[str]:
    """A figure per mixer, or per mixer and layer, in the colours of the page."""
    color = colors([entry.mixer for entry in entries])
    drawn = []
    for i, entry in enumerate(entries):
        layers = (entry.findings or {}).get(aspect.name, ())
        if not layers or not panel.applies(layers):
            continue
        each = [(f"{panel.name}-{i}", entry.mixer, layers)]
        if panel.by_layer:
            each = [
                (f"{panel.name}-{i}-{j}", f"layer {j}, {entry.mixer}", SomeLayers([(j, layer)]))
                for j, layer in numbered(layers)
            ]
        data = f"{panel.data.replace(MODEL, entry.mixer)}.csv"
        drawn += [
            figure(
                panel.draw(title, own, color[entry.mixer]),
                name,
                f"{panel.what} of {title}",
                panel.caption(own),
                data,
            )
            for name, title, own in each
        ]
    return drawn


def training(comparison: Comparison) -> str:
    """Loss and what probes saw, over training."""
    color = colors([entry.mixer for entry in comparison.entries])
    drawn = [
        figure(
            dynamics.draw(entry.mixer, entry.dynamics, color[entry.mixer]),
            f"dynamics-{i}",
            f"training dynamics of {entry.mixer}",
            f"Seed {entry.dynamics.seed} at learning rate {rate(entry.learning_rate)}, at which "
            f"plain gradient descent is stable up to a sharpness of "
            f"{number(2 / entry.learning_rate)}.",
            "dynamics.csv",
        )
        for i, entry in enumerate(comparison.entries)
        if entry.dynamics is not None
    ]
    how = (
        "How to read: training is one dynamical system, in its steps, that shapes another, in the "
        "tokens. From above: loss on held-out examples; sharpness, the largest eigenvalue of the "
        "Hessian of the loss; |λ|, median and range from 5 to 95 %, a line per layer; the gradient "
        "to the state in the first quarter of the sequence over that in the last (far below 1 it "
        "vanishes); and how many directions of the state are in use. Lines that move together with "
        "the loss show what was learnt when."
    )
    return section("Training as two dynamical systems", how, grid("panels", drawn)) if drawn else ""


def guidance(comparison: Comparison) -> str:
    """What all results say of tasks like this one: a table per demand, and how thin it is."""
    advice = comparison.advice
    if advice is None:
        return ""
    parts = []
    for ranking in advice.rankings:
        telling = [each for each in ranking.neighbours if each.tells]
        near = "; ".join(f"{each.label} ({each.why})" for each in ranking.neighbours)
        said = capitalized(ranking.called)
        parts.append(lead(f"{said}. Nearest tasks: {near}." if near else f"{said}."))
        if ranking.places:
            columns = (
                Column("mixer", "ascending", "text"),
                Column("rank", "ascending", sorted="ascending"),
                Column("gain"),
                *[Column(each.label, _direction(each.first.metric)) for each in telling],
                Column("tokens to train", "ascending"),
            )
            rows = [
                (
                    Cell(place.mixer, place.mixer),
                    Cell(f"{place.rank}", place.rank),
                    Cell(percent(place.gain), place.gain),
                    *[_guidance_cell(place.on.get(each.label)) for each in telling],
                    Cell(count(place.tokens), place.tokens),
                )
                for place in ranking.places
            ]
            parts.append(table(f"Results on {ranking.called}, scrollable", columns, rows))
        parts.append(bullets("doubts", ranking.doubts))
    how = (
        f"{advice.answer} Gain: the way from the trivial answer to the best mixer of a task, mean "
        "over the tasks; mixers of one rank are not told apart by their seeds. `dsfjax recommend` "
        "says the same of other lengths and inputs, with memory and operations."
    )
    return section("Which architecture, by all results on tasks like this", how, *parts)


def _guidance_cell(standing: Standing | None) -> Cell:
    if standing is None:
        return Cell("–", None)
    one = standing.best
    cell = _score_cell(one.metric, one.mean, one.std)
    if standing.top or not one.learnt:
        word = "top" if standing.top else "not learnt"
        return dataclasses.replace(cell, spread=f"{cell.spread}, {word}")
    return cell


def costs(comparison: Comparison) -> str:
    """What a token costs."""
    # All models have one task: either all decode, or none does, as classifiers answer once.
    known = [phase for phase in PHASES if getattr(comparison.entries[0].cost, phase) is not None]
    columns = (
        Column("mixer", "ascending", "text"),
        Column("parameters", "ascending"),
        Column("state size N", "ascending"),
        Column("as KV cache, tokens", "ascending"),
        *[Column(f"{phase}: operations", "ascending") for phase in known],
        *[Column(f"{phase}: bytes", "ascending") for phase in known],
    )
    color = colors([entry.mixer for entry in comparison.entries])
    rows = []
    for entry in comparison.entries:
        cost = entry.cost
        phases = [getattr(cost, phase) for phase in known]
        rows.append(
            (
                Cell(entry.mixer, entry.mixer, color=color[entry.mixer]),
                Cell(count(entry.num_params), entry.num_params),
                Cell(count(entry.state_size), entry.state_size, "grows" if entry.grows else ""),
                Cell(number(cost.cache_equivalent), cost.cache_equivalent),
                *[Cell(count(phase.flops), phase.flops) for phase in phases],
                *[Cell(count(phase.bytes), phase.bytes) for phase in phases],
            )
        )
    length = comparison.entries[0].cost.length
    explained = (
        f"Per token, one sequence of {count(length)} tokens at a time, counted on the computation "
        "that JAX would compile. As KV cache: number of tokens whose keys and values would take as "
        "much room as the state. The same numbers are in cost.csv."
    )
    return section("What it costs", "", table("Cost, scrollable", columns, rows), note(explained))
