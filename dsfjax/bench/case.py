"""The cases of the benchmark: who runs against whom, on what, at which sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jax import Array

from dsfjax.bench.signals import FAMILIES, Family, Sizes
from dsfjax.core import KernelSystem, System

ASSOCIATIVE, LOOP = "autodiff associative_scan", "autodiff lax.scan"
QUADRATIC, SOFTMAX = "quadratic attention", "jax.nn.dot_product_attention"
QUICK = 8


class Case(NamedTuple):
    """One architecture at one size, run by every engine, by baselines and by other packages.

    Attributes:
        name: As ``--cases`` takes it.
        title: Structure of the transition, with architectures that have it.
        family: Key of `dsfjax.bench.signals.FAMILIES`.
        sizes: B, L, H, n, p.
        baselines: Keys of `dsfjax.bench.naive.BASELINES`.
        peers: Keys of `dsfjax.bench.peers.PEERS`.
        engines: Methods to run, of those that run the structure; None for all.
    """

    name: str
    title: str
    family: str
    sizes: Sizes
    baselines: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    engines: tuple[str, ...] | None = None

    @property
    def source(self) -> Family:
        """Signals and System of the architecture."""
        return FAMILIES[self.family]

    def build(self, signals: Mapping[str, Array]) -> tuple[System | KernelSystem, Array]:
        """The System of one sequence and its tokens."""
        return self.source.build(signals)


class Layer(NamedTuple):
    """A whole layer, projections and convolution included, with the weights of another package.

    Attributes:
        name: As ``--cases`` takes it.
        title: What it is.
        module: What `dsfjax.interop.reference` runs.
        options: Keywords of the module.
        sizes: B, L, H, n, p of the recurrence inside.
        peers: Keys of `dsfjax.bench.peers.PEERS`.
    """

    name: str
    title: str
    module: str
    options: dict[str, Any]
    sizes: Sizes
    peers: tuple[str, ...]


def cases(*, quick: bool = False) -> tuple[Case | Layer, ...]:
    """The grid.

    Args:
        quick: Sequences an eighth as long and at most two of them: to see that everything runs.

    Returns:
        The cases, in the order of the tables.

    Example:
        >>> [case.name for case in cases()][:3]
        ['ssd-256', 'ssd', 'ssd-4096']
    """
    return tuple(_quick(case) for case in _CASES) if quick else _CASES


def _quick(case: Case | Layer) -> Case | Layer:
    sizes = case.sizes
    length = max(64, sizes.length // QUICK)
    return case._replace(sizes=sizes._replace(batch=min(sizes.batch, 2), length=length))


# The sizes at which other packages are compared. The engines that lose are timed above, on the same
# structures.
_BESIDE = Sizes(8, 1024, 1, 64, 128)
_BESIDE_HEADS = Sizes(2, 2048, 4, 64, 64)
_FAST = ("sequential", "chunked")


def _beside(name: str, title: str, family: str, *peers: str) -> Iterator[Case]:
    """A case next to the functions of other packages, and the one with heads where JAX has one."""
    yield Case(name, title, family, _BESIDE, peers=peers, engines=_FAST)
    with_heads = tuple(peer for peer in peers if peer.startswith("jla"))
    if with_heads:
        yield Case(
            f"{name}-heads", f"{title}, 4 heads", family, _BESIDE_HEADS, (), with_heads, _FAST
        )


_CASES: tuple[Case | Layer, ...] = (
    Case("ssd-256", "scalar (SSD)", "ssd", Sizes(4, 256, 1, 64, 128), (QUADRATIC,)),
    Case(
        "ssd",
        "scalar (SSD)",
        "ssd",
        Sizes(4, 1024, 1, 64, 128),
        (ASSOCIATIVE, LOOP, QUADRATIC),
    ),
    Case("ssd-4096", "scalar (SSD)", "ssd", Sizes(4, 4096, 1, 64, 128), (QUADRATIC,)),
    Case("ssd-heads", "scalar, 8 heads (SSD)", "ssd", Sizes(2, 2048, 8, 64, 64)),
    Case("gla", "diagonal per state (GLA)", "gla", Sizes(4, 1024, 1, 64, 128), (ASSOCIATIVE,)),
    Case(
        "s6",
        "diagonal, factored (S6)",
        "s6",
        Sizes(8, 1024, 1, 64, 128),
        (ASSOCIATIVE, LOOP),
        ("scan-loop", "scan-adjoint", "scan-cumsum"),
    ),
    Case("s6-16", "diagonal, factored (S6)", "s6", Sizes(8, 1024, 1, 16, 128)),
    Case(
        "rg_lru",
        "diagonal, n = 1 (RG-LRU, qLSTM)",
        "rg_lru",
        Sizes(8, 4096, 1, 1, 256),
        (ASSOCIATIVE, LOOP),
        ("recurrentgemma",),
    ),
    Case("s4d", "complex diagonal, constant (S4D)", "s4d", Sizes(8, 1024, 64, 32, 1)),
    Case("lru", "complex diagonal, dense maps (LRU)", "lru", Sizes(8, 1024, 1, 256, 128)),
    Case("dplr", "diagonal + rank 1 (delta rule)", "delta_rule", Sizes(2, 1024, 1, 64, 64)),
    Case(
        "dplr-gated",
        "diagonal + rank 1 (gated delta rule)",
        "gated_delta_rule",
        Sizes(2, 1024, 1, 64, 64),
    ),
    Case("dense", "dense", "dense", Sizes(2, 512, 1, 16, 64)),
    Case("softmax", "kernel (softmax attention)", "softmax", Sizes(4, 1024, 4, 64, 64), (SOFTMAX,)),
    *_beside(
        "linear_attention",
        "scalar, a = 1 (linear attention)",
        "linear_attention",
        "fla-linear_attn",
    ),
    *_beside("simple_gla", "scalar (simple GLA)", "ssd", "fla-simple_gla", "jla-simple_gla"),
    *_beside("gla-fla", "diagonal per state (GLA)", "gla", "fla-gla", "jla-gla"),
    *_beside(
        "delta_rule",
        "diagonal + rank 1 (delta rule)",
        "delta_rule",
        "fla-delta_rule",
        "jla-delta_rule",
    ),
    *_beside(
        "gated_delta_rule",
        "diagonal + rank 1 (gated delta rule)",
        "gated_delta_rule",
        "fla-gated_delta_rule",
        "jla-gated_delta_rule",
    ),
    *_beside("kda", "diagonal + rank 1, per state (KDA)", "kda", "fla-kda", "jla-kda"),
    *_beside("rwkv7", "diagonal + rank 1, per state (RWKV-7)", "rwkv7", "jla-rwkv7"),
    *_beside("mamba2-ssd", "scalar, keys shared (Mamba-2)", "mamba2", "jla-mamba2"),
    Layer(
        "mamba",
        "Mamba layer (S6)",
        "zoology.mixers.mamba.Mamba",
        {"d_model": 128, "d_state": 64, "expand": 1},
        Sizes(8, 1024, 1, 64, 128),
        ("transformers-mamba",),
    ),
    Layer(
        "mamba2",
        "Mamba-2 layer (SSD)",
        "mamba_ssm.modules.mamba2_simple.Mamba2Simple",
        {"d_model": 128, "d_state": 64, "expand": 2, "headdim": 64},
        Sizes(4, 1024, 4, 64, 64),
        ("transformers-mamba2",),
    ),
)
