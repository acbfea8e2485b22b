"""The terminal table, as it arrives in a pipe."""

import io

from rich.console import Console

from dsfjax.report import render
from dsfjax.tasks import MAE, MSE
from dsfjax.tasks.metric import to_json


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


def test_less_is_better_where_the_metric_says_so() -> None:
    """Ascending, with an arrow, further metrics next to it, and no steps to an accuracy."""
    common = {"measured": to_json((MSE, MAE)), "mse_std": 0.0125, "mae_std": 0.002}
    rows = [
        row("rg_lru", 0.5) | common | {"mse_mean": 0.75, "mae_mean": 0.5},
        row("ssd", 0.5) | common | {"mse_mean": 0.25, "mae_mean": 0.4567},
        row("s6", 0.5) | common | {"mse_mean": None, "mse_std": None, "mae_mean": 0.3},
        {"mixer": "qlstm", "status": "failed", "reason": "no memory"},
    ]
    out = io.StringIO()
    Console(file=out, width=100).print(render(rows))
    lines = [" ".join(line.split()) for line in out.getvalue().splitlines() if line.strip(" ─")]
    assert lines == [
        "mixer MSE ↓ MAE ↓ best lr N params tokens/s",
        "ssd 0.250 ± 0.013 0.457 ± 0.002 0.003 4 096 51 234 98 765",
        "rg_lru 0.750 ± 0.013 0.500 ± 0.002 0.003 4 096 51 234 98 765",
        "s6 ∞ 0.300 ± 0.002 0.003 4 096 51 234 98 765",
        "qlstm failed – – – – –",
    ]
