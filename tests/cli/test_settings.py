"""Options of architectures, and files of settings: typed, and refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from dsfjax import nn
from dsfjax.analysis import state_size
from dsfjax.cli import main, options, parse, sweep, training
from dsfjax.cli.settings import mixer_options
from dsfjax.training import TrainConfig, load, to_json

FILE = """
steps = 8
eval_every = 4
learning_rates = [0.02, 0.01]
[task]
name = "mqar"
seq_len = 16
vocab_size = 32
num_kv_pairs = 2
[model]
mixer = "normalized_attention"
d_model = 8
norm = "rms"
mlp_ratio = 2
residual_dropout = 0.1
options = {normalizer = "sigmoid", bias = true}
[optimizer]
clip = 1
warmup_steps = 2
b2 = 0.95
decay_all = false
"""


def plan(text: str) -> dict[str, TrainConfig]:
    command = parse.parse(text.split())
    made = sweep.plan if isinstance(command, options.Sweep) else training.plan
    return made(command)  # type: ignore[arg-type]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "small.toml").write_text(FILE)
    return tmp_path / "small.toml"


def test_layers_of_several_architectures() -> None:
    words = "--layers ssd*2 softmax_attention --mixer-option ssd.num_groups=1"
    (name, config), *_ = plan(f"train mqar {words} --mixer-option bias=true").items()
    assert name == config.model.mixer == "2xssd+softmax_attention"
    assert config.architecture.num_layers == 3  # the preset has one
    assert config.architecture.options == (("bias", True), ("ssd.num_groups", 1))
    both = "ssd&softmax_attention"
    found = plan(
        f"compare mqar --mixers {both} 2xssd+s6 --mixer-option s6.dt_rank=2 --num-layers 4"
    )
    assert list(found) == [both, "2xssd+s6"]
    assert [x.architecture.options for x in found.values()] == [(), (("s6.dt_rank", 2),)]
    assert [x.architecture.num_layers for x in found.values()] == [4, 4]
    with pytest.raises(ValueError, match="expected --mixer or --layers, got both"):
        plan("train mqar --mixer ssd --layers s6")


def test_options_of_architectures_are_typed_by_their_functions() -> None:
    (config,) = plan(
        "train mqar --mixer s6 --mixer-option dt_rank=2 --mixer-option scalar=true"
    ).values()
    assert config.architecture.options == (("dt_rank", 2), ("scalar", True))
    found = plan(
        "compare mqar --mixers s6 ssd --mixer-option s6.dt_rank=none "
        "--mixer-option ssd.num_groups=1 --mixer-option init=authors"
    )
    assert found["s6"].architecture.options == (("dt_rank", None), ("init", "authors"))
    assert found["ssd"].architecture.options == (("init", "authors"), ("num_groups", 1))
    swept = plan("sweep mqar --mixers ssd --mixer-option num_groups=1").values()
    assert [config.architecture.options for config in swept] == [(("num_groups", 1),)]


def test_a_size_as_an_option_is_the_size() -> None:
    def size(words: str) -> int:
        (config,) = plan(f"train mqar --mixer ssd {words}").values()
        return state_size(nn.build(config.architecture), 1)

    whole = size("")  # the preset has 32
    assert size("--mixer-option d_state=8") == whole // 4 == size("--d-state 8")
    assert size("--d-state 16 --mixer-option ssd.d_state=8") == whole // 4


def test_training_options_reach_the_config() -> None:
    words = "--clip 0.5 --b1 0.8 --b2 0.99 --eps 1e-6 --decay matrices --norm rms --mlp-ratio 2"
    words += " --embed-dropout 0.1 --dropout 0.3 --init-scale 0.5 --weight-decay 0.2"
    (config,) = plan(f"train mqar --mixer ssd {words}").values()
    optimizer, model = config.optimizer, config.architecture
    assert (optimizer.clip, optimizer.b1, optimizer.b2, optimizer.eps) == (0.5, 0.8, 0.99, 1e-6)
    assert (optimizer.decay_all, optimizer.weight_decay) == (False, 0.2)
    assert (model.norm, model.mlp_ratio, model.embed_dropout) == ("rms", 2, 0.1)
    assert (config.dropouts, config.init_scales) == ((0.3,), (0.5,))


def test_a_file_gives_what_the_options_do_not(file: Path) -> None:
    words = f"--config {file} --d-model 16 --lr 0.5 --mixer-option normalizer=softplus"
    (config,) = plan(f"train {words}").values()  # task and mixer are those of the file
    assert (config.steps, config.eval_every, config.batch_size) == (8, 4, 32)  # the last: demo's
    assert config.model.mixer == "normalized_attention"
    own = config.architecture
    assert (own.d_model, own.norm, own.mlp_ratio) == (16, "rms", 2)
    assert own.options == (("bias", True), ("normalizer", "softplus"))
    assert (config.optimizer.clip, config.optimizer.b2) == (1.0, 0.95)
    assert not config.optimizer.decay_all
    assert config.learning_rates == (0.5,)
    other = file.with_name("other.toml")
    other.write_text("\n".join(x for x in FILE.splitlines() if not x.startswith("options")))
    words = f"--config {other} --mixer-option ssd.num_groups=1 --seeds 4"
    found = plan(f"compare mqar --mixers ssd s6 {words}")
    assert {c.learning_rates for c in found.values()} == {(0.02, 0.01)}
    assert {c.seeds for c in found.values()} == {(4,)}
    assert found["ssd"].architecture.options == (("num_groups", 1),)


@pytest.mark.parametrize(
    ("words", "change", "message"),
    [
        ("", ("steps", "step"), "unknown key of config 'step'; did you mean 'steps'?"),
        ("", ("clip", "clipp"), "unknown key of config.optimizer 'clipp'; did you mean 'clip'?"),
        ("", ("seq_len = 16", "seq_len = 16.5"), "config.task.seq_len: expected an integer"),
        (
            "",
            ('norm = "rms"', 'norm = "rsm"'),
            "config.model.norm 'rsm'; did you mean 'rms'",
        ),
        ("", ("bias = true", "bais = true"), "has no option 'bais'; did you mean 'bias'?"),
        ("", ("bias = true", "bias = 1"), "option bias of normalized_attention: expected True or"),
        ("", ('"sigmoid"', '"sigmoidd"'), "did you mean 'sigmoid'?"),
        ("", ("steps = 8", "steps = "), "config file: expected TOML (.toml) or JSON in"),
        ("", ("[optimizer]", "[optimiser]"), "did you mean 'optimizer'?"),
        ("digits", ("", ""), "expected the task of the command, 'digits', got 'mqar'"),
        ("--mixer-option normaliser=exp", ("", ""), "did you mean 'normalizer'?"),
        ("--mixer-option normalizer=expp", ("", ""), "did you mean 'exp'?"),
        ("--mixer-option bias=1", ("", ""), "expected true or false, got '1'"),
        ("--mixer-option bias", ("", ""), "expected --mixer-option OPTION=VALUE or MIXER.OPTION"),
        ("--mixer-option d_model=4", ("", ""), "has no option 'd_model'"),
        ("--mixer-option ssd.num_groups=1", ("", ""), "unknown mixer of this command 'ssd'"),
        ("--config nowhere.toml", None, "nowhere.toml, got an error (No such file or directory)"),
    ],
)
def test_what_does_not_fit_is_named(
    words: str,
    change: tuple[str, str] | None,
    message: str,
    file: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    if change is not None:
        file.write_text(FILE.replace(*change))
        words += f" --config {file}"
    assert main(["train", *words.split()]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_a_run_is_trained_from_a_file_and_again_from_its_own_config(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words: list[Any] = ["train", "--preset", "smoke", "--config", file, "--eval-examples", 8]
    words += ["--mixer-option", "normalizer=softplus", "--run-dir", tmp_path / "run"]
    assert main([str(word) for word in words]) == 0
    config = load(tmp_path / "run").config
    assert config.architecture.options == (("bias", True), ("normalizer", "softplus"))
    assert config.optimizer.clip == 1.0
    # The file that a run writes describes it whole.
    (again,) = plan(f"train --config {tmp_path / 'run' / 'config.json'}").values()
    assert json.loads(to_json(again)) == json.loads(to_json(config))
    capsys.readouterr()


def test_an_option_of_one_mixer_comes_last() -> None:
    words = ["ssd.d_state=8", "d_state=16"]
    assert mixer_options(["ssd"], words, {}) == {"ssd": {"options": (("d_state", 8),)}}


def test_a_size_that_is_swept_is_no_option() -> None:
    words = "sweep mqar --mixers ssd --d-state 8 16 --mixer-option d_state=4"
    with pytest.raises(ValueError, match="expected d_state of ssd from --d-state or from"):
        plan(words)
