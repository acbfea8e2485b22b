"""The results page: ``python -m experiments.page`` renews the tables of its README from the JSON.

What stands between a pair of markers, ``<!-- claims -->`` and ``<!-- end -->``, is replaced; the
rest of the page is written by hand. The same command renews what ``dsfjax recommend`` knows of the
results, a file of the package.
"""

import functools
import re
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from dsfjax import guidance
from dsfjax.guidance.evidence import Evidence, own_options, to_lines
from dsfjax.tasks import ACCURACY, Metric, kind, name_in
from dsfjax.training.storage import files
from experiments import (
    convergence,
    coupling,
    fig1_state_expansion,
    fig2_normalization,
    fig3_qlstm,
    heatmap_mqar,
    kv_cache_state,
    length_generalisation,
    recurrent_cells,
    recurrent_normalization,
    state_tracking,
    table_ett,
    table_lra,
    table_mad,
    table_normalizers,
    table_wikitext,
    trained_longer,
)
from experiments import points as measured
from experiments.claims import Verdict, judge
from experiments.experiment import Experiment
from experiments.points import RECALL
from experiments.settings import Scale

HERE = Path(__file__).parent
EXPERIMENTS: tuple[Experiment, ...] = (
    fig1_state_expansion.EXPERIMENT,
    fig2_normalization.EXPERIMENT,
    fig3_qlstm.EXPERIMENT,
    recurrent_cells.EXPERIMENT,
    table_normalizers.EXPERIMENT,
    coupling.EXPERIMENT,
    kv_cache_state.EXPERIMENT,
    convergence.EXPERIMENT,
    heatmap_mqar.EXPERIMENT,
    table_ett.EXPERIMENT,
    state_tracking.EXPERIMENT,
    length_generalisation.EXPERIMENT,
    table_lra.EXPERIMENT,
    trained_longer.EXPERIMENT,
    recurrent_normalization.EXPERIMENT,
    table_mad.EXPERIMENT,
    table_wikitext.EXPERIMENT,
)
"""All experiments, in the order in which they are run and shown."""
COMPARISONS = ("throughput", "engine_time")
"""Those that compare times (`experiments.comparison`)."""
EVIDENCE = Path(guidance.__file__).parent / "evidence.json"
"""Every point as `dsfjax.guidance.Evidence`."""
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
    parts = {"claims": claims, "tables": tables, "lengths": lengths, "spectra": spectra}
    parts |= {name: functools.partial(comparison, name=name) for name in COMPARISONS}
    parts["points"] = points
    for marker, part in parts.items():
        pattern = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- end -->)", re.DOTALL)
        table = "\n".join(part(results))
        text, found = pattern.subn(lambda m, t=table: f"{m[1]}\n{t}\n\n{m[2]}", text)
        if found != 1:
            raise ValueError(f"expected one pair <!-- {marker} --> … <!-- end --> in {page}")
    files.write_text(page, text)


def evidence(results: Path) -> Iterator[Evidence]:
    """Every point that was run, once, of the experiments that compare.

    Args:
        results: Folder with a folder of results per scale.

    Yields:
        What the point says of its architecture.
    """
    shown: set[str] = set()
    for scale in SCALES:
        for experiment in (each for each in EXPERIMENTS if each.compares):
            for point in _read(results, scale, experiment.name).get("points", ()):
                if point["run"] not in shown:
                    shown.add(point["run"])
                    yield _evidence(point, experiment.name, scale)


def _evidence(point: Mapping[str, Any], source: str, scale: str) -> Evidence:
    # Points of recall from before tasks had names have all sizes of it next to everything else.
    fields = dict(point.get("task") or {size: point.get(size) for size in (*RECALL, "vocab_size")})
    if "validation" in point:  # which chose the rate: the scores are of the test split
        fields.pop("judged_on", None)
    name = name_in(fields)
    at_best = [m for m in point["members"] if m["learning_rate"] == point["learning_rate"]]
    steps = max(member["step"] for member in at_best)
    sizes = {"d": point["d_model"], "n": point["d_state"]}
    own = point["series"].removeprefix(point["mixer"]).strip()
    setting = [own, *(f"{size}={value}" for size, value in sizes.items() if value)]
    return Evidence(
        task=name,
        options=own_options(name, fields),
        demands=tuple(kind(name).demands),
        length=point["seq_len"],
        vocab_size=point["vocab_size"],
        mixer=point["mixer"],
        setting=", ".join(each for each in setting if each),
        mean=measured.mean(point),
        std=point["std"] or 0.0,
        trivial=measured.trivial(point),
        metric=measured.metric(point),
        seeds=len(at_best),
        steps=steps,
        tokens=steps * point["batch_size"] * point["seq_len"],
        num_params=point["num_params"],
        state_size=point["state_size"],
        source=source,
        scale=scale,
    )


def claims(results: Path) -> Iterator[str]:
    """A row per claim: the verdict at every scale, and the command that gives it.

    Args:
        results: Folder with a folder of results per scale.

    Yields:
        Lines of Markdown.
    """
    yield from _head("claim", *SCALES, "command")
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
            yield _line(claim.text, *cells, command)


def tables(results: Path) -> Iterator[str]:
    """For every experiment on several tasks a table: a row per task, a column per series.

    Args:
        results: Folder with a folder of results per scale.

    Yields:
        Lines of Markdown.
    """
    for scale, experiment, found in _looked_into(results):
        names = list(dict.fromkeys(point["series"] for point in found))
        metric = measured.metric(found[0])
        yield f"### {experiment.name}, scale {scale}: {metric.heading}\n"
        yield from _head("task", *names, "trivial", "linear model")
        for where in dict.fromkeys(map(measured.where, found)):
            own = {p["series"]: p for p in found if measured.where(p) == where}
            cells = [_score(own[name]) if name in own else "–" for name in names]
            some = next(iter(own.values()))
            known = (measured.trivial(some), some.get("linear"))
            cells += ["–" if x is None else metric.plain(x) + metric.unit for x in known]
            yield _line(where, *cells)
        yield ""


def lengths(results: Path) -> Iterator[str]:
    """Scores beyond the training length: a row per task and series, a column per factor.

    Args:
        results: Folder with a folder of results per scale.

    Yields:
        Lines of Markdown.
    """
    for scale, experiment, found in _looked_into(results):
        if not experiment.lengths or not any("lengths" in point for point in found):
            continue
        metric = measured.metric(found[0])
        factors = sorted({one["factor"] for point in found for one in point["lengths"]})
        yield f"![{experiment.name}](results/{scale}/{experiment.name}.png)\n"
        yield f"Scale {scale}, {metric.heading}, from an empty state:\n"
        yield from _head("task", "series", *(f"×{factor}" for factor in factors))
        for point in found:
            own = {one["factor"]: one for one in point["lengths"] if one["start"] == "empty"}
            cells = [
                metric.plain(statistics.fmean(own[f]["scores"])) if f in own else "–"
                for f in factors
            ]
            yield _line(measured.where(point), point["series"], *cells)
        yield ""


def spectra(results: Path) -> Iterator[str]:
    """Eigenvalues of trained models: a row per task and series, quantiles of |λ| by layer.

    Args:
        results: Folder with a folder of results per scale.

    Yields:
        Lines of Markdown.
    """
    quantiles = ("5 %", "median", "95 %")
    yield from _head("experiment", "task", "series", *quantiles, "above 1", "real and positive")
    for _, experiment, found in _looked_into(results):
        if experiment.lengths:
            continue  # the models of another experiment
        for point in found:
            layers = point["spectra"]
            quantiles = [
                ", ".join(f"{layer[f'modulus_{q}']:.3f}" for layer in layers)
                for q in ("0.05", "0.5", "0.95")
            ]
            above = ", ".join(f"{100 * layer['growing']:.1f} %" for layer in layers)
            positive = "yes" if all(layer["positive"] for layer in layers) else "no"
            cells = (experiment.name, measured.where(point), point["series"])
            yield _line(*cells, *quantiles, above, positive)


def _looked_into(results: Path) -> Iterator[tuple[str, Experiment, list[dict[str, Any]]]]:
    """Scale, experiment and points, of which the models were looked into."""
    for scale in SCALES:
        for experiment in EXPERIMENTS:
            known = _read(results, scale, experiment.name).get("points", [])
            found = [point for point in known if "spectra" in point]
            if found:
                yield scale, experiment, found


def comparison(results: Path, name: str) -> Iterator[str]:
    """What an experiment of `COMPARISONS` measured, with the target next to every ratio.

    Args:
        results: Folder with a folder of results per scale.
        name: Of the experiment.

    Yields:
        Lines of Markdown.
    """
    for scale in SCALES:
        found = _read(results, scale, name)
        if not found:
            continue
        machine = found["machine"]
        versions = machine["versions"]
        yield (
            f"`{found['command']}`, medians of {found['repeats']} rounds; {machine['processor']}, "
            f"{machine['devices']} × {machine['device']}, jax {versions['jax']}:\n"
        )
        yield from _head("what", "on", "ours", "other", "ratio", "target")
        for row in found["rows"]:
            both = (row["ours"], row["other"])
            numbers = (f"{x:,.{0 if x > 1000 else 1}f} {row['unit']}" for x in both)
            wanted = "–" if row["wanted"] is None else f"{row['wanted']:.3g}"
            yield _line(row["what"], row["case"], *numbers, f"{row['ratio']:.2f}", wanted)
        yield ""


def points(results: Path) -> Iterator[str]:
    """A row per point of every experiment that was run, in the first that has it.

    Args:
        results: Folder with a folder of results per scale.

    Yields:
        Lines of Markdown.
    """
    for scale in SCALES:
        shown: set[tuple[str, str, float]] = set()
        for experiment in EXPERIMENTS:
            result = _read(results, scale, experiment.name)
            if not result:
                continue
            # By name and run: two tasks may share a title, and two names a run. One that was
            # trained again on another machine can differ by rounding, and is shown as well.
            new = [p for p in result["points"] if _key(p) not in shown]
            shown.update(map(_key, new))
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
                header = ("point", *scores, "rate", *timed, "state", "parameters", "steps")
                header += ("tokens", "diverged", "wall time", "tokens/s")
                yield from _head(*header)
                yield from (_row(point) for point in new)
                yield ""


def _key(point: Mapping[str, Any]) -> tuple[str, str, float]:
    return point["name"], point["run"], point["mean"]


def _row(point: Mapping[str, Any]) -> str:
    metric = measured.metric(point)
    timed = [point["steps_to"]["90%"]] if metric == ACCURACY else []
    cells = (
        point["name"],
        _score(point),
        metric.plain(measured.best(point)) + metric.unit,
        f"{point['learning_rate']:.2g}",
        *["–" if steps is None else f"{steps:.0f}" for steps in timed],
        f"{point['state_size']:,}",
        f"{point['num_params']:,}",
        f"{point['steps']:,}",
        f"{point['steps'] * point['batch_size'] * point['seq_len'] / 1e6:.1f} M",
        f"{point['diverged']} of {len(point['members'])}",
        f"{point['train_seconds']:.0f} s",
        f"{point['tokens_per_second']:,.0f}",
    )
    return _line(*cells)


def _head(*cells: str) -> Iterator[str]:
    """The first two lines of a table."""
    yield _line(*cells)
    yield f"|{'---|' * len(cells)}"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _score(point: Mapping[str, Any]) -> str:
    return measured.metric(point).spread(measured.mean(point), point["std"] or 0.0)


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
    files.write_text(EVIDENCE, to_lines(evidence(HERE / "results")))
