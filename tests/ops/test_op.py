"""What all ops share: names, signatures, errors, packed sequences, the System behind them."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

import dsfjax
from dsfjax import ops
from dsfjax.ops.op import LEFT_OUT
from tests import ops_runs
from tests.checks import unchecked
from tests.ops_runs import compiled


@pytest.fixture(autouse=True)
def _step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    ops_runs.step_by_step(monkeypatch)


def draw(*shape: int, seed: int = 0) -> Any:
    """Normal numbers, of NumPy, whose loops are not compiled."""
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def call(op: Any, *arrays: Any, **more: Any) -> Any:
    """The results of an op, compiled as a whole; in NumPy's arrays."""
    arrays = tuple(x if x is None else jnp.asarray(x) for x in arrays)
    traced = {
        k: jnp.asarray(x) for k, x in more.items() if isinstance(x, np.ndarray) and x.ndim > 1
    }
    static = {k: x for k, x in more.items() if k not in traced}
    found = compiled(lambda arrays, traced: op(*arrays, **traced, **static))(arrays, traced)
    return jax.tree.map(np.asarray, found)


def close(x: Any, y: Any) -> None:
    np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-13)


def test_names_are_exported_and_registered() -> None:
    exported = {name for name, x in vars(ops).items() if isinstance(x, ops.Op)}
    assert exported == set(ops.names())
    for name in ops.names():
        op = getattr(ops, name)
        assert name in op.names and op.peer.startswith("fla.ops.") == (op.peer[:3] == "fla")
        assert inspect.getdoc(op) and inspect.signature(op).parameters


def zeros(*shape: int) -> Array:
    return jnp.zeros(shape)


X, V3 = jnp.asarray(draw(1, 4, 2, 3)), jnp.asarray(draw(1, 4, 3, 3))
ANY: Any = ops
GLA = ANY.chunk_gla


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: GLA(X, X, X), TypeError, r"chunk_gla: expected also 'g'. It is chunk_gla\(q, k"),
        (
            lambda: GLA(*(X,) * 4, *(None,) * 7),
            TypeError,
            "chunk_gla: .*at most 9 .*, got 11; give",
        ),
        (lambda: GLA(X, X, X, X, q=X), TypeError, "chunk_gla: expected 'q' once"),
        (
            lambda: ANY.chunk_gsa(X, X, X, X, X, transpose_state_layout=True),
            TypeError,
            "'transpose_state_layout': it is not supported by this one",
        ),
        (lambda: GLA(*(X,) * 4, transpose_state_layout=True), TypeError, "called state_v_first"),
        (
            lambda: ANY.chunk_momentum_delta_rule(*(X,) * 3, *(X[..., 0],) * 2, cu_seqlens=[0, 4]),
            TypeError,
            "'cu_seqlens': it has no packed sequences",
        ),
        # Literal sizes, several shapes, parts of states.
        (
            lambda: ANY.fused_recurrent_rwkv4(
                *(X[0, 0, 0],) * 2, *(X[:, :, 0],) * 2, zeros(1, 1, 3, 3)
            ),
            ValueError,
            r"rwkv4: expected state of shape \[B, 3, 1, C\] with B = 1, C = 3, got \[1, 1, 3, 3\]",
        ),
        (
            lambda: ANY.chunk_momentum_delta_rule(
                *(X,) * 3, *(X[..., 0],) * 2, initial_state=zeros(3, 1, 2, 3, 3)
            ),
            ValueError,
            r"expected initial_state of shape \[2, B, H, K, V\]",
        ),
        (
            lambda: ANY.chunk_linear_attn(X, X, X, 1.0, [zeros(1, 2, 3, 3), zeros(1, 2, 1, 3)]),
            ValueError,
            r"expected initial_state\[1\] of shape \[N, 1, H, K\] with N = 1, H = 2",
        ),
        (
            lambda: ANY.chunk_gsa(X, X, X, X, X, 1.0, zeros(1, 2, 3, 3)),
            ValueError,
            r"initial_state of shape \(\[N, H, K, M\], \[N, H, M, V\]\), got \[1, 2, 3, 3\]",
        ),
        (
            lambda: ANY.chunk_gsa(X, X, X, X, X, 1.0, [zeros(1, 2, 3, 3)]),
            ValueError,
            "chunk_gsa: .*, got a sequence of 1",
        ),
        # Heads that share others.
        (
            lambda: ANY.chunk_gated_delta_rule(X, X, V3, V3[..., 0], V3[..., 0]),
            ValueError,
            "chunk_gated_delta_rule: expected HV to be a multiple of H.*HV = 3 and H = 2",
        ),
        (lambda: GLA(X, X, V3, V3), ValueError, "HV = 3 and H = 2"),
        (lambda: ANY.parallel_attn(V3, X, X), ValueError, "HQ = 3 and H = 2"),
        (lambda: ANY.chunk_gsa(V3, X, X, X), ValueError, "HQ = 3 and H = 2"),
        (lambda: GLA(*(X[:, :0],) * 4), ValueError, "chunk_gla: expected T >= 1 steps, got T = 0"),
        (lambda: packed([0, 0], x=zeros(1, 0, 3)), ValueError, "got T = 0"),
        (
            lambda: ANY.chunk_kda(
                *(X,) * 4,
                X[..., 0],
                use_gate_in_kernel=True,
                A_log=X[0, 0, :, 0],
                dt_bias=X[0, 0, :, 0],
            ),
            ValueError,
            r"dt_bias of 6 numbers, one for each head and key channel of g, got \[2\]",
        ),
        (lambda: GLA(X, X, X, X, cp_context=1), TypeError, "'cp_context': cut .*scan_shards"),
        (lambda: GLA(X, X, X, X, scal=1), TypeError, "unknown argument 'scal'.*'scale'"),
        (
            lambda: GLA(X, X, X, X[:, :3]),
            ValueError,
            r"expected g of shape \[B, T, HV, K\] with B =",
        ),
        (lambda: GLA(X, X, X, X[..., 0]), ValueError, r"expected g .*got \[1, 4, 2\]"),
        (
            lambda: ops.chunk_kda(X, X, X, X, X[..., 0], use_gate_in_kernel=True),
            ValueError,
            "use_gate_in_kernel: expected A_log, got None",
        ),
        (
            lambda: ops.chunk_kda(X, X, X, X, X[..., 0], allow_neg_eigval=True),
            ValueError,
            "expected use_beta_sigmoid_in_kernel",
        ),
        (
            lambda: ops.fused_recurrent_gdn(X, X, X, use_gate_in_kernel=True, A_log=X[0, 0, :, 0]),
            ValueError,
            "expected a raw gate g",
        ),
        (
            lambda: ops.chunk_gated_delta_product(X, X, X, None, X[..., 0], 2),
            ValueError,
            "T · num_householder = 4 · 2 steps, got 4",
        ),
        (lambda: packed(None, h0=draw(2, 3)), ValueError, "each of 1 sequences, got 2. Sequences"),
        (lambda: packed([0, 2, 3]), ValueError, "numbers from 0 to T = 4 in order, got"),
        (lambda: packed([0, 3, 2, 4]), ValueError, "in order"),
        (lambda: packed([[0, 4]]), ValueError, r"shape \[N \+ 1\], got \[1, 2\]"),
        (lambda: packed(np.array([0.0, 4.0])), TypeError, "cu_seqlens of integers"),
        (lambda: packed([0, 4], x=draw(2, 4, 3)), ValueError, "a batch of 1, got 2"),
        (lambda: packed([0, 4], h0=draw(2, 3)), ValueError, "each of 1 sequences, got 2"),
        (lambda: packed([0, 4], ids=jnp.zeros((1, 4), int)), ValueError, "no segment_ids next to"),
    ],
)
def test_errors_say_what_to_do(call: Callable[[], Any], error: type[Exception], words: str) -> None:
    with unchecked(), pytest.raises(error, match=words):
        call()


def packed(cu: Any, x: Array | None = None, h0: Array | None = None, ids: Any = None) -> Any:
    x = jnp.asarray(draw(1, 4, 3) if x is None else x)
    h0 = None if h0 is None else jnp.asarray(h0)
    return ops.fused_recurrent_hgrn(x, x, h0, True, cu, segment_ids=ids)


LENGTHS = (3, 0, 1, 4, 0)
CU = np.cumsum([0, *LENGTHS])


def test_packed_sequences_are_separate_ones_static_or_traced() -> None:
    x, g, h0 = draw(1, 8, 3), -np.abs(draw(1, 8, 3, seed=1)), draw(5, 3)

    def run(cu: Any, h0: Array) -> Any:
        def loss(h0: Array) -> Any:
            o, last = ops.fused_recurrent_hgrn(jnp.asarray(x), jnp.asarray(g), h0, True, cu)
            return o.sum(), (o, last)

        return jax.value_and_grad(loss, has_aux=True)(h0)

    (_, (o, last)), d_h0 = compiled(lambda h0: run(CU, h0))(h0)
    for i, (start, end) in enumerate(zip(CU[:-1], CU[1:], strict=True)):
        h = h0[i]
        for t in range(start, end):
            h = np.exp(g[0, t]) * h + x[0, t]
            close(o[0, t], h)
        close(last[i], h)
    d_h0 = np.asarray(d_h0)
    assert not d_h0[[1, 4]].any() and d_h0[[0, 2, 3]].all()
    traced = compiled(run)
    (_, (o_traced, last_traced)), d_traced = traced(jnp.asarray(CU), h0)
    close(o_traced, o)
    close(last_traced, last)
    close(d_traced, d_h0)
    # Traced, tokens may follow the last sequence; they change nothing before.
    (_, (shorter, last)), _ = traced(jnp.array([0, 3, 3, 4, 6, 6]), h0)
    close(shorter[:, :6], o[:, :6])
    close(last[3], o[0, 5])
    close(shorter[0, 6], x[0, 6])


def test_states_may_be_lists_and_of_numpy() -> None:
    q, v, S, z = draw(1, 1, 1, 2), draw(1, 1, 1, 3), draw(1, 1, 2, 3), draw(1, 1, 1, 2)
    states: Any = [S, z]
    _, found = jax.eval_shape(lambda: ops.chunk_linear_attn(q, q, v, 1.0, states, True))
    assert [x.shape for x in found] == [S.shape, z.shape]


def test_documents_of_rows() -> None:
    x, g, h0 = draw(2, 6, 3), -np.abs(draw(2, 6, 3, seed=1)), draw(2, 3)
    ids = np.array([[7, 7, 7, 8, 8, 8], [0, 1, 1, 1, 1, 0]])
    o, last = call(
        ops.fused_recurrent_hgrn, x, g, initial_state=h0, output_final_state=True, segment_ids=ids
    )
    for row, changes in enumerate([(3,), (1, 5)]):
        h = h0[row]
        for t in range(6):
            h = np.exp(g[row, t]) * (0 if t in changes else h) + x[row, t]
            close(o[row, t], h)
        close(last[row], h)


@pytest.mark.parametrize("cu", [None, CU])
def test_reverse(cu: Any) -> None:
    q, k, v, g = draw(1, 8, 1, 2), draw(1, 8, 1, 2, seed=1), draw(1, 8, 1, 3), -(draw(1, 8, 1) ** 2)
    h0 = draw(1 if cu is None else 5, 1, 2, 3)
    o, last = call(
        ops.fused_recurrent_simple_gla,
        *(q, k, v, g),
        scale=1.0,
        initial_state=h0,
        output_final_state=True,
        reverse=True,
        cu_seqlens=cu,
    )
    for i in range(len(h0)):
        start, end = (0, 8) if cu is None else (cu[i], cu[i + 1])
        S = h0[i, 0]
        for t in reversed(range(start, end)):
            S = np.exp(g[0, t, 0]) * S + np.outer(k[0, t, 0], v[0, t, 0])
            close(o[0, t, 0], q[0, t, 0] @ S)
        close(last[i, 0], S)


def test_states_with_values_first() -> None:
    q, k, v, g, h0 = (draw(1, 1, 1, n) for n in (2, 2, 3, 1, 6))
    for first in (False, True):
        o, last = call(
            ops.chunk_simple_gla,
            *(q, k, v, g[..., 0]),
            scale=1.0,
            initial_state=h0.reshape((1, 1, 3, 2) if first else (1, 1, 2, 3)),
            output_final_state=True,
            state_v_first=first,
        )
        S = h0.reshape(3, 2).T if first else h0.reshape(2, 3)
        S = np.exp(g[0, 0, 0]) * S + np.outer(k, v)
        close(o[0, 0, 0], q[0, 0, 0] @ S)
        close(last[0, 0], S.T if first else S)


def test_outputs_without_states() -> None:
    q, k, v, g = draw(1, 4, 1, 2), draw(1, 4, 1, 2, seed=1), draw(1, 4, 1, 3), -(draw(1, 4, 1) ** 2)
    for name in ("simple_gla", "retention"):
        arrays = (q, k, v, g) if name == "simple_gla" else (q, k, v)
        o, nothing = call(getattr(ops, f"parallel_{name}"), *arrays)
        close(o, call(getattr(ops, f"chunk_{name}"), *arrays)[0])
        assert nothing is None


def test_the_delta_product_is_delta_rules_in_a_row() -> None:
    T, n, K, V = 3, 2, 3, 2
    q, k, v = draw(1, T, 2, K), draw(1, T * n, 2, K), draw(1, T * n, 4, V)
    beta, g = draw(1, T * n, 4), -np.abs(draw(1, T, 4))
    h0 = draw(1, 4, K, V)
    o, last = call(
        ops.chunk_gated_delta_product,
        *(q, k, v, g, beta),
        num_householder=n,
        scale=1.0,
        initial_state=h0,
        output_final_state=True,
    )
    S = h0[0]
    for t in range(T):
        S = np.exp(g[0, t])[:, None, None] * S
        for j in range(t * n, t * n + n):
            key = np.repeat(k[0, j], 2, axis=0)
            wrong = v[0, j] - np.einsum("hk,hkv->hv", key, S)
            S = S + np.einsum("h,hk,hv->hkv", beta[0, j], key, wrong)
        close(o[0, t], np.einsum("hk,hkv->hv", np.repeat(q[0, t], 2, axis=0), S))
    close(last[0], S)


def test_one_step_of_mesa_net_is_the_last_of_many() -> None:
    q, k, v = draw(2, 3, 2, 3), draw(2, 3, 2, 3, seed=1), draw(2, 3, 2, 4)
    g, beta, lamb = -np.abs(draw(2, 3, 2)), np.abs(draw(2, 3, 2, seed=1)), 1 + draw(2, 3) ** 2

    @compiled
    def run(arrays: Any, lamb: Any) -> Any:
        q, k, v, g, beta = arrays
        whole = ops.chunk_mesa_net(q, k, v, g, beta, lamb, output_final_state=True)
        q, k, v, g, beta = (x[:, :2] for x in arrays)
        _, h_kk, h_kv = ops.chunk_mesa_net(q, k, v, g, beta, lamb, output_final_state=True)
        assert h_kk is not None and h_kv is not None
        q, k, v, g, beta = (x[:, 2] for x in arrays)
        step = q, k, v, g, lamb, beta
        one = ops.mesa_net_decoding_one_step(*step, h_kk, h_kv)
        h_kk, h_kv = h_kk[0], h_kv[0]
        row = [x if x is lamb else x[0] for x in step]
        system = ops.mesa_net_decoding_one_step.system(*row, h_kk)[1]
        tokens = ops.mesa_net_decoding_one_step.tokens(*row, h_kk)[1]
        return whole, one, dsfjax.scan(system, tokens, h_kv, method="sequential")

    (o, *states), (last, *after), (y, h) = run([q, k, v, g, beta], lamb)
    close(last, o[:, 2])
    for found, expected in zip(after, states, strict=True):
        close(found, expected)
    close(y.reshape(2, 4), o[0, 2])
    close(h, states[1][0])


def test_the_systems_behind_an_op() -> None:
    q, k, v, s = (jnp.asarray(draw(4, h, n)) for h, n in ((2, 3), (1, 3), (1, 2), (1, 5)))
    first, second = ops.chunk_gsa.system(q, k, v, s, -(s**2))
    assert isinstance(first.A, dsfjax.Diagonal)
    assert (first.state_shape, second.state_shape) == ((1, 3, 5), (1, 5, 2))

    @compiled
    def run(q: Array, k: Array, v: Array, s: Array, g: Array) -> Any:
        system = ops.chunk_gsa.system(q, k, v, s, g)[1]
        y, _ = dsfjax.scan(system, ops.chunk_gsa.tokens(q, k, v, s, g)[1], method="sequential")
        return y, ops.chunk_gsa(q[None], k[None], v[None], s[None], g[None])[0]

    y, o = run(q, k, v, s, -(s**2))
    close(y.reshape(4, 2, 2), o[0])


def test_a_system_is_asked_for_as_the_op_is_called() -> None:
    x, g = jnp.ones((4, 1, 2)), -jnp.ones((4, 1))
    # Defaults are those of the op, also where ops share what assembles them.
    assert ops.chunk_linear_attn.system(x, x, x).eta is not None
    assert ops.fused_recurrent_linear_attn.system(x, x, x).eta is None
    scales = [op.system(x, x, x, x, x, x).C.c[0, 0, 0] for op in RWKV7]
    np.testing.assert_allclose(scales, [1, 2**-0.5])
    # So is the order: p comes before v, or after.
    after = ops.chunk_comba.system(x, x, x, 2 * x, g)
    before = ops.fused_recurrent_comba.system(x, x, 2 * x, x, g, reset=jnp.arange(4) == 2)
    np.testing.assert_array_equal(after.A.z, before.A.z)
    assert after.reset is None and before.reset.tolist() == [False, False, True, False]
    with pytest.raises(TypeError, match="chunk_comba.system: .* got 'initial_state'; give it to"):
        ops.chunk_comba.system(x, x, x, x, g, initial_state=x)
    with pytest.raises(TypeError, match="chunk_comba.system: expected 'k', got nothing for it"):
        ops.chunk_comba.system(x)
    # A state that the op cannot do without is not needed for its System.
    assert ops.fused_recurrent_rwkv4.system(g[0], g[0], g, g).length == 4
    one = jnp.ones((1, 2))
    step: dict[str, Any] = {"x": one, "dt": one, "A": -jnp.ones((1, 2, 3)), "B": jnp.ones((1, 3))}
    step |= {"C": step["B"], "dt_softplus": True}
    assert ops.selective_state_update.system(**step).state_shape == (1, 3, 2)
    with pytest.raises(TypeError, match="unknown argument 'bta'; did you mean 'beta'"):
        ops.chunk_comba.system(x, x, x, x, g, bta=g)


RWKV7 = ops.chunk_rwkv7, ops.fused_recurrent_rwkv7


def test_the_table_of_the_documentation_is_current() -> None:
    text = (Path(__file__).parents[2] / "docs" / "ops.md").read_text(encoding="utf-8")
    assert ops.table() in text, "write dsfjax.ops.table() into docs/ops.md"
    assert all(f"`{name}`" in text for name in LEFT_OUT)


def test_low_precision_has_wide_states() -> None:
    x = jnp.asarray(draw(1, 5, 1, 2), jnp.bfloat16)
    o, state = jax.eval_shape(
        lambda x: ops.chunk_simple_gla(x, x, x, x[..., 0], output_final_state=True), x
    )
    assert (o.dtype, state.dtype) == (jnp.bfloat16, jnp.float32)
