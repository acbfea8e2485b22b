"""What holds for every op: packed sequences are separate ones, and bfloat16 has wide states."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import ops
from dsfjax._util.errors import normwise
from tests import ops_runs

pytestmark = pytest.mark.slow
LENGTHS = (2, 0, 1, 3)
CU = np.cumsum([0, *LENGTHS])


@pytest.fixture(autouse=True)
def _step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    ops_runs.step_by_step(monkeypatch)


def _inputs(name: str, op: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    if ops_runs.path(name) is None:
        pytest.skip("set DSFJAX_GOLDEN_OPS and DSFJAX_GOLDEN to the folders of the files")
    return ops_runs.inputs(name, op)


@pytest.mark.parametrize(("op", "name"), ops_runs.per_op("cu_seqlens").items())
def test_packed_sequences_are_separate_ones(op: str, name: str) -> None:
    timed, states, rest = _inputs(name, op)
    function: Any = getattr(ops, op)
    many = {"k": 2, "v": 2, "beta": 2} if op == "chunk_gated_delta_product" else {}

    def cut(start: int, end: int) -> dict[str, Any]:
        return {k: x[:1, start * many.get(k, 1) : end * many.get(k, 1)] for k, x in timed.items()}

    def grown(x: Any) -> Any:
        return jnp.stack([x[i % len(x)] * (1 + i / 4) for i in range(len(LENGTHS))])

    states = {key: jax.tree.map(grown, x) for key, x in states.items()}  # in their order
    ids = jnp.repeat(jnp.arange(len(LENGTHS)), np.array(LENGTHS))[None]

    def run(cut_: Any, states: Any, **more: Any) -> Any:
        found = function(**cut_, **states, **rest, **more)
        return found if isinstance(found, tuple) else (found,)

    def every(cu: Any, states: Any) -> Any:
        whole = cut(0, CU[-1])
        static, traced = (run(whole, states, cu_seqlens=x) for x in (CU, cu))
        separate = [
            run(cut(start, end), jax.tree.map(lambda x, i=i: x[i : i + 1], states))
            for i, (start, end) in enumerate(zip(CU[:-1], CU[1:], strict=True))
            if end > start
        ]
        from_zero = run(whole, {}, cu_seqlens=CU), run(whole, {}, segment_ids=ids)
        return static, traced, separate, from_zero

    static, traced, separate, from_zero = ops_runs.compiled(every, quick=True)(
        jnp.asarray(CU), states
    )
    for x, y in zip(jax.tree.leaves(static), jax.tree.leaves(traced), strict=True):
        assert normwise(x, y) < 1e-12
    assert normwise(jnp.concatenate([x[0] for x in separate], axis=1), static[0]) < 1e-12
    assert normwise(from_zero[0][0], from_zero[1][0]) < 1e-12
    full = np.flatnonzero(LENGTHS)
    ends = [jax.tree.leaves(x[1:]) for x in separate]
    for i, x in enumerate(jax.tree.leaves(static[1:])):
        assert normwise(x[full], jnp.concatenate([end[i] for end in ends])) < 1e-12
    befores = jax.tree.leaves(list(states.values()))
    for before, after in zip(befores, jax.tree.leaves(static[1:]), strict=False):
        np.testing.assert_array_equal(after[1], before[1])


@pytest.mark.parametrize(("op", "name"), ops_runs.per_op().items())
def test_bfloat16_has_wide_states(op: str, name: str) -> None:
    timed, states, rest = _inputs(name, op)
    function: Any = getattr(ops, op)
    low = {key: x.astype(jnp.bfloat16) for key, x in timed.items()}
    wide = {key: x.astype(jnp.float64) for key, x in low.items()}
    rest = {key: x.astype(jnp.float32) if hasattr(x, "astype") else x for key, x in rest.items()}

    def single(tree: Any, dtype: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(dtype) if hasattr(x, "astype") else x, tree)

    def run(timed: Any, dtype: Any) -> Any:
        found = function(**timed, **single(states, dtype), **single(rest, dtype))
        return jax.tree.leaves(found)

    found, expected = jax.jit(
        lambda low, wide: (run(low, jnp.float32), run(wide, jnp.float64)),
        compiler_options=ops_runs.COMPILE_FAST,
    )(low, wide)
    assert found[0].dtype == jnp.bfloat16
    assert all(x.dtype == jnp.float32 for x in found[1:])
    assert all(normwise(x, y) < 2.0**-5 for x, y in zip(found, expected, strict=True))
