"""The report page: one HTML file that needs nothing else, neither network nor other files."""

import html
import re
from importlib import resources
from string import Template

import numpy as np

from dsfjax.report import figures, words
from dsfjax.report.comparison import Comparison, Entry
from dsfjax.report.style import colors
from dsfjax.report.svg import to_svg

# Head of the column, kind of its values, direction of the first click.
_COLUMNS = (
    ("mixer", "text", "ascending"),
    ("accuracy", "number", "descending"),
    ("best lr", "number", "ascending"),
    ("steps to 90 %", "number", "ascending"),
    ("state size N", "number", "ascending"),
    ("parameters", "number", "ascending"),
    ("tokens/s", "number", "descending"),
    ("|λ| by construction", "text", "ascending"),
)


def _asset(name: str) -> str:
    return resources.files("dsfjax.report").joinpath("assets", name).read_text(encoding="utf-8")


def _cell(shown: str, value: object, kind: str = "td") -> str:
    """A table cell; ``value`` is what sorting compares, empty where there is nothing to compare."""
    key = "" if value is None else html.escape(str(value))
    scope = ' scope="row"' if kind == "th" else ""
    words_class = ' class="words"' if kind == "td" and isinstance(value, str) else ""
    return f'<{kind}{scope}{words_class} data-value="{key}">{shown}</{kind}>'


def _subscripts(text: str) -> str:
    """η_t and η_{t−1} as they are read."""
    return re.sub(r"_\{([^}]*)\}|_(\w)", lambda m: f"<sub>{m[1] or m[2]}</sub>", text)


def _row(entry: Entry, color: str) -> str:
    swatch = f'<span class="swatch" style="background:{color}"></span>'
    spread = f'<span class="spread"> ± {100 * entry.accuracy_std:.1f}</span>'
    cells = (
        _cell(swatch + html.escape(entry.mixer), entry.mixer, "th"),
        _cell(words.percent(entry.accuracy_mean) + spread, entry.accuracy_mean),
        _cell(words.rate(entry.learning_rate), entry.learning_rate),
        _cell(words.count(entry.steps_to_90), entry.steps_to_90),
        _cell(words.count(entry.state_size), entry.state_size),
        _cell(words.count(entry.num_params), entry.num_params),
        _cell(words.count(entry.tokens_per_second), entry.tokens_per_second),
        _cell(_subscripts(html.escape(entry.bounds)), entry.bounds),
    )
    return f"<tr>{''.join(cells)}</tr>"


def _heads() -> str:
    heads = []
    for name, kind, first in _COLUMNS:
        # The rows arrive ordered by accuracy.
        order = ' aria-sort="descending"' if name == "accuracy" else ""
        words_class = ' class="words"' if kind == "text" else ""
        heads.append(
            f'<th scope="col"{words_class} data-kind="{kind}" data-first="{first}"{order}>'
            f'<button type="button">{html.escape(name)}</button></th>'
        )
    return "\n".join(heads)


def _figure(svg: str, caption: str = "") -> str:
    text = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure>{svg}{text}</figure>"


def _accuracy(comparison: Comparison) -> str:
    entries, baselines = comparison.entries, (comparison.chance, comparison.unbound)
    guess = (
        f"Dashed: guessing among all values ({words.percent(comparison.chance)}). Dotted: naming "
        f"any value of the sequence ({words.percent(comparison.unbound)}); only above it are "
        "values bound to their keys."
    )
    drawn = [
        _figure(
            to_svg(
                figures.learning_curves(entries, *baselines), "curves", "Accuracy over training"
            ),
            "Accuracy on held-out examples while training. Line: mean over seeds at the best "
            "learning rate; band: lowest to highest seed; the dot marks where training ended. "
            f"Further left and steeper is learnt faster. {guess}",
        ),
        _figure(
            to_svg(figures.accuracy_bars(entries, *baselines), "bars", "Final accuracy"),
            "Final accuracy in per cent. Bar: mean over seeds; whisker: one standard deviation; "
            f"dots: the seeds. Bars whose whiskers overlap are not told apart by this run. {guess}",
        ),
    ]
    return "\n".join(drawn)


def _probes(comparison: Comparison) -> str:
    probed = [(entry, entry.probe) for entry in comparison.entries if entry.probe is not None]
    if not probed:
        return ""
    color = colors([entry.mixer for entry in comparison.entries])
    spectra, kernels = [], []
    for entry, probe in probed:
        name = entry.mixer.replace("_", "-")
        drawn = figures.modulus_histogram(entry.mixer, probe.moduli, color[entry.mixer])
        above = 100 * np.mean(probe.moduli > 1)
        spectra.append(
            _figure(
                to_svg(drawn, f"moduli-{name}", f"|λ| of {entry.mixer}"),
                f"Median {np.median(probe.moduli):.3f}, {above:.0f} % above 1.",
            )
        )
        drawn = figures.kernel_map(entry.mixer, probe.kernel, probe.pairs)
        channels = (
            f"Root mean square over the {probe.num_channels} channels of the head."
            if probe.num_channels > 1
            else "One Φ for all channels of the head."
        )
        kernels.append(_figure(to_svg(drawn, f"phi-{name}", f"Φ of {entry.mixer}"), channels))
    return f"""<section>
<h2>What the state keeps: |λ| of the transition</h2>
<p class="lead">Moduli of the eigenvalues of the normalised transition Λ<sub>t</sub> of the trained
models, over tokens, heads and layers. Left of the dashed line (|λ| &lt; 1) a memory fades, the
faster the further left; at 1 it is kept; right of it, it grows for that step. State-space models
and recurrent networks stay at or below 1 by construction; the ratio
η<sub>t−1</sub>/η<sub>t</sub> of attention need not.</p>
<div class="panels">
{chr(10).join(spectra)}
</div>
</section>
<section>
<h2>Who reads what: Φ of one example</h2>
<p class="lead">Φ<sub>t,s</sub> is the weight with which token s enters output t: the attention map
of any mixer. Shown for head 0 of the last layer on the same held-out example, relative to the
largest entry. Triangles mark the query positions (left) and the positions of the values they ask
for (below); a ring marks where a query meets its value. A mixer that recalls by looking up shows a
strong entry inside each ring; one that carries everything along shows columns or smooth decay.
Scales with both signs are blue for negative, orange for positive weights.</p>
<div class="panels">
{chr(10).join(kernels)}
</div>
</section>"""


def render(comparison: Comparison, title: str, files: list[str]) -> str:
    """The page as a string.

    Args:
        comparison: What is to be shown; entries ordered by mean accuracy.
        title: Heading of the page, plain text.
        files: Names of the data files, for the footer.

    Returns:
        A complete HTML document.
    """
    color = colors([entry.mixer for entry in comparison.entries])
    facts = "\n".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
        for name, value in comparison.facts.items()
    )
    diverged = sum(entry.num_diverged for entry in comparison.entries)
    members = sum(entry.num_members for entry in comparison.entries)
    note = (
        "Accuracy: share of the queries whose value is named, mean ± standard deviation over "
        "seeds at the best learning rate (highest mean). Steps to 90 %: mean over seeds if all got "
        "there. N: numbers of state in all layers after the last token, the memory of the past. "
        f"Tokens/s: training, all members together. {diverged} of {members} members (learning rate "
        "× seed) diverged; they count as 0 %. A click on a heading sorts."
    )
    return Template(_asset("page.html")).substitute(
        title=html.escape(title),
        css=_asset("page.css"),
        script=_asset("page.js"),
        verdict=html.escape(words.verdict(comparison)),
        facts=facts,
        heads=_heads(),
        rows="\n".join(_row(entry, color[entry.mixer]) for entry in comparison.entries),
        table_note=html.escape(note),
        accuracy=_accuracy(comparison),
        probes=_probes(comparison),
        files=", ".join(f"<code>{html.escape(name)}</code>" for name in files),
    )
