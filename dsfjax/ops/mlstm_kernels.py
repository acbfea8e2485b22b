r"""mLSTM, the matrix memory of xLSTM, as mlstm_kernels has it: heads before time.

With an exponential input gate states are kept in coordinates that are scaled by e^{−m_t}, where

.. math:: m_t = \max(\log σ(f_t) + m_{t-1}, i_t),

so that nothing overflows: there A = σ(f) e^{m_{t−1} − m_t} and B = e^{i − m_t} k are at most 1, and
the floor 1 of the normaliser is e^{−m_t}.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from dsfjax.core import InnerOutput, OuterInput, Scalar, SummedNormalizer, System, stabilized
from dsfjax.engines import scan
from dsfjax.ops.batch import flat, scaled, wide
from dsfjax.ops.op import Assembled, op


def matrix_memory(
    q: Array,
    k: Array,
    log_f: Array,
    log_i: Array,
    m: Array,
    eps: float,
    *,
    num_channels: int,
    reset: Array | None = None,
) -> tuple[System, Array]:
    """The System of one sequence, time first, in coordinates e^{m_t}, and the last m.

    Args:
        q: Queries (T, H, K).
        k: Keys (T, H, K).
        log_f: Log forget gate (T, H).
        log_i: Log input gate (T, H).
        m: m before the first step, (H,).
        eps: ε of the normaliser.
        num_channels: V, the width of a value.
        reset: Boolean (T,) or None.
    """
    gates = stabilized(log_f, log_i, reset=reset, before=m.astype(log_i.dtype))
    # The gate goes to the keys: numerator and normaliser have it both.
    system = System(
        Scalar(gates.log_a),
        OuterInput(wide(k) * jnp.exp(gates.log_b)[:, :, None]),
        InnerOutput(scaled(q, None)),
        eta=SummedNormalizer(jnp.exp(-gates.log_max), True, eps),
        reset=reset,
        state_shape=(k.shape[1], k.shape[2], num_channels),
        length=q.shape[0],
    )
    return system, gates.log_max[-1]


def _mlstm(
    q: Array,
    k: Array,
    v: Array,
    i: Array,
    f: Array,
    m_initial: Array | None = None,
    eps: float = 1e-6,
    *,
    reset: Array | None = None,
) -> Assembled:
    return _with_maximum(q, k, v, i, f, m_initial, eps, reset=reset)[0]


def _with_maximum(
    q: Array,
    k: Array,
    v: Array,
    i: Array,
    f: Array,
    m_initial: Array | None,
    eps: float,
    *,
    reset: Array | None = None,
) -> tuple[Assembled, Array]:
    """The System of one sequence with heads first, and the last m."""
    q, k, v, i, f = (x.swapaxes(0, 1) for x in (q, k, v, i, f))
    m = jnp.zeros(v.shape[1]) if m_initial is None else m_initial.reshape(v.shape[1])
    log_f, width = jax.nn.log_sigmoid(wide(f)), v.shape[2]
    system, last = matrix_memory(q, k, log_f, wide(i), m, eps, num_channels=width, reset=reset)
    return Assembled(system, flat(v)), last


@op(_mlstm, "mlstm_kernels.torch", "mlstm_chunkwise__native_autograd")
def mlstm(
    q: Float[Array, "B H T K"],
    k: Float[Array, "B H T K"],
    v: Float[Array, "B H T V"],
    i: Float[Array, "B H T"],
    f: Float[Array, "B H T"],
    c_initial: Float[Array, "B H K V"] | None = None,
    n_initial: Float[Array, "B H K"] | None = None,
    m_initial: Float[Array, "B H"] | Float[Array, "B H 1"] | None = None,
    return_last_states: bool = False,
    eps: float = 1e-6,
    chunk_size: int | None = None,
) -> Array | tuple[Array, tuple[Array, Array, Array]]:
    r"""MLSTM with an exponential input gate, heads first.

    .. math:: C_t = σ(f_t) C_{t-1} + e^{i_t} k_t v_t^\top, \quad
              n_t = σ(f_t) n_{t-1} + e^{i_t} k_t, \quad
              y_t = \frac{C_t^\top q_t / \sqrt K}
                         {\max(|n_t^\top q_t| / \sqrt K, 1) + ε e^{m_t}} .

    A = σ(f) I, B = e^i k, C = q / √K, D = 0, η as the denominator; all times e^{−m_t}.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        i: Input gate, its logarithm.
        f: Forget gate, before its sigmoid.
        c_initial: C e^{−m} before the first step; by default 0.
        n_initial: n e^{−m} before the first step; by default 0.
        m_initial: m before the first step, [B, H] or [B, H, 1]; by default 0.
        return_last_states: Whether to return (C e^{−m}, n e^{−m}, m) at the end.
        eps: ε.
        chunk_size: No number depends on it; the engine chooses its own.

    Returns:
        y [B, H, T, V] in the dtype of v; with ``return_last_states`` also ([B, H, K, V],
        [B, H, K], [B, H, 1]).

    Raises:
        ValueError: If one of ``c_initial`` and ``n_initial`` is given without the other.

    Numerics:
        Input gates of 1,000 and more do not overflow.

    References:
        Beck et al. (2024), arXiv:2405.04517; (2025), arXiv:2503.14376.

    Example:
        >>> one = jnp.ones((1, 1, 3, 1))
        >>> y = mlstm(one, one, one, 0 * one[..., 0], 90 * one[..., 0], eps=0.0)
        >>> y.ravel().tolist()
        [1.0, 1.0, 1.0]
    """
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"mlstm: expected chunk_size >= 1, got {chunk_size}.")
    h0 = _joined("mlstm", c_initial, n_initial)
    m0 = None if m_initial is None else m_initial.reshape(q.shape[:2])

    def one(arrays: Any, m0: Array | None, h0: Array | None) -> tuple[Array, Array, Array]:
        found: Any = _with_maximum(*arrays, m_initial=m0, eps=eps)
        (system, u), m = found
        y, last = scan(system, u, h0)
        return y, last, m

    y, last, m = jax.vmap(one)((q, k, v, i, f), m0, h0)
    y = _heads_first(y, v)
    return (y, (last[..., :-1], last[..., -1], m[..., None])) if return_last_states else y


mlstm_chunkwise__native_autograd = mlstm


def _joined(owner: str, c: Array | None, n: Array | None) -> Array | None:
    """The states as `scan` carries them, with n as one more value channel."""
    if (c is None) != (n is None):
        raise ValueError(f"{owner}: expected c_initial and n_initial together, got one of them.")
    if c is None or n is None:
        return None
    return jnp.concatenate([wide(c), wide(n)[..., None]], axis=-1)


def _heads_first(y: Array, v: Array) -> Array:
    """Outputs (B, T, H·V) as [B, H, T, V]."""
    batch, heads, length, p = v.shape
    return y.reshape(batch, length, heads, p).swapaxes(1, 2).astype(v.dtype)


def _siging(
    q: Array,
    k: Array,
    v: Array,
    i: Array,
    f: Array,
    eps: float = 1e-6,
    normalize: bool = True,
    *,
    reset: Array | None = None,
) -> Assembled:
    q, k, v, i, f = (x.swapaxes(0, 1) for x in (q, k, v, i, f))
    system = System(
        Scalar(jax.nn.log_sigmoid(wide(f))),
        OuterInput(wide(k) * jax.nn.sigmoid(wide(i))[:, :, None]),
        InnerOutput(scaled(q, None)),
        eta=SummedNormalizer(1.0, True, eps) if normalize else None,
        reset=reset,
        state_shape=(v.shape[1], k.shape[2], v.shape[2]),
        length=q.shape[0],
    )
    return Assembled(system, flat(v))


@op(_siging, "mlstm_kernels.torch", "mlstm_siging_chunkwise__xl_chunk")
def mlstm_siging(
    q: Float[Array, "B H T K"],
    k: Float[Array, "B H T K"],
    v: Float[Array, "B H T V"],
    i: Float[Array, "B H T"],
    f: Float[Array, "B H T"],
    *,
    c_initial: Float[Array, "B H K V"] | None = None,
    n_initial: Float[Array, "B H K"] | None = None,
    return_last_states: bool = False,
    eps: float = 1e-6,
    normalize: bool = True,
) -> Array | tuple[Array, tuple[Array, Array]]:
    r"""MLSTM with a sigmoid as its input gate, heads first.

    .. math:: C_t = σ(f_t) C_{t-1} + σ(i_t) k_t v_t^\top, \quad
              y_t = \frac{C_t^\top q_t / \sqrt K}{\max(|n_t^\top q_t| / \sqrt K, 1) + ε} .

    A = σ(f) I, B = σ(i) k, C = q / √K, D = 0, η as the denominator (1 without ``normalize``).

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        i: Input gate, before its sigmoid.
        f: Forget gate, before its sigmoid.
        c_initial: C before the first step; by default 0.
        n_initial: n before the first step; by default 0.
        return_last_states: Whether to return (C, n) at the end, next to ``normalize``.
        eps: ε.
        normalize: Whether to divide.

    Returns:
        y [B, H, T, V] in the dtype of v; with ``return_last_states`` also ([B, H, K, V],
        [B, H, K]).

    Raises:
        ValueError: If one of ``c_initial`` and ``n_initial`` is given without the other, or states
            without ``normalize``.

    References:
        Beck et al. (2025), arXiv:2503.14376.
    """
    given = c_initial is not None or n_initial is not None
    if not normalize and (given or return_last_states):
        raise ValueError("mlstm_siging: expected no states without normalize, which keeps no n.")
    h0 = _joined("mlstm_siging", c_initial, n_initial)

    def one(arrays: Any, h0: Array | None) -> tuple[Array, Array]:
        return scan(*_siging(*arrays, eps=eps, normalize=normalize), h0)

    y, last = jax.vmap(one)((q, k, v, i, f), h0)
    y = _heads_first(y, v)
    return (y, (last[..., :-1], last[..., -1])) if return_last_states else y


mlstm_siging_chunkwise__xl_chunk = mlstm_siging
