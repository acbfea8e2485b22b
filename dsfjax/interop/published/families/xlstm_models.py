"""xLSTM-7B (arXiv:2503.13427): mLSTM, a matrix memory with exponential gates, in every layer."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core.dtypes import state_dtype
from dsfjax.core.norms import layer_norm, rms_norm
from dsfjax.interop.published.naming import Definition, Stream, Weights, family, layer
from dsfjax.interop.published.parts import decoder, linear, soft_cap
from dsfjax.interop.published.running import Run
from dsfjax.interop.published.tensor_files import Config
from dsfjax.ops.mlstm_kernels import matrix_memory


def _norm(w: Weights, x: Array, eps: float, bias: bool) -> Array:
    y = rms_norm(x, w("weight", x.shape[1]), eps)
    return y + w("bias", x.shape[1]) if bias else y


def _mlstm(
    w: Weights,
    x: Array,
    run: Run,
    *,
    heads: int,
    key: int,
    value: int,
    bias: bool,
    fused: bool,
    cap: float | None,
    norm_eps: float,
    eps: float,
) -> Array:
    length, wide = x.shape[0], state_dtype(x.dtype)
    if fused:
        cuts = [key, 2 * key, 2 * key + value]
        joint = linear(w.within("qkv_opreact"), x, 2 * key + 2 * value, bias=bias)
        q, k, v, o = jnp.split(joint, cuts, axis=1)
        i, f = jnp.split(linear(w.within("ifgate_preact"), x, 2 * heads, bias=True), 2, axis=1)
    else:
        q, k, v, o = (
            linear(w.within(name), x, size, bias=bias)
            for name, size in (("q", key), ("k", key), ("v", value), ("ogate_preact", value))
        )
        i, f = (linear(w.within(f"{n}gate_preact"), x, heads, bias=True) for n in "if")
    i, f = (soft_cap(gate.astype(wide), cap) for gate in (i, f))
    q, k, v = (part.reshape(length, heads, -1) for part in (q, k, v))
    y = _read(run, q, k, v, i, f, eps)
    shift = w("multihead_norm.bias", value).reshape(heads, -1) if bias else None
    y = layer_norm(y, w("multihead_norm.weight", value).reshape(heads, -1), shift, norm_eps)
    y = jax.nn.sigmoid(o) * y.reshape(length, value).astype(x.dtype)
    return linear(w.within("out_proj"), y, x.shape[1], bias=bias)


def _read(run: Run, q: Array, k: Array, v: Array, log_i: Array, f: Array, eps: float) -> Array:
    """What the memory gives to the queries, (L, H, p), at least float32."""
    log_f = jax.nn.log_sigmoid(f)
    # m starts at 0 in every document, which only the ε of the normaliser sees. So it is at least
    # log f at the first step, and the key is scaled down by as much as the gate is raised.
    raised = jnp.where(run.starts[:, None], jnp.maximum(log_i, log_f), log_i)
    k = k.astype(log_i.dtype) * jnp.exp(log_i - raised)[..., None]
    m = run.recall("log_scale", jnp.zeros(q.shape[1], log_i.dtype))
    system, m = matrix_memory(
        *(q, k, log_f, raised, m, eps), num_channels=v.shape[2], reset=run.reset
    )
    run.leave("log_scale", m)
    return run.scan(system, v.reshape(v.shape[0], -1)).astype(log_i.dtype).reshape(v.shape)


def _layer(
    w: Weights,
    stream: Stream,
    run: Run,
    *,
    heads: int,
    key: int,
    value: int,
    bias: bool,
    fused: bool,
    cap: float | None,
    norm_eps: float,
    eps: float,
    mlp: int,
) -> Stream:
    x, own = stream["x"], w.within("ffn")
    d = x.shape[1]
    x = x + _mlstm(
        w.within("mlstm_layer"),
        _norm(w.within("norm_mlstm"), x, norm_eps, bias),
        run,
        heads=heads,
        key=key,
        value=value,
        bias=bias,
        fused=fused,
        cap=cap,
        norm_eps=norm_eps,
        eps=eps,
    )
    mixed = _norm(w.within("norm_ffn"), x, norm_eps, bias)
    if fused:
        gate, up = jnp.split(linear(own.within("proj_up_gate_z"), mixed, 2 * mlp, bias=bias), 2, 1)
    else:
        gate, up = (
            linear(own.within(n), mixed, mlp, bias=bias) for n in ("proj_up_gate", "proj_up")
        )
    y = linear(own.within("proj_down"), jax.nn.silu(gate) * up, d, bias=bias)
    return {"x": x + y}


@family("xlstm")
def xlstm(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Definition:
    """xLSTM, with maps of their own or joint ones (weight_mode)."""
    del shapes
    d = _either(config, "hidden_size", "embedding_dim")
    count = _either(config, "num_hidden_layers", "num_blocks")
    config.only("add_out_norm", True)
    config.ignore("autocast_kernel_dtype", "chunk_size", "chunkwise_kernel", "mode")
    config.ignore("inference_state_dtype", "max_inference_chunksize", "return_last_states")
    config.ignore("norm_reduction_force_float32", "sequence_kernel", "step_kernel")
    multiple = config.size("ffn_round_up_to_multiple_of", 64)
    wanted = config.scaled("ffn_proj_factor", "hidden_size", d, 2.667)
    norm_eps = config.positive("norm_eps", 1e-6)
    own = {
        "heads": config.size("num_heads", 8),
        "key": int(config.scaled("qk_dim_factor", "hidden_size", d, 0.5)),
        "value": int(config.scaled("v_dim_factor", "hidden_size", d, 1.0)),
        "bias": config.flag("use_bias", False),
        "fused": config.word("weight_mode", ("single", "fused"), "single") == "fused",
        "cap": config.positive("gate_soft_cap", 15.0),
        "norm_eps": norm_eps,
        "eps": config.positive("eps", 1e-6),
        "mlp": int((wanted + multiple - 1) // multiple * multiple),
    }
    return decoder(
        config,
        (layer(_layer, f"backbone.blocks.{i}.", **own) for i in range(count)),
        eps=norm_eps,
        width=d,
        embeddings="backbone.embeddings.weight",
        norm="backbone.out_norm.weight",
        cap=config.positive("output_logit_soft_cap", 30.0),
    )


def _either(config: Config, name: str, other: str) -> int:
    """A size that the config has under two names."""
    found = config.size(name if config.get(name) is not None else other)
    config.follows(other, found, name)
    return found
