"""mamba_ssm, causal-conv1d, mlstm_kernels: packed sequences, rows of states, and their Systems."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import ops, scan
from tests.checks import unchecked
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


def ssd(**more: Any) -> Any:
    given = (draw(1, T, H, P), draw(1, T, H), draw(H), draw(1, T, 1, N), draw(1, T, 1, N))
    return ops.mamba_chunk_scan_combined(*given, **more)


def s6(**more: Any) -> Any:
    given: Any = dict(u=draw(1, P, T), delta=draw(1, P, T), A=draw(P, N), B=draw(P, N))
    return ops.selective_scan_fn(**{**given, "C": draw(P, N), **more})


def step(**more: Any) -> Any:
    given: Any = dict(state=draw(2, P, N), x=draw(2, P), dt=draw(2, P), A=-jnp.abs(draw(P, N)))
    return ops.selective_state_update(**{**given, "B": draw(2, N), "C": draw(2, N), **more})


def siso_states(count: int, heads: int) -> Any:
    return draw(count, heads, S), draw(count, heads, P, N), draw(count, heads, N), draw(count, H, P)


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


def test_rows_of_padding_have_no_state() -> None:
    """All arrays are NumPy's; traced, an index beyond the last is padding too."""
    known, beyond = np.array([2, -1, -3]), np.array([2, -1, 4])
    arrays: list[Any] = [
        np.asarray(draw(*shape)) for shape in ((4, P, N), (3, P), (3, P), (P, N), (3, N))
    ]
    cache, x, dt, A, B = arrays
    conv, weight, seen = map(np.asarray, (draw(4, P, 3), draw(P, 4), [0, 5, 7]))

    def both(traced: Any, call: Any = ops) -> Any:
        return (
            call.selective_state_update(cache, x, dt, A, B, B, state_batch_indices=traced),
            call.causal_conv1d_update(x, conv, weight, None, None, seen, known),
        )

    found = compiled(both, beyond)
    h = np.exp(dt[0, :, None] * A) * cache[2] + (dt[0] * x[0])[:, None] * B[0]
    row = conv[2].copy()
    row[:, 0] = x[0]
    convolved = (conv[2] * weight[:, :3]).sum(1) + x[0] * weight[:, 3]
    expected = (h @ B[0], h), (convolved, row)
    for (y, new), (out, state), old in zip(found, expected, (cache, conv), strict=True):
        assert error(y[0], out) < 1e-13
        assert not np.asarray(y[1:]).any()
        assert error(new[2], state) < 1e-13
        np.testing.assert_array_equal(np.delete(new, 2, axis=0), np.delete(old, 2, axis=0))


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
            "expected cu_seqlens with return_varlen_states, got None",
        ),
        *(
            (lambda cu=cu: ssd(cu_seqlens=cu, return_varlen_states=True), "numbers from 0 to T = 7")
            for cu in ([0, 9], [0, 9, 2])
        ),
        (lambda: ssd(D=draw(P, H)), r"expected D of shape \[H\] or \[H, P\] with H = 2, P = 3"),
        (lambda: ssd(D=draw(H * P)), r"expected D of shape .*, got \[6\]"),
        (lambda: ssd(state_dtype=jnp.bfloat16), "state_dtype to be None or float64"),
        (
            lambda: ops.ssd_minimal_discrete(
                *(draw(1, T, H, P), draw(1, T, H), draw(1, T, H, N), draw(1, T, H, N)),
                *(7, draw(1, H, N, P)),
            ),
            r"initial_states of shape \[B, 1, H, P, N\] or \[B, H, P, N\]",
        ),
        (
            lambda: ops.mamba_split_conv1d_scan_combined(
                *(draw(1, T, 2 * H * P + 2 * N + H), draw(H * P + 2 * N, 4), None),
                *(draw(H), draw(H), draw(H)),
                headdim=P,
                outproj_bias=draw(5),
            ),
            "expected outproj_weight next to outproj_bias",
        ),
        (lambda: s6(B=draw(1, 2, N, T)), "D to be a multiple of G, the groups of B, got D = 3"),
        (lambda: s6(C=draw(1, T, N)), r"expected C of shape .*, got \[1, 7, 4\]"),
        (lambda: step(z=draw(1, P)), r"expected z of shape \[2, 3\] .*, got \[1, 3\]"),
        (lambda: step(dt_bias=draw(1)), r"expected dt_bias of shape \[3\]"),
        (
            lambda: step(state=draw(4, P, N)),
            "each of 2 rows of x, got 4; say .*state_batch_indices",
        ),
        (lambda: step(state_batch_indices=np.array([0, 2])), "below 2, .*, got \\[0, 2\\]"),
        (
            lambda: ops.mamba3_siso_combined(
                **{**SISO, "Q": draw(1, T, 3, N), "K": draw(1, T, 3, N)}
            ),
            "H to be a multiple of G.* H = 2 and G = 3",
        ),
        *(
            (lambda states=states: ops.mamba3_siso_combined(**SISO, Input_States=states), words)
            for states, words in (
                (siso_states(1, 1), r"Input_States\[0\] of shape \[K, H, S\] with H = 2"),
                (siso_states(2, H), "Input_States of each of 1 sequences, got 2"),
            )
        ),
        (lambda: ops.mamba3_mimo(**{**MIMO, "MIMO_Z": None}), "expected MIMO_Z next to Z"),
        (
            lambda: ops.mlstm(*MEMORY, m_initial=draw(H, 1)),
            r"m_initial of shape \[B, H\] or \[B, H, 1",
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
    with unchecked(), pytest.raises(ValueError, match=words):
        call()


def test_steps_stay_within_their_limits() -> None:
    """By default none is negative; one that is has no gradient, one at a limit has its own."""
    dt, x = jnp.array([[-1.0], [0.0], [2.0], [9.0]]), jnp.ones((4, 1, 1))

    def steps(dt: Any, **limit: Any) -> Any:
        system = ops.mamba_chunk_scan_combined.system(x, dt, -jnp.ones(1), x, x, **limit)
        return -system.A.log_a[:, 0]

    assert steps(dt).tolist() == [0, 0, 2, 9]
    assert steps(dt, dt_limit=(0.5, 3.0)).tolist() == [0.5, 0.5, 2, 3]
    assert jax.grad(lambda dt: steps(dt).sum())(dt).ravel().tolist() == [0, 1, 1, 1]


NOTHING: dict[str, Any] = {"MIMO_Out": None, "MIMO_Z": None, "D": None, "Z": None}


def test_parts_of_mimo_may_be_left_out() -> None:
    y = jax.eval_shape(lambda: ops.mamba3_mimo(**{**MIMO, **NOTHING}))
    assert isinstance(y, jax.ShapeDtypeStruct) and y.shape == (1, T, 2, H, P)


@pytest.mark.slow
def test_gate_skip_and_sum_of_mimo_can_be_put_outside() -> None:
    def both(arrays: Any) -> Any:
        return ops.mamba3_mimo(**arrays), ops.mamba3_mimo(**{**arrays, **NOTHING})

    y, o = map(np.asarray, compiled(both, MIMO))
    up, gate, out = (np.asarray(MIMO[f"MIMO_{x}"]).swapaxes(0, 1) for x in ("V", "Z", "Out"))
    o = o + np.asarray(MIMO["D"])[:, None] * up * np.asarray(MIMO["V"])[:, :, None]
    assert error(y, (out * o * silu(gate * np.asarray(MIMO["Z"])[:, :, None])).sum(2)) < 1e-13


def test_unknown_flags_are_named() -> None:
    wrong: Any = {"disable_state_passing": True}
    with pytest.raises(TypeError, match="selective_scan_fn: unknown argument 'disable_state"):
        ops.selective_scan_fn(
            draw(1, P, T), draw(1, P, T), draw(P, N), draw(P, N), draw(P, N), **wrong
        )
    assert math.isinf(ops.mamba_chunk_scan_combined._signature.parameters["dt_limit"].default[1])
