"""Other packages as contestants, each run only where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from dsfjax._util.versions import at_least
from dsfjax.bench.peers import fla, jla, recurrentgemma, selective_scan, transformers
from dsfjax.bench.peers.importing import is_installed

EXTRA = "pip install 'dsfjax[bench]'"


class Peer(NamedTuple):
    """A function of another package.

    Attributes:
        title: As the tables name it.
        framework: "torch" or "jax".
        packages: What has to be installed.
        load: Gives ``function(signals) -> y`` of the whole batch, in arrays of the framework.
        install: How to install them.
        precisions: In which it can be compared with ours. The packages in PyTorch take the same
            signals in float32 only, and have no TF32 on a CPU.
        jax: The oldest version of JAX that it runs on.
    """

    title: str
    framework: str
    packages: tuple[str, ...]
    load: Callable[[], Callable[..., Any]]
    install: str = EXTRA
    precisions: tuple[str, ...] = ("float32",)
    jax: tuple[int, ...] = ()

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""
        absent = [package for package in self.packages if not is_installed(package)]
        if absent:
            return f"{', '.join(absent)} not installed: {self.install}"
        oldest = ".".join(map(str, self.jax))
        return None if at_least("jax", *self.jax) else f"wants jax {oldest} or newer"


def _fla(name: str, load: Callable[[], Callable[..., Any]], form: str) -> Peer:
    return Peer(f"FLA {name}, {form}", "torch", ("torch", "fla", "einops"), load)


def _jla(name: str, load: Callable[[], Callable[..., Any]]) -> Peer:
    # It pins jax 0.11.2, and these functions run on later ones. On the CPU of 0.10.2 some of their
    # gradients end the process (a decay per state) or do not end (RWKV-7).
    install = "pip install --no-deps jax-linear-attention"
    title = f"jax-linear-attention {name}, chunked (JAX)"
    return Peer(title, "jax", ("jla",), load, install, ("float32", "bfloat16"), (0, 11, 2))


_CHUNKED = "chunked (PyTorch)"
PEERS = {
    "fla-linear_attn": _fla("linear_attn", fla.linear_attn, _CHUNKED),
    "fla-simple_gla": _fla("simple_gla", fla.simple_gla, _CHUNKED),
    "fla-gla": _fla("gla", fla.gla, "recurrent (PyTorch)"),
    "fla-delta_rule": _fla("delta_rule", fla.delta_rule, _CHUNKED),
    "fla-gated_delta_rule": _fla("gated_delta_rule", fla.gated_delta_rule, _CHUNKED),
    "fla-kda": _fla("kda", fla.kda, _CHUNKED),
    "jla-simple_gla": _jla("simple_gla", jla.simple_gla),
    "jla-gla": _jla("gla", jla.gla),
    "jla-delta_rule": _jla("delta_rule", jla.delta_rule),
    "jla-gated_delta_rule": _jla("gated_delta_rule", jla.gated_delta_rule),
    "jla-kda": _jla("kda", jla.kda),
    "jla-rwkv7": _jla("rwkv7", jla.rwkv7),
    "jla-mamba2": _jla("simple_gla as Mamba-2", jla.mamba2),
    "scan-loop": Peer("PyTorch loop, autograd", "torch", ("torch",), selective_scan.loop),
    "scan-adjoint": Peer("PyTorch loop, own adjoint", "torch", ("torch",), selective_scan.adjoint),
    "scan-cumsum": Peer("PyTorch chunked cumsum", "torch", ("torch",), selective_scan.cumsum),
    "transformers-mamba": Peer(
        "transformers MambaMixer (PyTorch)", "torch", ("torch", "transformers"), transformers.mamba
    ),
    "transformers-mamba2": Peer(
        "transformers Mamba2Mixer (PyTorch)",
        "torch",
        ("torch", "transformers"),
        transformers.mamba2,
    ),
    # Its pinned numpy and typeguard exclude those of this package's other dependencies, so that it
    # cannot be part of the extra; the scan needs neither.
    "recurrentgemma": Peer(
        "recurrentgemma linear_scan (JAX)",
        "jax",
        ("recurrentgemma", "absl", "einops"),
        recurrentgemma.linear_scan,
        "pip install --no-deps recurrentgemma; pip install absl-py einops",
        ("float32", "tf32"),  # no products; in bfloat16 it wants the decays in bfloat16, too
    ),
}
