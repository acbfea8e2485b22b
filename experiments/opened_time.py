"""How long opened checkpoints take for the logits of a text, next to the package transformers.

Mamba (130M parameters) and GPT-2 (124M) in their published sizes, with random parameters that
transformers makes and writes; both sides read the same folder, in float32. Mamba of transformers
is timed without its CUDA kernels, which do not run on a CPU.

    python -m experiments.opened_time            # needs torch and transformers

Contestants take turns; times are medians. A ratio is above 1 where ours takes less time. The errors
of both are from the logits of transformers in float64. Opening is timed, too: the folder is in the
page cache then. Runs on Linux.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro
from rich.table import Table

import dsfjax
from dsfjax._util.allocation import keep_freed_memory
from dsfjax._util.limits import cores
from dsfjax.bench import machine
from dsfjax.bench.timing import take_turns
from dsfjax.cli.output import console
from dsfjax.training.storage import files

MODELS: dict[str, dict[str, Any]] = {
    "mamba": {"hidden_size": 768, "num_hidden_layers": 24, "vocab_size": 50_280},
    "gpt2": {},  # its defaults are the sizes of GPT-2
}
SMALL: dict[str, dict[str, Any]] = {
    "mamba": {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 64},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 64},
}
WANTED = {"mamba": 3.0, "gpt2": 1.0}
"""How many times less time the logits should take."""
OPENING = """
import json, re, sys, time
from pathlib import Path
import jax
import dsfjax

def peak():  # getrusage would count what the parent had, too
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

dsfjax.open(sys.argv[2])  # all that is imported once
before = peak()
began = time.perf_counter()
opened = dsfjax.open(sys.argv[1])
jax.block_until_ready(opened.params)
seconds = time.perf_counter() - began
grown = peak() - before
size = sum(value.nbytes for value in opened.params.values())
print(json.dumps({"seconds": seconds, "memory": grown / size}))
"""


class Row(NamedTuple):
    """A model.

    Attributes:
        model: Its type.
        parameters: How many numbers it has.
        ours_ms: The logits, by what `dsfjax.open` gives.
        theirs_ms: The same by transformers.
        ratio: Theirs over ours.
        wanted: The ratio aimed at.
        our_error: Norm of the difference of our logits from theirs in float64, over its norm.
        their_error: The same of their logits in float32.
        open_seconds: What opening takes, after another checkpoint has been opened.
        open_memory: How much the process grows for it, over the bytes of the parameters.
    """

    model: str
    parameters: int
    ours_ms: float
    theirs_ms: float
    ratio: float
    wanted: float
    our_error: float
    their_error: float
    open_seconds: float
    open_memory: float


def measure(name: str, settings: dict[str, Any], options: "Options", folder: Path) -> Row:
    """Make a model, open it on both sides, and time the logits of a text.

    Args:
        name: The type of the model.
        settings: Of its config, in which it differs from the defaults.
        options: Of the measurement.
        folder: Where it is written.
    """
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import (  # pyright: ignore[reportMissingImports]
        AutoConfig,
        AutoModelForCausalLM,
    )

    torch.set_num_threads(cores())
    torch.manual_seed(0)
    path, tiny = folder / name, folder / f"{name}-tiny"
    for where, own in ((path, settings), (tiny, SMALL[name])):
        config = AutoConfig.for_model(name, **own)
        AutoModelForCausalLM.from_config(config).eval().save_pretrained(where)
    theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    opened = dsfjax.open(path)
    size = theirs.config.vocab_size
    ids = np.random.default_rng(0).integers(size, size=options.length)
    batch = torch.tensor(ids[None])

    def run_theirs() -> np.ndarray:
        with torch.inference_mode():
            return theirs(batch, use_cache=False).logits[0].numpy()

    def run_ours() -> np.ndarray:
        return np.asarray(jax.block_until_ready(opened.logits(ids)))

    found = {"ours": run_ours(), "theirs": run_theirs()}
    times = take_turns(
        {"ours": run_ours, "theirs": run_theirs}, repeats=options.repeats, budget_s=60.0
    )
    theirs.double()
    exact = run_theirs()
    size_of = np.linalg.norm(exact)
    errors = {who: float(np.linalg.norm(x - exact) / size_of) for who, x in found.items()}
    done = subprocess.run(
        [sys.executable, "-c", OPENING, path, tiny], capture_output=True, text=True, check=True
    )
    opening = json.loads(done.stdout)
    return Row(
        name,
        sum(value.size for value in opened.params.values()),
        times["ours"],
        times["theirs"],
        times["theirs"] / times["ours"],
        WANTED[name],
        errors["ours"],
        errors["theirs"],
        opening["seconds"],
        opening["memory"],
    )


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        models: Types of models.
        length: Tokens of the text.
        repeats: Rounds, of which the median is taken.
        small: Tiny models, to see in seconds that everything runs.
        out: A JSON file for the numbers.
    """

    models: tuple[str, ...] = tuple(MODELS)
    length: int = 512
    repeats: int = 5
    small: bool = False
    out: Path | None = None


def main(options: Options) -> list[Row]:
    """Measure, print and write.

    Args:
        options: The options.

    Returns:
        A row for each model.
    """
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            measure(name, (SMALL if options.small else MODELS)[name], options, Path(folder))
            for name in options.models
        ]
    headings = ("model", "parameters", "ours", "transformers", "ratio", "target", "our error")
    table = Table(*headings, "their error", "opening", "memory of it")
    for row in rows:
        table.add_row(
            row.model,
            f"{row.parameters / 1e6:.0f} M",
            f"{row.ours_ms:,.0f} ms",
            f"{row.theirs_ms:,.0f} ms",
            f"{row.ratio:.2f}",
            f"{row.wanted:g}",
            f"{row.our_error:.1e}",
            f"{row.their_error:.1e}",
            f"{row.open_seconds:.1f} s",
            f"{row.open_memory:.2f} × parameters",
        )
    console().print(table)
    if options.out is not None:
        found = {"rows": [row._asdict() for row in rows], "machine": machine.describe()}
        files.write_json(options.out, {"length": options.length, **found})
    return rows


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Options, prog="python -m experiments.opened_time", description=__doc__))
