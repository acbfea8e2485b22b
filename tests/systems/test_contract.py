"""What holds for every architecture of the registry, the ones of later users included."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import KernelSystem, materialize, scan, step, systems, to_dense
from dsfjax.systems.architecture import with_value_map
from tests.architectures import PAPER, REPRESENTATIVES, all_of_them
from tests.reference_loop import error
from tests.systems.small import D_MODEL, build, case, cast, perturbed, piece, runnable, tokens
from tests.systems_zoo import slow_unless

LENGTH = 9
NAMES = systems.names()
every = pytest.mark.parametrize("name", all_of_them())
# One of each kind of recurrence, for what depends on that alone.
few = pytest.mark.parametrize(
    "name", slow_unless({"softmax_attention", "normalized_attention", "s6", "rg_lru"}, NAMES)
)
KERNELS = ("softmax_attention", "sliding_window_attention", "forgetting_attention")
PRACTISED = {"d_state": 4, "num_groups": 1, "rope_base": 50.0, "qk_norm": True, "soft_cap": 1.5}
SMALL_RANGE = ("linear_attention", "normalized_attention")
# Dense maps around the state, or several values written in a step: no kernel from value to output.
WITHOUT_KERNEL = ("lru", "s5", "deltaproduct")
FINITE = [name for name in NAMES if name not in KERNELS]
# Those whose values are a linear map of the tokens, and whose textbook System thus reads tokens.
linear = pytest.mark.parametrize(
    "name",
    slow_unless(
        {"softmax_attention", "normalized_attention", "s6", "rg_lru"},
        [name for name in NAMES if not build(name).reads_state],
    ),
)


@every
def test_output_does_not_see_the_future(name: str) -> None:
    arch, params, _ = case(name)
    u = tokens(LENGTH)

    def run(u: Any) -> Any:
        return scan(*runnable(arch, params, u))[0]

    jacobian = np.asarray(jax.jit(jax.jacrev(run))(u))
    size = np.abs(jacobian).max(axis=(1, 3))
    assert (size[np.triu_indices(LENGTH, 1)] == 0).all()
    assert (size[np.tril_indices(LENGTH)] > 0).all()


@few
def test_vmap_over_parameters_and_tokens_is_the_loop(name: str) -> None:
    arch, _, run = case(name)
    params = [perturbed(arch, seed) for seed in range(3)]
    u = jnp.stack([tokens(LENGTH, seed) for seed in range(3)])
    together = jax.vmap(run)(jax.tree.map(lambda *x: jnp.stack(x), *params), u)
    apart = jnp.stack([run(p, x) for p, x in zip(params, u, strict=True)])
    assert error(together, apart) < 1e-13


@every
def test_split_anywhere_and_carry_the_state(name: str) -> None:
    arch, params, run = case(name)
    u = tokens(LENGTH)

    @jax.jit
    def in_parts(params: Any, u: Any) -> Any:
        outputs, h, past = [], None, None
        for part in (u[:1], u[1:5], u[5:]):
            system, u, past = piece(arch, params, part, (h, past), continued=h is not None)
            y, h = scan(system, u, h)
            outputs.append(y)
        return jnp.concatenate(outputs)

    assert error(in_parts(params, u), run(params, u)) < 1e-13


@every
def test_new_values_do_not_trace_again(name: str) -> None:
    arch, params, _ = case(name)
    traces = 0

    @jax.jit
    def parts(params: Any, u: Any) -> Any:
        nonlocal traces
        traces += 1
        return jax.tree.leaves(runnable(arch, params, u))

    first = parts(params, tokens(LENGTH, 0))
    second = parts(perturbed(arch, 1), tokens(LENGTH, 1))
    assert traces == 1
    assert any((a != b).any() for a, b in zip(first, second, strict=True))


@every
def test_gradients_are_derivatives(name: str) -> None:
    _, params, run = case(name)
    point = (params, tokens(LENGTH))
    weights = jax.random.normal(jax.random.key(5), (LENGTH, D_MODEL))

    @jax.jit
    def loss(params: Any, u: Any) -> Any:
        return jnp.sum(weights * run(params, u))

    gradient = jax.jit(jax.grad(loss, (0, 1)))(*point)
    # Along one direction per array, so that a wrong array is not lost among right ones.
    leaves, structure = jax.tree.flatten(point)
    for i, (leaf, slope) in enumerate(zip(leaves, jax.tree.leaves(gradient), strict=True)):
        direction = np.random.default_rng(i).standard_normal(leaf.shape)
        ends = [
            loss(
                *jax.tree.unflatten(
                    structure, [*leaves[:i], leaf + e * direction, *leaves[i + 1 :]]
                )
            )
            for e in (1e-5, -1e-5)
        ]
        assert float(np.sum(slope * direction)) == pytest.approx(
            float(ends[0] - ends[1]) / 2e-5, rel=1e-6, abs=1e-7
        )


@every
def test_gradients_are_finite_at_extremes(name: str) -> None:
    arch, params, _ = case(name)
    # At 40 gates and decays saturate in float32. η, an exponential of the token, would leave its
    # range in linear and normalized attention.
    scale = 10.0 if name in SMALL_RANGE else 40.0

    def loss(params: Any, u: Any) -> Any:
        y = scan(*runnable(arch, params, u))[0]
        return jnp.sum(jnp.tanh(y))

    slope = jax.jit(jax.value_and_grad(loss, (0, 1)))
    for factor in (0.0, scale):
        value, gradients = slope(*cast((params, factor * tokens(LENGTH)), jnp.float32))
        assert np.isfinite(value)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))


@every
def test_labels_tell_matrices_from_the_rest(name: str) -> None:
    arch, params, _ = case(name)
    labels = arch.labels(params)
    assert jax.tree.structure(labels) == jax.tree.structure(params)
    for field, label in labels._asdict().items():
        assert label is None or label == ("decay" if field.startswith("W") else "no_decay"), field


@every
def test_reset_runs_segments_apart(name: str) -> None:
    arch, params, _ = case(name)
    u, lengths = tokens(11), (4, 7)
    reset = np.zeros(11, bool)
    reset[[0, 4]] = True

    def run(params: Any, u: Any, reset: Any) -> Any:
        return scan(*runnable(arch, params, u, reset=reset))[0]

    run = jax.jit(run)
    packed = run(params, u, jnp.asarray(reset))
    starts = np.cumsum((0, *lengths[:-1]))
    apart = [
        run(params, u[i : i + n], jnp.arange(n) == 0) for i, n in zip(starts, lengths, strict=True)
    ]
    assert error(packed, jnp.concatenate(apart)) < 1e-13
    joined = run(params, u, jnp.arange(11) == 0)
    assert error(packed[:4], joined[:4]) < 1e-13
    assert error(packed[4:], joined[4:]) > 1e-3


@pytest.mark.parametrize(
    ("name", "own"),
    [
        *(
            pytest.param(
                *(name, {}),
                id=name,
                marks=() if name in (*PAPER, *REPRESENTATIVES) else pytest.mark.slow,
            )
            for name in NAMES
        ),
        pytest.param("qlstm", {"coupled": True}, id="qlstm-coupled"),
        *(
            pytest.param(
                *(name, PRACTISED), id=f"{name}-practised", marks=pytest.mark.slow if i else ()
            )
            for i, name in enumerate(KERNELS)
        ),
    ],
)
def test_packed_is_alone_is_prefill_and_step(name: str, own: dict[str, Any]) -> None:
    """Two documents of three tokens, in one program."""
    arch = build(name, **own)
    params, u = perturbed(arch), tokens(6)

    @jax.jit
    def ways(params: Any, u: Any) -> Any:
        def alone(u: Any) -> Any:
            return scan(*runnable(arch, params, u))[0]

        def prefill_and_step(u: Any) -> Any:
            system, first, past = piece(arch, params, u[:2])
            y, h = scan(system, first)
            system, rest, _ = piece(arch, params, u[2:], (h, past), continued=True)
            last, _ = step(system, rest[0], h)
            return jnp.concatenate([y, last[None]])

        packed = scan(*runnable(arch, params, u, reset=jnp.arange(6) % 3 == 0))[0]
        # Packed without a reset at its first step, where it starts in any case.
        again = scan(*runnable(arch, params, u, reset=jnp.arange(6) == 3))[0]
        documents = u.reshape(2, 3, -1)
        apart = jax.vmap(alone)(documents), jax.vmap(prefill_and_step)(documents)
        return packed, again, *(y.reshape(packed.shape) for y in apart)

    packed, *others = ways(params, u)
    for y in others:
        assert error(y, packed) < 1e-13


@linear
def test_three_ways_to_the_same_output(name: str) -> None:
    arch, params, run = case(name)
    u = tokens(LENGTH)

    @jax.jit
    def by_parts(params: Any, u: Any) -> Any:
        signals = arch.signals(params, u)
        system, W = arch.assemble(params, signals), arch.value_map(params)
        v = arch.values(signals)
        on_tokens, _ = scan(with_value_map(system, W), u)
        linear = v if W is None else u @ W.T
        return on_tokens, scan(system, v)[0], linear, v

    on_tokens, on_values, linear, v = by_parts(params, u)
    assert error(linear, v) < 1e-13
    assert error(on_tokens, run(params, u)) < 1e-13
    assert error(on_values, run(params, u)) < 1e-13


@linear
def test_kernel_on_values_and_on_tokens(name: str) -> None:
    arch, params, run = case(name)
    u = tokens(LENGTH)

    @jax.jit
    def by_kernel(params: Any, u: Any) -> Any:
        signals = arch.signals(params, u)
        system = arch.system(params, u)
        on_tokens = jnp.einsum("tise,se->ti", materialize(system, full=True), u)
        bare = system if isinstance(system, KernelSystem) else dataclasses.replace(system, D=None)
        if name in WITHOUT_KERNEL:
            return u, u, on_tokens
        phi = materialize(bare)
        v = signals.v.reshape(LENGTH, phi.shape[0], -1)
        equation = "hts,shp->thp" if phi.ndim == 3 else "hpts,shp->thp"
        y_bare = scan(bare, u)[0].reshape(v.shape)
        return jnp.einsum(equation, phi, v), y_bare, on_tokens

    on_values, y_bare, on_tokens = by_kernel(params, u)
    assert error(on_values, y_bare) < 1e-12
    assert error(on_tokens, run(params, u)) < 1e-12


@pytest.mark.parametrize("name", slow_unless({"linear_attention", "s6", "qlstm"}, FINITE))
def test_matrices_of_the_paper(name: str) -> None:
    arch, params, run = case(name)
    u = tokens(LENGTH)

    @jax.jit
    def matrices(params: Any, u: Any) -> Any:
        system, tokens = runnable(arch, params, u)
        return to_dense(system), tokens

    found, u_in = matrices(params, u)
    A, B, C, D = (np.asarray(x.array) for x in (found.A, found.B, found.C, found.D))
    h, y = np.zeros(A.shape[1]), []
    for t in range(LENGTH):
        before, h = h, A[t] @ h + B[t] @ np.asarray(u_in[t])
        read = np.real(C[t] @ (before if found.C.before_update else h))
        read = read * (2 if found.C.conjugate_pairs else 1)
        y.append(read + D[t] @ np.asarray(u_in[t]))
    assert error(np.stack(y), run(params, u)) < 1e-12


DTYPES = [("float32", "float32", 2e-6), ("float64", "float32", 2e-6), ("float32", "bfloat16", 2e-2)]
NARROW = {(name, "float32") for name in PAPER} | {
    ("s6", "bfloat16"),
    ("softmax_attention", "bfloat16"),
}


@pytest.mark.parametrize(
    ("name", "param_dtype", "dtype", "tolerance"),
    [
        pytest.param(
            name,
            *dtypes,
            marks=()
            if dtypes[0] == "float32" and (name, dtypes[1]) in NARROW
            else pytest.mark.slow,
        )
        for name in NAMES
        for dtypes in DTYPES
    ],
)
def test_narrow_inputs(name: str, param_dtype: str, dtype: str, tolerance: float) -> None:
    arch, params, run = case(name)
    params, u = cast(params, param_dtype), cast(tokens(LENGTH), dtype)
    exact = run(cast(params, jnp.float64), cast(u, jnp.float64))
    y, state = jax.jit(lambda p, u: scan(*runnable(arch, p, u)))(params, u)
    assert y.dtype == dtype
    leaves = [x for x in jax.tree.leaves(state) if x.dtype != jnp.int32]
    widths = {jnp.finfo(x.dtype).dtype for x in leaves}  # of the parts, where a state is complex
    assert widths in ({np.dtype("float32")}, {np.dtype(param_dtype)})
    assert error(np.asarray(y, np.float64), exact) < tolerance


@every
def test_init_is_a_function_of_the_key(name: str) -> None:
    arch = case(name).arch
    first, again, other = (arch.init(jax.random.key(seed)) for seed in (3, 3, 4))
    assert all(
        (a == b).all() for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True)
    )
    for field, a, b in zip(first._fields, first, other, strict=True):
        if field.startswith("W"):
            assert (a != b).any(), field
    weights = [a.reshape(-1)[:3] for f, a in first._asdict().items() if f.startswith("W")]
    assert len({tuple(w.tolist()) for w in weights}) == len(weights), "two weights share a key"


@every
def test_traits_tell_the_structure(name: str) -> None:
    arch, params, _ = case(name)
    system, _ = runnable(arch, params, tokens(LENGTH))
    assert all(arch.traits)
    if isinstance(system, KernelSystem):
        assert arch.traits.structure.startswith("kernel")
        return
    words = {"diagonalpluslowrank": "diagonal plus rank"}  # with the rank
    kind = type(system.A).__name__.lower()
    assert words.get(kind, kind) in arch.traits.structure
    sizes = {"d": D_MODEL, "d · n": 3 * D_MODEL, "n": 3, **STATE_SIZES}
    own = arch.traits.state.split(" next to ")[-1]  # not what is carried next to the state
    assert system.num_states == sizes[own.removesuffix(", complex")]
    assert system.is_complex == ("complex" in arch.traits.structure)
    if system.is_complex:
        assert arch.traits.state.endswith(", complex")


STATE_SIZES = {
    "2d": 2 * D_MODEL,
    "4d": 4 * D_MODEL,
    "d · 2n": 6 * D_MODEL,
    "d · (m + 1)(m + 2)/2": 10 * D_MODEL,
    "d · m(m + 1)/2": 6 * D_MODEL,
}
"""Formulas of the traits that are not those of the paper, by hand for n = 3."""
