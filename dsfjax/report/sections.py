"""The sections of the page, an aspect each, with every mixer in it side by side."""

from collections.abc import Callable, Sequence

from matplotlib.figure import Figure

from dsfjax.analysis.cost import PHASES
from dsfjax.report import dynamics, figures, panels
from dsfjax.report.aspects import Aspect, Layers, registered
from dsfjax.report.comparison import Comparison, Entry
from dsfjax.report.findings import FADED, Findings, Layer
from dsfjax.report.html import Cell, Column, bullets, figure, grid, lead, note, section, table
from dsfjax.report.joint import TaskScores, baselines, mixers
from dsfjax.report.style import colors
from dsfjax.report.words import count, factor, number, percent, rate

Panel = Callable[[str, Sequence[Layer], str], Figure]


def results(comparison: Comparison) -> str:
    """Accuracy, and what it took: a table and four figures."""
    columns = (
        Column("mixer", "ascending", "text"),
        Column("accuracy", sorted="descending"),
        Column("best lr", "ascending"),
        Column("steps to 90 %", "ascending"),
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
            Cell(percent(e.accuracy_mean), e.accuracy_mean, f"± {100 * e.accuracy_std:.1f}"),
            Cell(rate(e.learning_rate), e.learning_rate),
            Cell(count(e.steps_to_90), e.steps_to_90),
            Cell(f"{e.num_diverged} of {len(e.outcomes)}", e.num_diverged),
            Cell(count(e.state_size), e.state_size, "grows" if e.grows else ""),
            Cell(count(e.num_params), e.num_params),
            Cell(count(e.tokens_per_second), e.tokens_per_second),
            Cell(e.bounds, e.bounds),
        )
        for e in comparison.entries
    ]
    explained = (
        "Accuracy: share of the queries whose value is named, mean ± standard deviation over seeds "
        "at the best learning rate (highest mean); a member that diverged counts as 0 %. Steps to "
        "90 %: mean over seeds if all got there. Diverged: of all members, learning rate × seed. "
        "N: numbers of state in all layers after the last token of a sequence, the memory of the "
        "past; grows: with the length of the sequence. Tokens/s: training, all members together. A "
        "click on a heading sorts."
    )
    return section(
        "Accuracy",
        "",
        table("Results, scrollable", columns, rows),
        note(explained),
        grid("pair", _accuracy_figures(comparison)),
    )


def joint(tasks: Sequence[TaskScores]) -> str:
    """All tasks in one table: a row per mixer and per baseline."""
    columns = (
        Column("mixer", "ascending", "text"),
        *[Column(task.name) for task in tasks],
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
    for name, known in (
        ("trivial answer", [task.trivial for task in tasks]),
        ("linear model", [task.linear for task in tasks]),
    ):
        if any(known):
            cells = [Cell("–", None) if b is None else Cell(percent(b[0]), b[0]) for b in known]
            rows.append((Cell(name, name), *cells, *[Cell("–", None)] * (2 * len(tasks))))
    explained = (
        "Accuracy: mean ± standard deviation over seeds at the best learning rate of the mixer on "
        "the task; a member that diverged counts as 0 %. Not learnt: not told apart from the "
        f"trivial answer. {baselines(tasks)} N: numbers of state in all layers after the last "
        "token of a sequence. A click on a heading sorts, baselines included."
    )
    return section(
        "Every mixer on every task",
        "",
        table("Results on all tasks, scrollable", columns, rows),
        note(explained),
    )


def _joint_cell(task: TaskScores, mixer: str) -> Cell:
    if (score := task.scores.get(mixer)) is None:
        return Cell("–", None)
    spread = f"± {100 * score.accuracy_std:.1f}"
    if not task.learnt(mixer):
        spread += ", not learnt"
    return Cell(percent(score.accuracy_mean), score.accuracy_mean, spread)


def _accuracy_figures(comparison: Comparison) -> list[str]:
    entries, baselines = comparison.entries, (comparison.chance, comparison.unbound)
    guess = (
        f"Dashed: guessing among all answers ({percent(comparison.chance)}). Dotted: "
        f"{comparison.trivial} ({percent(comparison.unbound)}); only what is clearly above it has "
        "learnt the task, and below it there is no order."
    )
    drawn = [
        figure(
            figures.learning_curves(entries, *baselines),
            "curves",
            "Accuracy over training",
            "Accuracy on held-out examples while training. Line: mean over seeds at the best "
            "learning rate; band: lowest to highest seed; the dot marks where training ended, a "
            f"cross a seed that diverged. Further left and steeper is learnt faster. {guess}",
            "curves.csv",
        ),
        figure(
            figures.accuracy_bars(entries, *baselines),
            "bars",
            "Final accuracy",
            "Final accuracy in per cent. Bar: mean over seeds; whisker: one standard deviation; "
            "dots: the seeds, crosses those that diverged. Bars whose whiskers overlap are not "
            f"told apart by this run. {guess}",
            "members.csv",
        ),
        figure(
            figures.rates(entries),
            "rates",
            "Accuracy by learning rate",
            "Every member that was trained: final accuracy against its learning rate, a line "
            "through the means over seeds, a cross at 0 for one that diverged. A line that still "
            "rises at its end asks for learning rates beyond.",
            "members.csv",
        ),
    ]
    if len(entries) > 1:
        drawn.append(
            figure(
                figures.trade_off(entries),
                "trade-off",
                "Accuracy by state size",
                "What the accuracy costs in memory: mean ± standard deviation over seeds against "
                "the state size; squares grow with the length of the sequence. Further up and left "
                "is better.",
                "summary.csv",
            )
        )
    return drawn


def inside(comparison: Comparison) -> str:
    """What the analysis of the best member of each mixer found, in one table."""
    columns = (
        Column("mixer", "ascending", "text"),
        Column("accuracy", sorted="descending"),
        Column("horizon"),
        Column("half-life"),
        Column("left when asked"),
        Column("age read"),
        Column("prediction"),
        Column("directions in use"),
        Column("of N", "ascending"),
        Column("|λ| > 1", "ascending"),
        Column("Lyapunov", "ascending"),
        Column("gradient", "descending"),
        *[Column(head) for aspect in registered() for head in aspect.columns],
    )
    color = colors([entry.mixer for entry in comparison.entries])
    rows = [_inside_row(entry, color[entry.mixer]) for entry in comparison.entries]
    explained = (
        f"Of the best seed at the best learning rate, on held-out sequences. Horizon: steps until "
        f"half of the products of |λ| are below {FADED:g} (∞: not within a sequence), and "
        "half-life: steps in which the median eigenvalue halves what it keeps, both of the layer "
        "that keeps longest. Left when asked: what is left of a value in the state (in the outputs "
        "where there is no finite state) when the task asks for it, relative to its entry, "
        "geometric mean. Age read: mean age in steps of what is read in the second half. "
        "Prediction: correlation of measured retention with the product of eigenvalues, in "
        "logarithms, the lowest of a layer. Directions in use: those that carry 99 % of the energy "
        "from past to future. |λ| > 1: largest share of a layer. Lyapunov: largest mean growth of "
        "log |h| per step. Gradient: norm of ∂L/∂h in the first quarter of the sequence over that "
        "in the last, in the layer where it is least; far below 1 it vanishes. – where there is no "
        "finite state or no member that did not diverge."
    )
    return section(
        "Side by side", "", table("Analysis, scrollable", columns, rows), note(explained)
    )


def _inside_row(entry: Entry, color: str) -> tuple[Cell, ...]:
    found = entry.findings
    head = (
        Cell(entry.mixer, entry.mixer, color=color),
        Cell(percent(entry.accuracy_mean), entry.accuracy_mean),
    )
    if found is None:
        return (*head, *[Cell("–", None)] * (10 + sum(len(a.columns) for a in registered())))
    agreed = min((layer.trace.correlation for layer in found.layers), default=None)
    share = found.share_used
    return (
        *head,
        Cell(number(found.horizon), found.horizon),
        Cell(number(found.half_life), found.half_life),
        Cell(factor(found.until_asked), found.until_asked),
        Cell(number(found.mean_age), found.mean_age),
        Cell(number(agreed, 2), agreed),
        Cell(count(found.dimension), found.dimension),
        Cell("–" if share is None else percent(share), share),
        Cell(percent(found.growing), found.growing),
        Cell(number(found.exponent, 2), found.exponent),
        Cell(factor(found.gradient_ratio), found.gradient_ratio),
        *[
            _number_cell(read, found.aspects.get(aspect.name))
            for aspect in registered()
            for read in aspect.columns.values()
        ],
    )


def _number_cell(read: Callable[[Layers], float | None], layers: Layers | None) -> Cell:
    value = None if layers is None else read(layers)
    return Cell(number(value), value)


def spectra(comparison: Comparison) -> str:
    """Histograms of eigenvalues."""

    def caption(found: Findings) -> str:
        medians = ", ".join(f"{layer.quantiles[2]:.3f}" for layer in found.layers)
        above = ", ".join(percent(layer.growing) for layer in found.layers)
        real = all(layer.is_positive for layer in found.layers)
        text = f"Median {medians}; above 1: {above}."
        return text + (" All are real and positive." if real else "")

    drawn = _panels(comparison, "moduli", "|λ|", panels.moduli, caption, "moduli.csv")
    turning = [
        e
        for e in comparison.entries
        if e.findings and not all(layer.is_positive for layer in e.findings.layers)
    ]
    turns = _panels(
        comparison, "phases", "arg λ", panels.phases, lambda _: "", "phases.csv", turning
    )
    how = (
        "How to read: shares of the moduli of the eigenvalues of the normalised transition Λ_t of "
        "the trained models, over tokens and heads, a line per layer. Left of the dashed line "
        "(|λ| < 1) a memory fades, the faster the further left; at 1 it is kept; right of it, it "
        "grows for that step. Where a transition has eigenvalues that are not positive, their "
        "angles follow: away from 0 the state turns as it fades."
    )
    return section("What a step keeps: eigenvalues", how, grid("panels", drawn + turns))


def memory(comparison: Comparison) -> str:
    """Horizons, and retention measured beside what eigenvalues predict."""

    def horizon(found: Findings) -> str:
        each = ", ".join(number(layer.horizon) for layer in found.layers)
        half = ", ".join(number(layer.half_life) for layer in found.layers)
        return f"Horizon {each} steps; half-life {half}."

    def traced(found: Findings) -> str:
        left = ", ".join(factor(layer.trace.until_asked) for layer in found.layers)
        ratio = ", ".join(factor(layer.trace.ratio) for layer in found.layers)
        where = (
            "state" if all(layer.trace.state is not None for layer in found.layers) else "output"
        )
        return f"In the {where}: {left} left when asked; measured is {ratio} the prediction."

    horizons = _panels(
        comparison, "survival", "memory horizon", panels.survival, horizon, "memory.csv"
    )
    traces = _panels(comparison, "trace", "retention", panels.retention, traced, "memory.csv")
    return section(
        "How long it keeps: memory",
        f"How to read: the share of products of |λ| that are still at least {FADED:g} "
        "after τ steps; a line that stays up keeps tokens, one that drops at once forgets them.",
        grid("panels", horizons),
        lead(
            "How to read what follows: what is left of a marked value after so many steps, "
            "relative to its entry, measured by taking the value away (lines), and predicted from "
            "the eigenvalues alone (dots). Where lines and dots part, memory is not in the "
            "eigenvalues but in how the state is written and read."
        ),
        grid("panels", traces),
    )


def state(comparison: Comparison) -> str:
    """Hankel singular values."""
    entries = [e for e in comparison.entries if e.findings and e.findings.dimension is not None]

    def caption(found: Findings) -> str:
        parts = [
            f"{count(layer.dimension)} of {count(layer.use.size)}"
            for layer in found.layers
            if layer.use is not None
        ]
        return f"99 % of the energy in {', '.join(parts)} directions."

    drawn = _panels(
        comparison, "use", "Hankel singular values", panels.use, caption, "state_use.csv", entries
    )
    how = (
        "How to read: Hankel singular values of the middle step, largest first, relative to the "
        "largest: how much goes from the past to the future through each direction of the state. A "
        "line that falls early leaves the rest of the state unused, and a smaller state would do; "
        "one that stays up fills it."
    )
    return section("How much of the state is used", how, grid("panels", drawn)) if drawn else ""


def kernels(comparison: Comparison) -> str:
    """Φ of one example, every layer."""
    drawn = []
    for i, entry in enumerate(comparison.entries):
        if entry.findings is None:
            continue
        for j, layer in enumerate(entry.findings.layers):
            channels = (
                f"Root mean square over the {layer.num_channels} channels of the head."
                if layer.num_channels > 1
                else "One Φ for all channels of the head."
            )
            title = f"{entry.mixer}, layer {j + 1}"
            shown = panels.kernel_map(
                title, layer.kernel, entry.findings.pairs, entry.findings.cell
            )
            data = f"phi_{entry.mixer}.csv"
            drawn.append(figure(shown, f"phi-{i}-{j}", f"Φ of {title}", channels, data))
    how = (
        "How to read: Φ_{t,s} is the weight with which token s enters output t, the attention map "
        "of any mixer. Shown for head 0 of every layer on the same held-out example, relative to "
        "the largest entry. Triangles mark the query positions (left) and the positions of the "
        "values they ask for (below); a ring marks where a query meets its value. A mixer that "
        "recalls by looking up shows a strong entry inside each ring; one that carries everything "
        "along shows columns or smooth decay. Scales with both signs are blue for negative, orange "
        "for positive weights."
    )
    return section("Who reads what: Φ of one example", how, grid("panels", drawn)) if drawn else ""


def stability(comparison: Comparison) -> str:
    """Gradients through time, Lyapunov exponents, warnings."""
    entries = [e for e in comparison.entries if e.findings and e.findings.dimension is not None]

    def caption(found: Findings) -> str:
        exponents = ", ".join(number(float(layer.exponents[-1]), 2) for layer in found.layers)
        return f"Largest Lyapunov exponents {exponents}."

    drawn = _panels(
        comparison,
        "gradients",
        "gradients through time",
        panels.gradients,
        caption,
        "gradients.csv",
        entries,
    )
    how = (
        "How to read: the norm of ∂L/∂h, the gradient of the loss to the state, at every step of a "
        "sequence. A line that falls by orders of magnitude towards the left vanishes and teaches "
        "nothing about early tokens; one that rises explodes. Below: what looks wrong, in words. "
        "The Lyapunov exponent is the mean growth of log |h| per step: negative forgets, positive "
        "explodes."
    )
    warned = [
        f"{e.mixer}, {text}"
        for e in comparison.entries
        if e.findings
        for text in e.findings.warnings
    ]
    lost = [
        f"{e.mixer}: every member at its best learning rate diverged, there is no model to look at."
        for e in comparison.entries
        if e.findings is None
    ]
    said = bullets("warnings", lost + warned) or note("Nothing looks wrong in any model.")
    return section("Stability", how, grid("panels", drawn), said)


def own_section(comparison: Comparison, aspect: Aspect) -> str:
    """A registered aspect: a figure per mixer that it applies to."""
    color = colors([entry.mixer for entry in comparison.entries])
    drawn = [
        figure(
            aspect.draw(entry.mixer, layers, color[entry.mixer]),
            f"{aspect.name.replace('_', '-')}-{i}",
            f"{aspect.title}: {entry.mixer}",
            aspect.caption(layers),
            f"{aspect.name}.csv",
        )
        for i, entry in enumerate(comparison.entries)
        if entry.findings and (layers := entry.findings.aspects.get(aspect.name))
    ]
    return section(aspect.title, aspect.how, grid("panels", drawn)) if drawn else ""


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


def _panels(
    comparison: Comparison,
    name: str,
    what: str,
    draw: Panel,
    caption: Callable[[Findings], str],
    data: str,
    entries: Sequence[Entry] | None = None,
) -> list[str]:
    """A figure per mixer that has findings, in the colours of the page."""
    color = colors([entry.mixer for entry in comparison.entries])
    return [
        figure(
            draw(entry.mixer, entry.findings.layers, color[entry.mixer]),
            f"{name}-{i}",
            f"{what} of {entry.mixer}",
            caption(entry.findings),
            data,
        )
        for i, entry in enumerate(comparison.entries if entries is None else entries)
        if entry.findings is not None
    ]
