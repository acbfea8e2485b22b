"""The results page: ``python -m experiments.page`` renews the tables of its README from the JSON.

What stands between a pair of markers, ``<!-- claims -->`` and ``<!-- end -->``, is replaced; the
rest of the page is written by hand.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from dsfjax.tasks import ACCURACY, Metric
from dsfjax.training.storage import files
from experiments import (
    convergence,
    coupling,
    fig1_state_expansion,
    fig2_normalization,
    fig3_qlstm,
    heatmap_mqar,
    kv_cache_state,
    table_normalizers,
)
from experiments import points as measured
from experiments.claims import Verdict, judge
from experiments.experiment import Experiment
from experiments.settings import Scale

HERE = Path(__file__).parent
EXPERIMENTS: tuple[Experiment, ...] = (
    fig1_state_expansion.EXPERIMENT,
    fig2_normalization.EXPERIMENT,
    fig3_qlstm.EXPERIMENT,
    table_normalizers.EXPERIMENT,
    coupling.EXPERIMENT,
    kv_cache_state.EXPERIMENT,
    convergence.EXPERIMENT,
    heatmap_mqar.EXPERIMENT,
)
"""All experiments, in the order in which they are run and shown."""
SCALES = [scale for scale in get_args(Scale) if scale != "demo"]


def renew(page: Path = HERE / "README.md", results: Path = HERE / "results") -> None:
    """Replace the tables of the page by those of the results.

    Args:
        page: The page.
        results: Folder with a folder of results per scale.

    Raises:
        ValueError: If the page lacks a pair of markers.
    """
    text = page.read_text(encoding="utf-8")
    for marker, lines in (("claims", claims(results)), ("points", points(results))):
        pattern = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- end -->)", re.DOTALL)
        table = "\n".join(lines)
        text, found = pattern.subn(lambda m, t=table: f"{m[1]}\n{t}\n\n{m[2]}", text)
        if found != 1:
            raise ValueError(f"expected one pair <!-- {marker} --> … <!-- end --> in {page}")
    files.write_text(page, text)


def claims(results: Path) -> Iterator[str]:
    """A row per claim: the verdict at every scale, and the command that gives it.

    Args:
        results: Folder with a folder of results per scale.

    Yields:
        Lines of Markdown.
    """
    yield f"| claim | {' | '.join(SCALES)} | command |"
    yield f"|---|{'---|' * len(SCALES)}---|"
    for experiment in EXPERIMENTS:
        for claim in experiment.claims:
            cells = []
            for scale in SCALES:
                points = _read(results, scale, experiment.name).get("points", ())
                means, extremes = judge(claim, points), judge(claim, points, by="max")
                metric = measured.metric(points[0]) if points else ACCURACY
                which = f"{measured.extreme(metric)}ima"
                said = (_verdict(each, metric) for each in (means, extremes))
                cells.append(f"; by the {which} ".join(said))
                if means.word == "not run":
                    cells[-1] = "not run at this scale"
            command = f"`python -m experiments.{experiment.name} --scale SCALE`"
            yield f"| {claim.text} | {' | '.join(cells)} | {command} |"


def points(results: Path) -> Iterator[str]:
    """A row per point of every experiment that was run, in the first that has it.

    Args:
        results: Folder with a folder of results per scale.

    Yields:
        Lines of Markdown.
    """
    for scale in SCALES:
        shown: set[str] = set()
        for experiment in EXPERIMENTS:
            result = _read(results, scale, experiment.name)
            if not result:
                continue
            new = [point for point in result["points"] if point["name"] not in shown]
            shown.update(point["name"] for point in new)
            picture = f"results/{scale}/{experiment.name}.png"
            seeds = len({member["seed"] for member in result["points"][0]["members"]})
            yield f"### {experiment.name}, scale {scale}, {seeds} seeds\n"
            yield f"![{experiment.name}]({picture})\n"
            if len(new) < len(result["points"]):
                yield f"{len(result['points']) - len(new)} of its points are in the tables above.\n"
            if new:
                metric = measured.metric(new[0])
                scores = (metric.heading, measured.extreme(metric))
                timed = ("steps to 90 %",) if metric == ACCURACY else ()
                header = ("point", *scores, "rate", *timed, "state", "diverged", "tokens/s")
                yield f"| {' | '.join(header)} |"
                yield f"|{'---|' * len(header)}"
                yield from (_row(point) for point in new)
                yield ""


def _row(point: Mapping[str, Any]) -> str:
    metric = measured.metric(point)
    timed = [point["steps_to"]["90%"]] if metric == ACCURACY else []
    cells = (
        point["name"],
        metric.spread(measured.mean(point), point["std"] or 0.0),
        metric.plain(measured.best(point)) + metric.unit,
        f"{point['learning_rate']:.2g}",
        *["–" if steps is None else f"{steps:.0f}" for steps in timed],
        f"{point['state_size']:,}",
        f"{point['diverged']} of {len(point['members'])}",
        f"{point['tokens_per_second']:,.0f}",
    )
    return f"| {' | '.join(cells)} |"


def _verdict(verdict: Verdict, metric: Metric) -> str:
    of = f"{verdict.pro} of {verdict.pairs} for, {verdict.against} against"
    # Positive is in favour of the claim, whichever way the metric goes.
    gain = verdict.gain
    shown = f"{100 * gain:+.1f} points" if metric.percent else f"{gain:+.3g} {metric.called}"
    return f"**{verdict.word}** ({of}; {shown})"


def _read(results: Path, scale: str, name: str) -> dict[str, Any]:
    path = results / scale / f"{name}.json"
    return files.read_json(path) if path.exists() else {}


if __name__ == "__main__":
    renew()
