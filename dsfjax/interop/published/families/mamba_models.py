"""Mamba and Falcon-Mamba (arXiv:2312.00752, 2410.05355): S6 in every layer."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax import ops
from dsfjax.core.norms import rms_norm
from dsfjax.core.rows import projected
from dsfjax.interop.published.naming import Definition, Stream, Weights, family, layer
from dsfjax.interop.published.parts import decoder, linear
from dsfjax.interop.published.running import Run
from dsfjax.interop.published.tensor_files import Config


def s6_mixer(
    w: Weights,
    x: Array,
    run: Run,
    *,
    inner: int,
    state: int,
    rank: int,
    width: int,
    bias: bool,
    conv_bias: bool,
    norm_eps: float | None = None,
    norms: tuple[str, str, str] | None = None,
) -> Array:
    """Convolution and SiLU, S6 with Δ, B and C of its output, gate, and the map out.

    Args:
        w: Tensors.
        x: Input (L, d).
        run: The run.
        inner: Channels.
        state: N.
        rank: Of the map to Δ.
        width: Of the convolution.
        bias: Whether the maps in and out have one.
        conv_bias: Whether the convolution has one.
        norm_eps: ε of RMS norms of the low-rank Δ, B and C; None for no norms.
        norms: Names of their weights; None if they have none.
    """
    d, length = x.shape[1], x.shape[0]
    u, z = jnp.split(linear(w.within("in_proj"), x, 2 * inner, bias=bias), 2, axis=1)
    own = w.within("conv1d")
    u = jax.nn.silu(
        run.conv(u, own("weight", inner, 1, width), own("bias", inner) if conv_bias else None)
    )
    parts = jnp.split(linear(w.within("x_proj"), u, rank + 2 * state), [rank, rank + state], axis=1)
    if norm_eps is not None:
        weights = [w(f"{n}.weight", p.shape[1]) for n, p in zip(norms or (), parts, strict=False)]
        weights = weights or [None] * 3
        parts = [rms_norm(p, g, norm_eps) for p, g in zip(parts, weights, strict=True)]
    low, b, c = parts
    dt = w.within("dt_proj")
    y = run.op(
        ops.selective_scan_fn,
        u.T,
        projected(low, dt("weight", inner, rank), axis=1).T,
        -jnp.exp(w("A_log", inner, state).astype(jnp.promote_types(x.dtype, jnp.float32))),
        b.T[None],
        c.T[None],
        w("D", inner),
        delta_bias=dt("bias", inner),
        delta_softplus=True,
    )
    y = y.reshape(length, inner).astype(x.dtype) * jax.nn.silu(z)
    return linear(w.within("out_proj"), y, d, bias=bias)


def _layer(w: Weights, stream: Stream, run: Run, *, eps: float, **own: object) -> Stream:
    x = stream["x"]
    mixed = rms_norm(x, w("norm.weight", x.shape[1]), eps)
    return {"x": x + s6_mixer(w.within("mixer"), mixed, run, **own)}  # type: ignore[arg-type]


@family("mamba", "falcon_mamba")
def mamba(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Definition:
    """Mamba; Falcon-Mamba with RMS norms without weights on Δ, B and C."""
    del shapes
    falcon = config.get("model_type") == "falcon_mamba"
    d = config.size("hidden_size")
    eps = config.positive("layer_norm_epsilon", 1e-5)
    config.only("hidden_act", "silu")
    config.ignore(
        *(
            "expand",
            "use_associative_scan",
            "use_mambapy",
            "residual_in_fp32",
            "use_falcon_mambapy",
        ),
        *("rescale_prenorm_residual", "time_step_floor", "time_step_init_scheme", "time_step_max"),
        *("time_step_min", "time_step_scale"),
    )
    automatic = config.get("time_step_rank") == "auto"
    own = {
        "inner": config.size("intermediate_size", config.size("expand", 2) * d),
        "state": config.size("state_size"),
        "rank": -(-d // 16) if automatic else config.size("time_step_rank"),
        "width": config.size("conv_kernel"),
        "bias": config.flag("use_bias", False),
        "conv_bias": config.flag("use_conv_bias", True),
    }
    if falcon:
        own["norm_eps"] = config.positive("mixer_rms_eps", 1e-6)
    return decoder(
        config,
        (
            layer(_layer, f"backbone.layers.{i}.", eps=eps, **own)
            for i in range(config.count("num_hidden_layers"))
        ),
        eps=eps,
        tied=not falcon,
        embeddings="backbone.embeddings.weight",
        norm="backbone.norm_f.weight",
    )
