"""How far `dsfjax.interop.reference` is from the original implementations, file by file."""

import functools
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dsfjax.interop import Reference, reference
from dsfjax.training.optimizer import OptimizerConfig, build
from tests import goldens

FAMILIES = {
    "linear attention": "dsf_linear*",
    "softmax attention": "dsf_softmax*",
    "normalized attention": "dsf_norm*",
    "Mamba": "dsf_mamba*",
    "S6": "dsf_s6*",
    "qLSTM": "dsf_qlstm*",
    "follow-up linear attention": "eig_linear*",
    "follow-up softmax attention": "eig_softmax*",
    "follow-up normalized attention": "eig_norm*",
    "follow-up SSD": "eig_ssd*",
    "follow-up transformer block": "eig_tblock*",
    "follow-up Mamba block": "eig_mambablock*",
    "follow-up LRU": "eig_lru*",
    "follow-up S4": "eig_s4*",
    "follow-up S5": "eig_s5*",
    "follow-up layer of an LRU": "eig_seqlayer*",
    "Mamba2Simple": "mamba2simple*",
    "RG-LRU": "rglru*",
    "recurrent block": "rg_recurrent_block",
    "language models": "lm_*",
}
MODULES = [
    n for family, p in FAMILIES.items() if family != "language models" for n in goldens.names(p)
]
LANGUAGE_MODELS = goldens.names(FAMILIES["language models"])
# One or two of every family, with what it has of its own; the others run with the slow tests.
QUICK = {
    "dsf_linear_h4",
    "dsf_softmax_h4",
    "dsf_norm_exp_relu_h4",
    "dsf_norm_softplus_h4",
    "dsf_mamba_expand2_fast",
    "dsf_s6_2",
    "dsf_qlstm_rev_alpha2p3",
    "eig_linear_conv_h4",
    "eig_softmax_convpartial",
    "eig_norm_conv_full",
    "eig_norm_offset_h1",
    "eig_ssd_noconv_expand2_long",
    "eig_ssd_lti_h4",
    "eig_tblock_norm_gate_glu",
    "eig_mambablock_glu",
    "eig_s5_bidirectional",
    "mamba2simple_h4_g2",
    "rglru_h4_reset",
    "rg_recurrent_block",
    "lm_s6_2",
}

# Many small programs are compiled and run once: compile them quickly rather than well.
COMPILER_OPTIONS = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class Errors(NamedTuple):
    """Normwise errors, by array."""

    forward: dict[str, float]
    gradients: dict[str, float]
    adamw: dict[str, float] = {}


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(function, compiler_options=COMPILER_OPTIONS)


def normwise(got: Any, expected: np.ndarray) -> float:
    """max|Δ| / max|expected|; absolute where all expected values are zero."""
    got = np.asarray(got)
    assert got.shape == expected.shape and got.dtype == expected.dtype
    scale = np.abs(expected).max()
    return float(np.abs(got - expected).max() / (scale if scale > 0 else 1.0))


def of(name: str) -> Reference:
    """The function of a golden file."""
    return _reference(goldens.load(name).meta["module"], json.dumps(_kwargs(name)))


def _kwargs(name: str) -> dict[str, Any]:
    """Keywords of a golden file; only its name tells which normaliser was patched into MHNA."""
    kwargs = dict(goldens.load(name).meta["kwargs"])
    if name.startswith("dsf_norm_"):
        kwargs["normalizer"] = name.removeprefix("dsf_norm_").rpartition("_")[0]
    return kwargs


@functools.cache
def _reference(module: str, kwargs: str) -> Reference:
    return reference(module, **json.loads(kwargs))


@functools.cache
def _value_and_grad(apply: Reference) -> Callable[..., Any]:
    def loss(weights: Any, x: Any, g: Any, inputs: Any) -> Any:
        y = apply(weights, x, **inputs)
        return (y * g).sum(), y

    return jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


@functools.cache
def module_errors(name: str) -> Errors:
    """Outputs, and gradients of sum(y · g) with respect to x and every weight."""
    file = goldens.load(name)
    run = _value_and_grad(of(name))
    (_, y), (weights, x) = run(file.group("p"), file["x"], file["g"], file.group("in"))
    expected = file.group("d")
    gradients = {k: normwise(v, expected.pop(k)) for k, v in {**weights, "x": x}.items()}
    assert not expected, f"gradients of {list(expected)} were not compared"
    return Errors({"y": normwise(y, file["y"])}, gradients)


@functools.cache
def language_model_errors(name: str) -> Errors:
    """Logits, loss, gradients of the loss, and eight steps of AdamW."""
    file = goldens.load(name)
    apply, weights = of(name), {k: jnp.asarray(v) for k, v in file.group("p").items()}
    fixed = {k: weights.pop(k) for k in file.meta["params_without_gradient"]}
    optimizer = build(OptimizerConfig(schedule="constant"), 1e-3)

    def loss(all_weights: Any) -> Any:
        logits = apply(all_weights, file["inputs"])
        labelled = file["labels"] != -100
        targets = np.where(labelled, file["labels"], 0)[..., None]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), targets, axis=-1)[..., 0]
        return -(chosen * labelled).sum() / labelled.sum(), logits

    @jit
    def step(trained: Any, state: Any) -> Any:
        value, gradients = jax.value_and_grad(loss, has_aux=True)(trained | fixed)
        updates, state = optimizer.update({k: gradients[k] for k in trained}, state, trained)
        return value, gradients, jax.tree.map(jnp.add, trained, updates), state

    first, losses, state = None, [], optimizer.init(weights)
    for _ in file["adamw_losses"]:
        (value, logits), gradients, weights, state = step(weights, state)
        first = (value, logits, gradients) if first is None else first
        losses.append(value)
    (_, final_logits), *_ = step(weights, state)
    assert first is not None
    value, logits, gradients = first
    expected = file.group("d")
    assert gradients.keys() == expected.keys()
    adamw = {"losses": normwise(jnp.stack(losses), file["adamw_losses"])}
    adamw["final logits"] = normwise(final_logits, file["adamw_final_logits"])
    finals = weights | fixed
    adamw |= {k: normwise(finals[k], v) for k, v in file.group("adamw_final").items()}
    forward = {"logits": normwise(logits, file["logits"]), "loss": normwise(value, file["loss"])}
    return Errors(forward, {k: normwise(v, expected[k]) for k, v in gradients.items()}, adamw)


def errors(name: str) -> Errors:
    """Of any golden file."""
    is_language_model = "logits" in goldens.load(name)
    return language_model_errors(name) if is_language_model else module_errors(name)
