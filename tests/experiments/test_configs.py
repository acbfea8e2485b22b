"""What the experiments train: distinct points at every scale, and the authors' configuration."""

import dataclasses
import math

import pytest

from dsfjax import nn
from dsfjax.analysis import num_parameters
from dsfjax.nn.surroundings import surrounding
from dsfjax.tasks.data import MissingDataError
from dsfjax.training.runs import program_of
from experiments import fig2_normalization, fig3_qlstm, recurrent_cells, table_wikitext
from experiments.experiment import Experiment, run_name
from experiments.page import EXPERIMENTS
from experiments.settings import Scale, config

SCALES: tuple[Scale, ...] = ("demo", "small", "paper")


def configs_of(experiment: Experiment, scale: Scale, faithful: bool = False):
    """The points of an experiment; without its data set there is nothing to test."""
    try:
        return experiment.configs(scale, faithful)
    except MissingDataError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: e.name)
def test_points_are_distinct_and_named_by_their_series(experiment, scale: Scale) -> None:
    for faithful in (False, True):
        found = configs_of(experiment, scale, faithful)
        assert len({run_name(each) for each in found.values()}) == len(found)
        assert all("," in name for name in found)
        named = {claimed["series"] for c in experiment.claims for claimed in (c.better, c.worse)}
        assert named <= {name.split(",")[0] for name in found}


def test_every_small_model_can_be_built() -> None:
    for experiment in EXPERIMENTS:
        try:
            found = experiment.configs("small", True)
        except MissingDataError:
            continue
        for each in found.values():
            program_of(each)
            assert len(each.seeds) >= 3
            assert len(each.learning_rates) >= (1 if experiment.after else 3)


def test_models_of_the_table_of_language_have_as_many_parameters() -> None:
    sizes = [
        num_parameters(program_of(each).model)
        for each in configs_of(table_wikitext.EXPERIMENT, "small").values()
    ]
    assert max(sizes) / min(sizes) < 1.05, sizes


@pytest.mark.slow
@pytest.mark.parametrize("scale", SCALES)
def test_recurrent_cells_have_the_parameters_and_surroundings_of_the_qlstm(scale: Scale) -> None:
    found = recurrent_cells.configs(scale, False)
    models = {name: nn.build(each.model) for name, each in found.items()}
    for name, each in found.items():
        cell, where = name.split(", ", 1)
        other = found[f"qlstm, {where}"]
        sizes = [num_parameters(models[x]) for x in (name, f"qlstm, {where}")]
        assert abs(sizes[0] / sizes[1] - 1) < (0.15 if scale == "demo" else 0.05), (name, sizes)
        around = [
            surrounding(x.architecture.mixer, x.architecture.surroundings) for x in (each, other)
        ]
        assert around[0] == around[1], cell
        assert (each.learning_rates, each.batch_size) == (other.learning_rates, other.batch_size)


def test_experiments_share_runs() -> None:
    names = ("convergence", "fig1_state_expansion", "fig2_normalization", "fig3_qlstm")
    names += ("heatmap_mqar", "table_normalizers", "coupling", "recurrent_cells")
    runs = {
        e.name: {run_name(each) for each in e.configs("small", False).values()}
        for e in EXPERIMENTS
        if e.name in names
    }
    assert runs["convergence"] == runs["fig2_normalization"]
    figures = runs["fig2_normalization"] | runs["fig1_state_expansion"]
    assert runs["heatmap_mqar"] < figures
    assert len(figures - runs["heatmap_mqar"]) == 8  # what the authors ran differently
    assert len(runs["table_normalizers"] & runs["fig2_normalization"]) == 4
    assert len(runs["coupling"] & runs["fig3_qlstm"]) == 4
    assert runs["fig3_qlstm"] < runs["recurrent_cells"]


# Numbers of parameters of the authors' language model with d = 32, n = 16, 64 tokens and 32
# positions, counted from the shapes of its weights; without those that it never reads.
D, N, V, L = 32, 16, 64, 32
EMBEDDING, NORM = V * D, 2 * D
ATTENTION = 2 * N * (D + 1) + 2 * D * (D + 1) + 2 * NORM
MLP = 4 * D * (D + 1) + D * (4 * D + 1)
QLSTM = 4 * D * D + 5 * 2 * D + 6 * D * (2 * D + 1) + 2 * D * D + 2 * NORM
S6 = D * N + D + D * (2 + 2 * N) + 2 * D + D + D * D + NORM
SSD = 1 + D + D * (1 + 2 * N) + D + D * D + NORM


@pytest.mark.parametrize(
    "mixer, block, positions",
    [
        ("softmax_attention", ATTENTION, L),
        ("linear_attention", ATTENTION, L),
        ("normalized_attention", ATTENTION + D + 1 + MLP, L),
        ("qlstm", QLSTM, L),
        ("qlstm_reversed", QLSTM + 1, L),
        ("s6", S6, 0),
        ("ssd", SSD, 0),
    ],
)
def test_faithful_models_have_the_parameters_of_the_authors(
    mixer: str, block: int, positions: int
) -> None:
    model = config("paper", mixer, (64, 4), D, N, faithful=True).architecture
    model = dataclasses.replace(model, vocab_size=V, max_length=positions)
    assert num_parameters(nn.build(model)) == EMBEDDING + positions * D + 2 * block + NORM


def test_the_default_models_have_no_mlp_and_the_ssd_of_mamba_2() -> None:
    normalized = config("paper", "normalized_attention", (512, 64), 64, 128)
    linear = config("paper", "linear_attention", (512, 64), 64, 128)
    sizes = [num_parameters(nn.build(each.model)) for each in (normalized, linear)]
    assert sizes[0] == sizes[1] + 2 * (64 + 1)
    assert config("paper", "ssd", (512, 64), 64, 128).model.mixer == "ssd"
    assert config("paper", "ssd", (512, 64), 64, 128, faithful=True).model.mixer == "s6"


@pytest.mark.parametrize("length, batch", [(64, 512), (128, 256), (256, 128), (512, 64)])
def test_paper_scale_is_the_configuration_of_the_authors(length: int, batch: int) -> None:
    found = config("paper", "softmax_attention", (length, 4), 64, 32)
    assert found.batch_size == batch
    assert found.task.vocab_size == 8192
    epoch = math.ceil(100_000 / batch)
    assert (found.train_examples, found.eval_examples, found.eval_every) == (100_000, 3000, epoch)
    assert found.steps == 64 * epoch
    assert found.optimizer.steps_per_epoch == epoch
    assert found.optimizer.decay_all and found.optimizer.weight_decay == 0.1
    assert [round(math.log10(rate), 3) for rate in found.learning_rates] == [-4, -3.333, -2.667, -2]
    assert len(found.seeds) == 10
    if length < 512:
        assert config("paper", "qlstm", (length, 4), 64).batch_size == batch // 2


def test_figure_2_has_both_ways_of_what_the_authors_ran_differently() -> None:
    found = fig2_normalization.configs("paper", False)
    series = {name.split(",")[0] for name in found}
    assert series == {*fig2_normalization.MIXERS, *fig2_normalization.QUIRKS.values()}
    models = {name.split(",")[0]: each.architecture for name, each in found.items()}
    assert models["normalized_attention with MLP"].block != models["normalized_attention"].block
    assert (models["ssd as scalar S6"].mixer, models["ssd"].mixer) == ("s6", "ssd")
    for experiment in (fig2_normalization, fig3_qlstm):
        assert experiment.configs("paper", True) == experiment.configs("paper", False)
