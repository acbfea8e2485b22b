r"""What an intervention does to the output, exactly, in two ways.

By running the changed system again; and through the kernel Φ, without any recurrence: outputs are
linear in what is written,

.. math:: y_t = \frac{1}{η_t} C_t \sum_{s \le t} A_t \cdots A_{s+1} \, w_s + D_t u_t, \qquad
   w_s = B_s u_s,

so that a change δ of the write w_s changes y_t by C_t A_t ⋯ A_{s+1} δ / η_t and nothing else.
`effect` gives both for any change, `response` a column of Φ for a change of one write.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Shaped

from dsfjax._util.jitted import jitted
from dsfjax.analysis.normalizer import normalizers
from dsfjax.analysis.positions import Number, checked_step
from dsfjax.core import (
    DenseInput,
    InputMap,
    KernelSystem,
    KVCache,
    System,
    steps,
)
from dsfjax.engines import scan
from dsfjax.engines.nonlinear import EntryInput


class Effect(NamedTuple):
    """What an intervention changes, found in two ways that agree to rounding.

    Attributes:
        through_kernel: Change of the outputs as Φ' w' − Φ w, (L, d_out), or of what ``readout``
            makes of them.
        by_running: The same by running the recurrence of both systems.
    """

    through_kernel: Array
    by_running: Array


@jitted(functions=("readout",))
def effect(
    system: System | KernelSystem,
    u: Shaped[Array, "L d"],
    changed: System | KernelSystem | None = None,
    changed_u: Shaped[Array, "L e"] | None = None,
    *,
    h0: Array | KVCache | None = None,
    changed_h0: Array | KVCache | None = None,
    readout: Callable[[Array], Array] | None = None,
) -> Effect:
    r"""The change of outputs, or logits, under an intervention: through Φ and by running again.

    .. math:: Δ_t = r(y'_t) - r(y_t)

    Args:
        system: The system of one sequence; batches come from `jax.vmap`.
        u: Its tokens (L, d).
        changed: The changed system; by default the same one.
        changed_u: The changed tokens; by default the same ones.
        h0: State before the first step of both, as of `dsfjax.scan`; by default zero.
        changed_h0: State before the first step of the changed one; by default ``h0``.
        readout: r, from outputs (L, d_out) to logits, such as ``lambda y: y @ W``; by default y.

    Returns:
        An `Effect`.

    Raises:
        ValueError: If shapes do not fit.

    Numerics:
        Through Φ O(L²) work, as of ``method="materialized"``; by running as of ``method="auto"``.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5]])))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 1))
        >>> u = jnp.array([[8.0], [1.0], [1.0]])
        >>> found = effect(s, u, dsfjax.analysis.scale_write(s, 0, 0.0, length=3))
        >>> found.through_kernel[:, 0].tolist(), found.by_running[:, 0].tolist()
        ([-8.0, -4.0, -2.0], [-8.0, -4.0, -2.0])
    """
    changed = system if changed is None else changed
    changed_u = u if changed_u is None else changed_u
    changed_h0 = h0 if changed_h0 is None else changed_h0

    def change(method: str) -> Array:
        before = scan(system, u, h0, method=method)[0]
        after = scan(changed, changed_u, changed_h0, method=method)[0]
        return after - before if readout is None else readout(after) - readout(before)

    return Effect(change("materialized"), change("auto"))


def response(
    system: System, step: Number, change: Inexact[Array, "H n p"], *, length: int | None = None
) -> Float[Array, "L d_out"]:
    r"""What a change δ of one write does to all outputs: one column of the kernel.

    .. math:: Δ_t = \frac{1}{η_t} C_t A_t \cdots A_{s+1} \, δ \quad (t \ge s), \qquad Δ_t = 0
       \quad (t < s).

    A change of the state after step s is the same thing. The normaliser stays as it is, and so does
    what its bonus (RWKV-4) adds to the output of the step itself, which is no write.

    Args:
        system: A system of one sequence.
        step: s, which may be traced.
        change: δ, added to what is written at s, (H, n, p): see `written`.
        length: L, needed only if nothing in the system varies in time.

    Returns:
        Change of the outputs (L, d_out), to be multiplied by a linear readout for logits.

    Raises:
        ValueError: If shapes do not fit, or for a step that is not there.

    Numerics:
        One `scan`, O(L N) work.

    References:
        The closed form that arXiv:2605.12770 uses for one layer of a gated delta rule.

    Example:
        >>> import dsfjax
        >>> A = dsfjax.Scalar(jnp.log(jnp.array([[0.5]])))
        >>> s = dsfjax.System(A, dsfjax.OuterInput(), dsfjax.InnerOutput(), state_shape=(1, 1, 1))
        >>> response(s, 1, jnp.ones((1, 1, 1)), length=4)[:, 0].tolist()
        [0.0, 1.0, 0.5, 0.25]
    """
    length = steps(system, length, owner="response")
    if change.shape != system.state_shape:
        raise ValueError(
            f"response: expected a change of shape {system.state_shape}, what one step writes, got "
            f"{change.shape}."
        )
    return _response(system, checked_step("response", step, length), change, length)


@jitted("length")
def _response(system: System, step: Number, change: Array, length: int) -> Array:
    C, shape = system.C, system.state_shape
    if system.eta is not None:
        log, sign = normalizers(system, length=length)
        inverse = jnp.exp(-log) if sign is None else sign * jnp.exp(-log)
        C = C.rescale(inverse, shape, vectors=False)
    at = (jnp.arange(length) == step)[:, None]

    def answer(B: InputMap, part: Array) -> Array:
        plain = System(system.A, B, C, reset=system.reset, state_shape=shape, length=length)
        return scan(plain, jnp.where(at, part.astype(system.real_dtype).reshape(1, -1), 0))[0]

    if not jnp.iscomplexobj(change):
        return answer(EntryInput(), change)
    # Tokens are real: the imaginary part is written by a map of its own.
    turned = DenseInput(1j * jnp.eye(system.num_states, dtype=system.dtype)[None])
    return answer(EntryInput(), change.real) + answer(turned, change.imag)
