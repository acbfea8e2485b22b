"""mamba_ssm, causal-conv1d, mlstm_kernels: packed sequences, rows of states, and their Systems."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import ops, scan
from tests.engine_runs import COMPILE_FAST
from tests.reference_loop import error

T, H, G, P, N, S = 7, 2, 1, 3, 4, 1
CU = np.array([0, 3, 3, 7])
ROW = jax.Array


def draw(*shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape))


def silu(x: Any) -> np.ndarray:
    return np.asarray(x) / (1 + np.exp(-np.asarray(x)))


def softplus(x: Any) -> np.ndarray:
    return np.log1p(np.exp(np.asarray(x)))


def compiled(function: Callable[..., Any], *arguments: Any) -> Any:
    return jax.jit(function, compiler_options=COMPILE_FAST)(*arguments)


SISO = dict(
    Q=draw(1, T, G, N),
    K=draw(2, T, G, N)[:1],
    V=draw(1, T, H, P),
    ADT=-jnp.abs(draw(1, H, T)),
    DT=jnp.abs(draw(1, H, T + 1)[..., 1:]),
    Trap=draw(1, H, T + 2)[..., 2:],
    Q_bias=draw(H, N),
    K_bias=draw(H, N + 1)[:, 1:],
    Angles=draw(1, T, H, S),
    D=draw(H),
)
MIMO = {
    **SISO,
    "Q": draw(1, T, 2, G, N),
    "K": draw(1, T, 2, G, N + 1)[..., 1:],
    "Q_bias": draw(H, 2, N),
    "K_bias": draw(H, 2, N + 1)[..., 1:],
    "MIMO_V": draw(H, 2, P),
    "MIMO_Z": draw(H, 2, P + 1)[..., 1:],
    "MIMO_Out": draw(H, 2, P + 2)[..., 2:],
    "Z": draw(1, T, H, P + 1)[..., 1:],
}
MEMORY: Any = (*(draw(1, H, T, 2),) * 3, *(draw(1, H, T),) * 2)
IN_TIME = {"Q": 1, "K": 1, "V": 1, "Z": 1, "Angles": 1, "ADT": 2, "DT": 2, "Trap": 2}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["siso", "mimo"])
def test_packed_mamba_3_is_its_sequences(name: str) -> None:
    """With states that enter; the second sequence is empty and gives them back."""
    op: Any = ops.mamba3_siso_combined if name == "siso" else ops.mamba3_mimo
    arrays, rank = (SISO, ()) if name == "siso" else (MIMO, (2,))
    want = {"return_final_states" if name == "siso" else "return_state": True}
    k = draw(3, *rank, H, N)
    states = jnp.abs(draw(3, H, S)), draw(3, H, P, N), k, draw(3, H, P)

    def both(arrays: Any, states: Any) -> Any:
        packed = op(**arrays, Input_States=states, cu_seqlens=CU, **want)
        apart = []
        for i in (0, 2):
            cut = {
                key: jnp.moveaxis(
                    jnp.moveaxis(x, IN_TIME[key], 0)[CU[i] : CU[i + 1]], 0, IN_TIME[key]
                )
                if key in IN_TIME
                else x
                for key, x in arrays.items()
            }
            entering = jax.tree.map(lambda x: x[i : i + 1], states)  # noqa: B023
            apart.append(op(**cut, Input_States=entering, **want))
        return packed, apart

    (y, *after), (first, last) = compiled(both, arrays, states)
    assert error(y, jnp.concatenate([first[0], last[0]], axis=1)) < 1e-13
    for found, before, a, c in zip(after, states, first[1:], last[1:], strict=True):
        assert error(found[0], a[0]) < 1e-13
        assert error(found[1], before[1]) < 1e-13
        assert error(found[2], c[0]) < 1e-13


def of_row(arrays: dict[str, Any], *fixed: str) -> dict[str, Any]:
    return {key: x if key in fixed else x[0] for key, x in arrays.items()}


@pytest.mark.slow
def test_systems_run_to_what_the_ops_return() -> None:
    """Gates, and of MIMO the sum over the outputs, come after."""
    conv = dict(x=draw(1, P, T), weight=draw(P, 4))
    u, delta = draw(1, P, T), jnp.abs(draw(1, P, T + 1)[..., 1:])
    s6 = dict(u=u, delta=delta, A=-jnp.abs(draw(P, N)), B=draw(1, N, T), C=draw(2, N, T)[:1])
    s6 |= dict(D=draw(P))
    q, k, v, i, f = (draw(1, H, T, *x) for x in ((N,), (N,), (P,), (), ()))
    memory = dict(q=q, k=k + 1, v=v, i=9 * i, f=f + 2)
    cases: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
        "causal_conv1d_fn": (conv, ("weight",)),
        "selective_scan_fn": (s6, ("A", "D")),
        "mamba3_siso_combined": (SISO, ("Q_bias", "K_bias", "D")),
        "mlstm": (memory, ()),
        "mlstm_siging": (memory, ()),
    }

    def run(cases: Any) -> Any:
        found = {}
        for name, (arrays, fixed) in cases.items():
            op: Any = getattr(ops, name)
            row = of_row(arrays, *fixed)
            y = scan(op.system(**row), op.tokens(**row))[0]
            found[name] = op(**arrays), y
        return found

    fixed = {name: case[1] for name, case in cases.items()}
    arrays = {name: case[0] for name, case in cases.items()}
    found = compiled(lambda a: run({k: (v, fixed[k]) for k, v in a.items()}), arrays)
    for name, (batch, y) in found.items():
        y = np.asarray(y)
        if name in ("causal_conv1d_fn", "selective_scan_fn"):
            y = y.T
        elif name.startswith("mlstm"):
            y = y.reshape(T, H, P).swapaxes(0, 1)
        assert error(np.asarray(batch)[0], y.reshape(batch.shape[1:])) < 1e-13, name


def test_mamba_2_after_its_projection_in() -> None:
    """Convolution, SSD, norm over groups, gate and projection out, as loops in NumPy."""
    dim, groups = H * P, 2
    width = dim + 2 * groups * N
    zxbcdt, weight, bias = draw(1, T, dim + width + H), draw(width, 4), draw(width)
    dt_bias, A, D = draw(H), -jnp.abs(draw(H, 1)[:, 0]), draw(H)
    norm, out = draw(dim), draw(5, dim)
    ids = jnp.array([[0, 0, 0, 1, 1, 1, 1]])

    def both(zxbcdt: Any) -> Any:
        given: Any = dict(chunk_size=64, seq_idx=ids, headdim=P, ngroups=groups)
        parts = zxbcdt, weight, bias, dt_bias, A, D
        plain, state = ops.mamba_split_conv1d_scan_combined(
            *parts, return_final_states=True, **given
        )
        given |= dict(rmsnorm_weight=norm, outproj_weight=out)
        before, after = (
            ops.mamba_split_conv1d_scan_combined(*parts, norm_before_gate=x, **given)
            for x in (True, False)
        )
        return plain, state, before, after

    plain, state, before, after = compiled(both, zxbcdt)
    z, xBC, dt = np.split(np.asarray(zxbcdt[0]), [dim, dim + width], axis=1)
    y, s = np.zeros((T, dim)), np.zeros((H, P, N))
    for t in range(T):
        begin = 0 if t < 3 else 3
        if t == begin:
            s = np.zeros_like(s)
        row = np.asarray(bias) + sum(
            np.asarray(weight)[:, 3 - j] * xBC[t - j] for j in range(4) if t - j >= begin
        )
        x, B, C = np.split(silu(row), [dim, dim + groups * N])
        for h in range(H):
            step = softplus(dt[t, h] + dt_bias[h])
            b, c = (v.reshape(groups, N)[h // (H // groups)] for v in (B, C))
            xh = x.reshape(H, P)[h]
            s[h] = np.exp(step * A[h]) * s[h] + step * np.outer(xh, b)
            y[t, h * P : (h + 1) * P] = s[h] @ c + D[h] * xh

    def normed(y: np.ndarray) -> np.ndarray:
        parts = y.reshape(T, groups, -1)
        parts = parts / np.sqrt((parts**2).mean(axis=2, keepdims=True) + 1e-6)
        return parts.reshape(T, dim) * np.asarray(norm)

    assert error(plain[0], y * silu(z)) < 1e-13
    assert error(state[0], s) < 1e-13
    assert error(before[0], (normed(y) * silu(z)) @ np.asarray(out).T) < 1e-13
    assert error(after[0], normed(y * silu(z)) @ np.asarray(out).T) < 1e-13


@pytest.mark.slow
def test_rows_of_a_cache() -> None:
    """States of some rows of a larger cache: the others stay as they are."""
    rows, cache = jnp.array([2, 0]), draw(4, P, N)
    x, dt, A, B, C = draw(2, P), draw(2, P), -jnp.abs(draw(P, N)), draw(2, N), draw(3, N)[:2]
    conv, weight = draw(4, P, 3), draw(P, 4)

    def both(cache: Any, conv: Any) -> Any:
        y, new = ops.selective_state_update(cache, x, dt, A, B, C, state_batch_indices=rows)
        alone = ops.selective_state_update(cache[rows], x, dt, A, B, C)
        y_conv, conv_new = ops.causal_conv1d_update(x, conv, weight, conv_state_indices=rows)
        conv_alone = ops.causal_conv1d_update(x, conv[rows], weight)
        return (y, new, *alone), (y_conv, conv_new, *conv_alone)

    for (y, new, y_alone, alone), old in zip(
        compiled(both, cache, conv), (cache, conv), strict=True
    ):
        assert error(y, y_alone) < 1e-14
        assert error(new[rows], alone) < 1e-14
        assert (new[jnp.array([1, 3])] == old[jnp.array([1, 3])]).all()


@pytest.mark.slow
def test_input_gates_that_would_overflow() -> None:
    q, k, v = (draw(1, 1, T, n) for n in (N, N + 1, P))
    i = jnp.array([[[0.0, 900.0, -900.0, 800.0, 1000.0, 0.0, 5.0]]])
    y: Any = ops.mlstm(q, k[..., 1:], v, i, jnp.full((1, 1, T), 3.0))
    assert np.isfinite(y).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: ops.causal_conv1d_fn(
                draw(1, P, T), draw(P, 4), None, jnp.zeros((1, T), int), draw(1, P, 3)
            ),
            "no initial or final states next to seq_idx",
        ),
        (
            lambda: ops.mamba_chunk_scan_combined(
                *(draw(1, T, H, P), draw(1, T, H), draw(H), draw(1, T, 1, N), draw(1, T, 1, N)),
                return_varlen_states=True,
            ),
            "expected cu_seqlens and a batch of 1",
        ),
        (
            lambda: ops.ssd_minimal_discrete(
                draw(1, T, H, P), draw(1, T, H), draw(1, T, H, N), draw(1, T, H, N), 4
            ),
            "expected block_len to divide T = 7, got 4",
        ),
        (
            lambda: ops.mamba3_siso_combined(**{**SISO, "Angles": draw(1, T, H, 3)}),
            r"Angles of at most N / 2 = 2 pairs, got 3",
        ),
        (
            lambda: ops.mlstm(*MEMORY, c_initial=draw(1, H, 2, 2)),
            "c_initial and n_initial together",
        ),
    ],
)
def test_what_cannot_be_is_refused(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_unknown_flags_are_named() -> None:
    wrong: Any = {"disable_state_passing": True}
    with pytest.raises(TypeError, match="selective_scan_fn: unknown argument 'disable_state"):
        ops.selective_scan_fn(
            draw(1, P, T), draw(1, P, T), draw(P, N), draw(P, N), draw(P, N), **wrong
        )
    assert math.isinf(ops.mamba_chunk_scan_combined._signature.parameters["dt_limit"].default[1])
