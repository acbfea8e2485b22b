"""A contest: a case with its signals, its reference in float64 and its contestants."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from jax import Array

from dsfjax.bench import naive
from dsfjax.bench.case import Case, Layer
from dsfjax.bench.contestant import Contestant, batched
from dsfjax.bench.peers import PEERS
from dsfjax.bench.signals import Draw, Signals, in_precision
from dsfjax.core import Precision
from dsfjax.engines import Explanation, explain, scan
from dsfjax.engines import methods as methods_of
from dsfjax.interop import reference

OneSequence = Callable[[Mapping[str, Array]], Array]

# What needs more memory than this is not run.
MOST_BYTES = 2**32


class Contest(NamedTuple):
    """A case, ready to be run.

    Attributes:
        case: The case.
        precision: In which ours and the baselines compute.
        signals: By name, in the dtype of the precision.
        shared: Names of signals without a batch axis.
        one: The function of one sequence in its plainest form, for the reference.
        contestants: Ours first.
        explanations: What `explain` says of each of our methods, for one sequence.
        chosen: The method of "auto".
    """

    case: Case | Layer
    precision: str
    signals: Signals
    shared: tuple[str, ...]
    one: OneSequence
    contestants: tuple[Contestant, ...]
    explanations: dict[str, Explanation]
    chosen: str


def contest(
    case: Case | Layer, precision: str = "float32", *, baselines: bool = True, seed: int = 0
) -> Contest:
    """Set up a case.

    Args:
        case: A system or a layer.
        precision: "float32", "bfloat16" or "tf32".
        baselines: Whether plain JAX and other packages take part.
        seed: Of the signals.

    Returns:
        The contest; nothing has been compiled.
    """
    rng = np.random.default_rng([seed, case.sizes.length])
    peers = [_peer(name, precision) for name in case.peers] if baselines else []
    if isinstance(case, Layer):
        return _layer(case, precision, rng, peers)
    source = case.source
    signals = in_precision(source.draw(rng, case.sizes), precision, source.decays)
    abstract = jax.eval_shape(
        lambda s: source.build(s)[0],
        {
            name: jax.ShapeDtypeStruct(x.shape if name in source.shared else x.shape[1:], x.dtype)
            for name, x in signals.items()
        },
    )
    chosen = explain(abstract).method
    methods = [
        method
        for method in methods_of(abstract)
        if case.engines is None or method in (*case.engines, chosen)
    ]
    explanations = {method: explain(abstract, method=method) for method in methods}
    policy = Precision.named(precision)
    ours = [_engine(case, policy, found) for found in explanations.values()]
    plain = [_baseline(case, policy, name) for name in case.baselines] if baselines else []
    return Contest(
        case,
        precision,
        signals,
        source.shared,
        lambda s: scan(*source.build(s), method="sequential")[0],
        (*ours, *plain, *peers),
        explanations,
        chosen,
    )


def _engine(case: Case, policy: Precision, found: Explanation) -> Contestant:
    def one(s: Mapping[str, Array]) -> Array:
        return scan(*case.build(s), method=found.method, precision=policy)[0]

    function = batched(one, case.source.shared)
    # Known without compiling: forward and backward keep about five arrays of this size.
    needed = 5 * case.sizes.batch * found.peak_memory
    quadratic = found.method == "materialized"
    missing = too_large(needed) if quadratic else None
    return Contestant(found.method, "ours", "jax", lambda: function, missing)


def too_large(needed: int) -> str | None:
    """Why a contestant is not run, if it needs so many bytes."""
    return f"needs {needed / 2**30:.1f} GiB" if needed > MOST_BYTES else None


def _baseline(case: Case, policy: Precision, name: str) -> Contestant:
    run = naive.BASELINES[name]

    def one(s: Mapping[str, Array]) -> Array:
        system, u = case.build(s)
        with jax.default_matmul_precision(policy.products(u.dtype)):
            return run(system, u)

    function = batched(one, case.source.shared)
    return Contestant(name, "baseline", "jax", lambda: function)


def _peer(name: str, precision: str) -> Contestant:
    peer = PEERS[name]
    missing = _only(precision, peer.precisions) or peer.missing()
    if missing is None and peer.framework == "torch" and jax.default_backend() != "cpu":
        missing = f"PyTorch would run on the CPU, JAX runs on the {jax.default_backend()}"
    return Contestant(peer.title, "peer", peer.framework, peer.load, missing)


def _only(precision: str, known: tuple[str, ...]) -> str | None:
    """Why a contestant is not run, if it knows the precisions ``known``."""
    return None if precision in known else f"runs in {' and '.join(known)} only"


def _layer(case: Layer, precision: str, rng: Draw, peers: list[Contestant]) -> Contest:
    apply = reference(case.module, **case.options)
    weights = _weights(rng, apply.shapes)
    sizes = case.sizes
    x = rng.normal(size=(sizes.batch, sizes.length, case.options["d_model"]))

    def one(s: Mapping[str, Array]) -> Array:
        return apply({name: w for name, w in s.items() if name != "x"}, s["x"][None])[0]

    shared = tuple(weights)
    # Modules of other projects take the dtype of their weights, but no other product of float32.
    missing = _only(precision, ("float32", "bfloat16"))
    ours = Contestant("dsfjax layer", "ours", "jax", lambda: batched(one, shared), missing)
    signals = in_precision(weights | {"x": x}, precision, _DECAYS)
    return Contest(case, precision, signals, shared, one, (ours, *peers), {}, ours.name)


_STEP_BIASES = ("dt_bias", "dt_proj.bias")
_DECAYS = ("A_log", *_STEP_BIASES)


def _weights(rng: Draw, shapes: Mapping[str, tuple[int, ...]]) -> Signals:
    """Weights as the layers are initialised, with biases other than 0."""

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name == "A_log":
            return np.log(np.broadcast_to(np.arange(1.0, shape[-1] + 1), shape))
        if name in _STEP_BIASES:  # softplus of it is log-uniform in [1e-3, 0.1]
            return np.log(np.expm1(np.exp(rng.uniform(np.log(1e-3), np.log(0.1), size=shape))))
        if name in ("D", "norm.weight"):
            return np.ones(shape)
        return rng.normal(size=shape) / math.sqrt(shape[-1])

    return {name: draw(name, shape) for name, shape in shapes.items()}
