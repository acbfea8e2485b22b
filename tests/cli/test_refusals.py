"""Commands that are refused: one line that says why, before anything is written."""

import re
from pathlib import Path

import jax
import pytest

from dsfjax.cli import main


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train mqra --mixer ssd", "unknown task 'mqra'; did you mean 'mqar'?"),
        ("train mqar --mixer sssd", "unknown mixer 'sssd'; did you mean 'ssd'?"),
        ("train mqar", "expected --mixer, one of"),
        ("compare mqar --mixers ssd soft_attention", "did you mean 'softmax_attention'?"),
        ("compare mqar --mixers ssd ssd", "expected distinct mixers"),
        ("compare mqar --preset dmeo", "unknown preset 'dmeo'; did you mean 'demo'?"),
        ("compare mqar --num-kv-pairs 9", "seq_len / 4 = 8, got 9"),
        ("compare mqar --mixers softmax_attention --num-heads 5", "5"),
        ("compare mqar --steps 150 --eval-every 100", "nearest:"),
        ("compare mqar --lrs -1.0", "positive learning_rates"),
        ("compare mqar --schedule cosin", "did you mean 'cosine'?"),
        ("explain --mixer sssd", "unknown mixer 'sssd'; did you mean 'ssd'?"),
        ("explain --mixer ssd --length 0", "--length"),
        ("analyze nowhere", "found neither compare.json nor result.json"),
        (
            "sweep mqar --preset smoke --d-model 16 17 --mixers softmax_attention --num-heads 2",
            "17",
        ),
        ("sweep mqar --preset smoke --num-kv-pairs 2 9", "seq_len / 4 = 4, got 9"),
        ("sweep mqar --preset smoke --dropout 0.1", "expected a model with dropout"),
        ("sweep mqar --preset smoke --seeds 1 1", "expected distinct seeds"),
        ("sweep mqar --preset smoke --launcher rai", "unknown launcher 'rai'; did you mean 'ray'?"),
        ("sweep mqar --preset smoke --process a 2 0", "--process with --launcher hosts only"),
        ("sweep mqar --preset smoke --devices 64", "devices, got 64"),
        ("sweep mqar --d-modle 8", "did you mean '--d-model'?"),
        ("results nowhere", "found no results.sqlite in nowhere"),
    ],
)
def test_refused_before_anything_is_written(
    words: str,
    message: str,
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    jax.devices()  # once JAX has been used, a CPU cannot be divided any more
    assert main(words.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"dsfjax: .*\n", err)
    assert message in err
    assert list(tmp_path.iterdir()) == []
