r"""The momentum delta rule: the correction is averaged over time before it is made."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from dsfjax.core import InnerOutput, OuterInput, System, Transition, l2norm, pytree
from dsfjax.ops.batch import flat, run, scaled, times, wide
from dsfjax.ops.op import Assembled, op


@pytree
class Momentum(Transition):
    r"""The transition of the state (S, M) of a delta rule with momentum.

    .. math:: M_t = μ M_{t-1} + k p^\top S_{t-1}, \quad S_t = α S_{t-1} - β M_t .

    Attributes:
        alpha: α (T, H).
        mu: μ (T, H).
        beta: β (T, H).
        k: (T, H, K).
        p: (T, H, K).
    """

    alpha: Array
    mu: Array
    beta: Array
    k: Array
    p: Array

    @property
    def dtype(self) -> Any:
        """Dtype of A_t."""
        return self.alpha.dtype

    def matrix(self) -> Array:
        """A_t of every step and head, (T, H, 2K, 2K)."""
        n = 2 * self.k.shape[-1]
        eye = jnp.eye(n, dtype=self.dtype)[None, None]
        return self.apply(jnp.broadcast_to(eye, (*self.alpha.shape, n, n)))

    def apply(self, h: Array, precision: str = "highest") -> Array:
        """A_t h_t in O(K p) per head and step; no matrix is formed."""
        alpha, mu, beta, k, p = (
            x.reshape(*x.shape[:2], -1, 1).astype(h.dtype)
            for x in (self.alpha, self.mu, self.beta, self.k, self.p)
        )
        S, M = jnp.split(h, 2, axis=-2)
        M = mu * M + k * jnp.matmul(p.swapaxes(-1, -2), S, precision=precision)
        return jnp.concatenate([alpha * S - beta * M, M], axis=-2)


def _momentum_delta_rule(
    q: Array,
    k: Array,
    v: Array,
    log_alpha: Array,
    log_mu: Array,
    p: Array | None = None,
    beta: Array | None = None,
    eta: Array | None = None,
    scale: float | None = None,
    use_qk_l2norm_in_kernel: bool = True,
    use_p_times_alpha: bool = True,
    *,
    reset: Array | None = None,
) -> Assembled:
    p = k if p is None else p
    if use_qk_l2norm_in_kernel:
        q, k, p = l2norm(q), l2norm(k), l2norm(p)
    alpha, mu = jnp.exp(wide(log_alpha)), jnp.exp(wide(log_mu))
    beta = jnp.ones_like(alpha) if beta is None else wide(beta)
    k = k if eta is None else times(k, wide(eta)[..., None])
    p = times(p, alpha[..., None]) if use_p_times_alpha else p
    length, heads, n = k.shape
    system = System(
        Momentum(alpha, mu, beta, k, p),
        OuterInput(jnp.concatenate([times(k, beta[..., None]), -k], axis=-1)),
        InnerOutput(jnp.concatenate([scaled(q, scale), jnp.zeros_like(q)], axis=-1)),
        reset=reset,
        state_shape=(heads, 2 * n, v.shape[2]),
        length=length,
    )
    return Assembled(system, flat(v))


@op(_momentum_delta_rule, "fla.ops.momentum_delta_rule", "fused_recurrent_momentum_delta_rule")
def chunk_momentum_delta_rule(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    log_alpha: Float[Array, "B T H"],
    log_mu: Float[Array, "B T H"],
    p: Float[Array, "B T H K"] | None = None,
    beta: Float[Array, "B T H"] | None = None,
    eta: Float[Array, "B T H"] | None = None,
    scale: float | None = None,
    initial_state: Float[Array, "2 B H K V"] | None = None,
    output_final_state: bool = False,
    *,
    use_qk_l2norm_in_kernel: bool = True,
    use_p_times_alpha: bool = True,
) -> tuple[Array, Array | None]:
    r"""The delta rule with momentum.

    .. math:: M_t = μ_t M_{t-1} + η_t k_t (p_t^\top S_{t-1} - v_t^\top), \quad
              S_t = α_t S_{t-1} - β_t M_t, \quad y_t = s\, S_t^\top q_t .

    The state of the System is (S, M), n = 2K: A is `Momentum`, B = (β η k, −η k), C = (s q, 0), D =
    0. It takes no packed sequences, as the peer.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        log_alpha: log α, the decay of S.
        log_mu: log μ, the decay of the momentum.
        p: What reads the state to be corrected, by default k.
        beta: β, the size of a correction, by default 1.
        eta: η, what a correction adds to the momentum, by default 1.
        scale: s, by default K^(-1/2).
        initial_state: S and M.
        output_final_state: Whether to return the state at the end.
        use_qk_l2norm_in_kernel: Whether q, k and p are brought to unit length.
        use_p_times_alpha: Whether p is multiplied by α.

    Returns:
        ``(o, final_state)``: o [B, T, H, V]; S and M [2, B, H, K, V] at least float32, or None.
    """
    states = initial_state
    o, last = run(
        partial(
            _momentum_delta_rule,
            scale=scale,
            use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
            use_p_times_alpha=use_p_times_alpha,
        ),
        (q, k, v, log_alpha, log_mu, p, beta, eta),
        v.shape,
        initial_state=None if states is None else jnp.concatenate([states[0], states[1]], axis=-2),
        output_final_state=output_final_state,
    )
    return o, None if last is None else jnp.stack(jnp.split(last, 2, axis=-2))


fused_recurrent_momentum_delta_rule = chunk_momentum_delta_rule
