"""Mamba-2 from the input projection on, as one function: split, convolve, scan, gate."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from dsfjax.core.norms import rms_norm
from dsfjax.core.rows import projected
from dsfjax.ops.batch import wide
from dsfjax.ops.conv import Activation, causal_conv1d_fn
from dsfjax.ops.mamba_ssm import check_state_dtype, gated, mamba_chunk_scan_combined, ssd_system
from dsfjax.ops.op import Assembled, op


def _split(zxbcdt: Array, weight: Array, heads: int, dim: int) -> tuple[Array, Array, Array]:
    """z, what is convolved and Δ of a joint projection, along its last axis."""
    if zxbcdt.shape[-1] != dim + weight.shape[0] + heads:
        raise ValueError(
            "mamba_split_conv1d_scan_combined: expected zxbcdt of width z, x, B, C, dt = "
            f"{dim + weight.shape[0] + heads}, got {zxbcdt.shape[-1]}; a part beside the SSM "
            "(d_nonssm) is not there."
        )
    z, xBC, dt = jnp.split(zxbcdt, [dim, dim + weight.shape[0]], axis=-1)
    return z, xBC, dt


def _split_scan(
    zxbcdt: Array,
    conv1d_weight: Array,
    conv1d_bias: Array | None,
    dt_bias: Array,
    A: Array,
    D: Array,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    activation: Activation = "silu",
    headdim: int | None = None,
    ngroups: int = 1,
) -> Assembled:
    """The System between convolution and gate, of one sequence."""
    heads, p = _heads(D, headdim)
    _, xBC, dt = _split(zxbcdt, conv1d_weight, heads, heads * p)
    xBC: Any = causal_conv1d_fn(xBC.T[None], conv1d_weight, conv1d_bias, activation=activation)
    x, B, C = _three(xBC[0].T, heads, p, ngroups)
    return ssd_system(x, dt, A, B, C, D, dt_bias, True, dt_limit)


def _heads(D: Array, headdim: int | None) -> tuple[int, int]:
    if D.ndim == 2:
        return D.shape[0], D.shape[1]
    if headdim is None:
        raise ValueError(
            "mamba_split_conv1d_scan_combined: expected headdim with a D of shape [H], got None."
        )
    return D.shape[0], headdim


def _three(xBC: Array, heads: int, p: int, groups: int) -> tuple[Array, Array, Array]:
    """X [..., H, P], B and C [..., G, N] of what was convolved."""
    rest, odd = divmod(xBC.shape[-1] - heads * p, 2)
    if odd or rest < 0 or groups < 1 or rest % groups:
        raise ValueError(
            "mamba_split_conv1d_scan_combined: expected conv1d_weight of H P + 2 G N = "
            f"{heads * p} + 2 · {groups} N channels, got {xBC.shape[-1]}."
        )
    x, B, C = jnp.split(xBC, [heads * p, heads * p + rest], axis=-1)
    B, C = (v.reshape(*v.shape[:-1], groups, -1) for v in (B, C))
    return x.reshape(*x.shape[:-1], heads, p), B, C


@op(_split_scan, "mamba_ssm.ops.triton.ssd_combined")
def mamba_split_conv1d_scan_combined(
    zxbcdt: Float[Array, "B T E"],
    conv1d_weight: Float[Array, "F W"],
    conv1d_bias: Float[Array, " F"] | None,
    dt_bias: Float[Array, " H"],
    A: Float[Array, " H"],
    D: Float[Array, " H"] | Float[Array, "H P"],
    chunk_size: int | None = None,
    initial_states: Float[Array, "B H P N"] | None = None,
    seq_idx: Int[Array, "B T"] | None = None,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    return_final_states: bool = False,
    activation: Activation = "silu",
    rmsnorm_weight: Float[Array, " _"] | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Float[Array, "_ _"] | None = None,
    outproj_bias: Float[Array, " _"] | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
    state_dtype: DTypeLike | None = None,
) -> Array | tuple[Array, Array]:
    r"""A Mamba-2 mixer after its projection in: convolution, SSD, gate, norm, projection out.

    .. math:: [z, x, B, C, Δ] = \mathrm{zxbcdt}, \quad [x, B, C] \leftarrow f(\mathrm{conv}(·)),
              \quad y = W \, \mathrm{norm}(\mathrm{SSD}(x, Δ, A, B, C, D), z) .

    Args:
        zxbcdt: The joint projection, of width 2 H P + 2 G N + H.
        conv1d_weight: Taps of the F = H P + 2 G N channels x, B, C.
        conv1d_bias: Their bias.
        dt_bias: Added to Δ, before its softplus.
        A: Rate of every head, negative.
        D: Skip [H] or [H, P].
        chunk_size: No number depends on it; the engine chooses its own.
        initial_states: Of the SSD, [B, H, P, N].
        seq_idx: Documents of each row, from 0 on, for convolution and SSD.
        dt_limit: Between which Δ is clipped.
        return_final_states: Whether to return the state of the SSD.
        activation: f, "silu", "swish" or None.
        rmsnorm_weight: Of an RMS norm over each of the G groups of H P / G channels; None for none.
        rmsnorm_eps: Its ε.
        outproj_weight: W [out, H P]; None for none.
        outproj_bias: Its bias.
        headdim: P, needed with a D of shape [H].
        ngroups: G.
        norm_before_gate: Whether norm(y) silu(z), and not norm(y silu(z)); without norm y silu(z).
        state_dtype: That of the states, at least float32; no other is there.

    Returns:
        y [B, T, H P or out]; with ``return_final_states`` also [B, H, P, N].

    Raises:
        ValueError: If shapes do not fit, also for a part beside the SSM (d_nonssm > 0).

    References:
        Dao & Gu (2024), arXiv:2405.21060.
    """
    heads, p = _heads(D, headdim)
    check_state_dtype("mamba_split_conv1d_scan_combined", state_dtype, zxbcdt)
    if outproj_weight is None and outproj_bias is not None:
        raise ValueError(
            "mamba_split_conv1d_scan_combined: expected outproj_weight next to outproj_bias, got "
            "None; give both, or leave the bias out."
        )
    z, xBC, dt = _split(zxbcdt, conv1d_weight, heads, heads * p)
    convolved: Any = causal_conv1d_fn(
        xBC.swapaxes(1, 2), conv1d_weight, conv1d_bias, seq_idx, activation=activation
    )
    x, B, C = _three(convolved.swapaxes(1, 2), heads, p, ngroups)
    own_gate = rmsnorm_weight is None
    y, last = mamba_chunk_scan_combined(
        x,
        dt,
        A,
        B,
        C,
        chunk_size,
        D,
        z.reshape(x.shape) if own_gate else None,
        dt_bias,
        initial_states,
        seq_idx,
        dt_softplus=True,
        dt_limit=dt_limit,
        return_final_states=True,
    )
    y = y.reshape(z.shape)
    if rmsnorm_weight is not None:
        y = y if norm_before_gate else gated(wide(y), z)
        groups = wide(y).reshape(*y.shape[:2], ngroups, -1)
        y = rms_norm(groups, None, rmsnorm_eps).reshape(z.shape)
        y = y * rmsnorm_weight.reshape(1, 1, -1).astype(y.dtype)
        y = (gated(y, z) if norm_before_gate else y).astype(x.dtype)
    if outproj_weight is not None:
        y = projected(y, outproj_weight.astype(y.dtype), axis=1, precision="highest")
        y = y if outproj_bias is None else y + outproj_bias.reshape(1, 1, -1).astype(y.dtype)
    return (y, last) if return_final_states else y
