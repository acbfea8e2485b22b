"""Words to commands; every misspelling is answered in one line by the nearest choice."""

import io
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest

from dsfjax.cli import main, options, parse
from dsfjax.cli.usage import UsageError
from dsfjax.engines import Method


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_frame_of_the_parser_is_taken_away(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The parser draws it as the terminal's encoding allows.
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    with pytest.raises(UsageError, match=r"^Unrecognized options: more; see dsfjax --help$"):
        parse.parse(["systems", "more"])


def test_compare_is_typed() -> None:
    words = "compare mqar --mixers ssd s6 --lrs 1e-3 3e-3 --seeds 0 1 2 --run-dir a/b --seq-len 64"
    command = parse.parse(words.split())
    assert isinstance(command, options.Compare)
    assert command.mixers == ("ssd", "s6")
    assert command.lrs == (1e-3, 3e-3)  # type: ignore[attr-defined]
    assert command.seeds == (0, 1, 2)  # type: ignore[attr-defined]
    assert command.run_dir == Path("a/b")
    assert (command.seq_len, command.d_model, command.preset) == (64, None, "demo")  # type: ignore[attr-defined]


def test_train_is_typed() -> None:
    command = parse.parse(["train", "mqar", "--mixer", "ssd", "--lr=0.1", "--seed", "3"])
    assert isinstance(command, options.Train)
    assert (command.task, command.mixer) == ("mqar", "ssd")
    assert (command.lr, command.seed) == (0.1, 3)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "expected a command: train, compare"),
        ("comprae mqar", "unknown command 'comprae'; did you mean 'compare'?"),
        ("--versoin", "dsfjax has no option '--versoin'; did you mean '--version'?"),
        (
            "train mqar --mixr ssd",
            "dsfjax train has no option '--mixr'; did you mean '--mixer'?",
        ),
        ("train mqar --mixer ssd --lrs=3", "did you mean '--lr'?"),
        (
            "compare mqar --seed 3",
            "dsfjax compare has no option '--seed'; did you mean '--seeds'",
        ),
        ("compare mqar --seeds one", "expected --seeds to be an integer, got 'one'"),
        ("train mqar --steps 1.5", "expected --steps to be an integer, got '1.5'"),
        ("train mqar --lr=x", "expected --lr to be a number, got 'x'"),
        ("train mqar --lr nan", "expected --lr to be finite, got nan"),
        ("train mqar --memory inf", "expected --memory to be finite, got inf"),
        ("train mqar --mixer", "expected a value after --mixer"),
        ("compare mqar --mixers", "expected a value after --mixers"),
        ("compare mqar --mixers --steps 4", "expected a value after --mixers"),
        ("bench --cases", "expected a value after --cases"),
        ("train mqar --lr 0.1 --lr 0.2", "expected --lr once, got it twice"),
        ("compare mqar --mixers ssd ssd", "expected distinct values of --mixers, got ssd ssd"),
        ("compare mqar --lrs 0.1 0.2 1e-1", "expected distinct values of --lrs, got 0.1 0.2 0.1"),
        ("sweep mqar --weight-decay 0 nan", "expected --weight-decay to be finite, got nan"),
        ("sweep mqar --d-model 8 8", "expected distinct values of --d-model, got 8 8"),
        ("train mqar --shared-data maybe", "invalid choice 'maybe' for argument '--shared-data'"),
        ("train --mixer ssd", "TASK"),
        ("analyze", "PATH"),
        ("systems more", "more"),
    ],
)
def test_one_line_says_what_is_wrong(
    words: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(words.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("dsfjax: ")
    assert err.count("\n") == 1
    assert message in err
    assert not set("│╭╰─") & set(err)


@pytest.mark.parametrize("words", ["--help", "train --help", "compare mqar --help", "analyze -h"])
def test_help(words: str, capsys: pytest.CaptureFixture) -> None:
    assert main(words.split()) == 0
    assert "usage: dsfjax" in capsys.readouterr().out


def test_help_lists_every_option_of_compare(capsys: pytest.CaptureFixture) -> None:
    main(["compare", "--help"])
    text = capsys.readouterr().out
    for option in ("--mixers", "--lrs", "--seeds", "--preset", "--run-dir", "--report", "--steps"):
        assert option in text


def test_version(capsys: pytest.CaptureFixture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dsfjax {parse.version()}\n"


def test_unknown_words_raise_usage_errors() -> None:
    with pytest.raises(UsageError):
        parse.parse(["trane"])


def test_help_loads_no_training_library() -> None:
    # The quick answer must not wait for the slow imports.
    code = (
        "import sys; from dsfjax.cli import main; main(['--help']);"
        "sys.exit(any(name in sys.modules for name in ('flax', 'optax', 'orbax', 'matplotlib')))"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert time.perf_counter() - began < 20  # a hang, not a benchmark: the machine may be busy


def test_a_reader_that_goes_away_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    code = "import sys; from dsfjax.cli import main; sys.exit(main(['--version']))"
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_the_engines_of_the_help_are_those_there_are() -> None:
    assert options.METHODS == get_args(Method)
