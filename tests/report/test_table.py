"""The terminal table, as it arrives in a pipe."""

import io

from rich.console import Console

from dsfjax.report import render


def row(mixer: str, mean: float, **others: object) -> dict[str, object]:
    return {
        "mixer": mixer,
        "accuracy_mean": mean,
        "accuracy_std": 0.0125,
        "best_learning_rate": 0.003,
        "steps_to_90": None,
        "state_size": 4096,
        "num_params": 51234,
        "tokens_per_second": 98765.4,
        **others,
    }


def test_plain_text_best_first() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100)
    console.print(render([row("rg_lru", 0.31), row("ssd", 0.987, steps_to_90=450.0)]))
    lines = [line.split() for line in out.getvalue().splitlines() if line.strip()]
    assert lines[1][:2] == ["mixer", "accuracy"]
    ssd = "ssd 98.7 ± 1.2 % 0.003 450 4\u202f096 51\u202f234 98\u202f765"
    assert " ".join(lines[3]) == " ".join(ssd.split())
    assert lines[4][0] == "rg_lru"
    assert lines[4][6] == "–"
    assert "\x1b" not in out.getvalue()


def test_fits_a_terminal_of_eighty_columns() -> None:
    out = io.StringIO()
    Console(file=out, width=80).print(render([row("normalized_attention", 0.31)]))
    assert "normalized_attention" in out.getvalue()
    assert "…" not in out.getvalue()
