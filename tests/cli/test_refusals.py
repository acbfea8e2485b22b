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
        ("compare mqar --preset dmeo", "unknown preset 'dmeo'; did you mean 'demo'?"),
        ("compare mqar --num-kv-pairs 9", "seq_len / 4 = 4, got 9"),
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
        ("sweep mqar --preset smoke --launcher rai", "unknown launcher 'rai'; did you mean 'ray'?"),
        ("sweep mqar --preset smoke --process a 2 0", "--process with --launcher hosts only"),
        ("sweep mqar --launcher hosts --process a 2 0", "below NUM, got a 2 0"),
        ("sweep mqar --launcher hosts --process a:1 2 2", "below NUM, got a:1 2 2"),
        ("sweep mqar --preset smoke --devices 64", "devices, got 64"),
        ("sweep mqar --d-modle 8", "did you mean '--d-model'?"),
        ("train mqar --mixer ssd --decay matrix", "unknown decay 'matrix'; did you mean 'matr"),
        ("train mqar --mixer ssd --weight-decay -1", "expected weight_decay >= 0"),
        ("train mqar --mixer ssd --vocab-size 1000000000000", "expected vocab_size < 2^31"),
        ("train mqar --mixer ssd --max-length 8", "at least task.seq_len = 16, got 8"),
        ("train mqar --mixer ssd --devices 0", "expected --devices >= 1, got 0"),
        ("train mqar --mixer ssd --sequence-shards 0", "sequence to be cut over 1 to"),
        ("train mqar --mixer ssd --memory 0", "expected --memory > 0 GiB, got 0"),
        ("train mqar --mixer ssd --memory -1", "expected --memory > 0 GiB, got -1"),
        ("train mqar --mixer ssd --run-dir /dev/null", "to write to, got /dev/null (Not a dir"),
        ("train mqar --mixer ssd --run-dir /dev/null/x", "got /dev/null/x (Not a directory)"),
        ("train mqar --mixer ssd --run-dir /proc/x", "got /proc/x (No such file"),
        ("compare mqar --mixers ssd --run-dir a --report /dev/null", "got /dev/null (Not a dir"),
        ("sweep mqar --mixers ssd --run-dir a --report /dev/null", "got /dev/null (Not a dir"),
        ("sweep mqar --mixers ssd --run-dir /dev/null", "got /dev/null (Not a directory)"),
        ("bench --cases dense --out /dev/null", "got /dev/null (Not a directory)"),
        ("bench --devices 0", "expected --devices >= 1, got 0"),
        ("systems --d-model 0", "expected d_model >= 1, got 0"),
        ("systems --num-heads -1", "expected num_heads >= 1, got -1"),
        ("explain --mixer ssd --d-state 0", "ssd: expected d_state >= 1, got 0"),
        ("results nowhere", "found no results.sqlite in nowhere"),
        ("recommend", "expected a TASK (mqar, "),
        ("recommend mqra", "unknown task 'mqra'; did you mean 'mqar'?"),
        ("recommend --length 9", "or --demands; demands are recall, "),
        ("recommend mqar --demands recal", "unknown demand 'recal'; did you mean 'recall'?"),
        ("recommend mqar --vocab 3 --channels 2", "got vocabulary 3 and 2 channels"),
        ("recommend mqar --decode-memory 1XB", "--decode-memory such as 64kB or 1MB, got '1XB'"),
        ("recommend mqar --budget 3epochs", "--budget such as 10Mtokens or 2000steps, got '3ep"),
        ("recommend mqar --d-model 0", "expected --d-model and --num-layers >= 1, got 0 and 2"),
        ("recommend mqar --run-dir nowhere", "found no results.sqlite in nowhere"),
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
