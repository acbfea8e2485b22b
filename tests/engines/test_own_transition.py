"""A transition of one's own, with nothing but its matrices, runs everywhere."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

import dsfjax
from dsfjax import analysis, scan, step
from tests.engine_runs import compiled
from tests.reference_loop import error

L, H, P, D = 11, 2, 3, 4


@dsfjax.pytree
class Rotation(dsfjax.Transition):
    """A rotation of two states by an angle per step and head, shrunk by a constant factor.

    Attributes:
        angle: (T, H).
        turns: Integer multiples of a quarter turn on top of it, (T, H).
        size: (H,), constant.
    """

    angle: Array
    turns: Array
    size: Array = dsfjax.constant()
    inverse: bool = dsfjax.static(default=False)

    def matrix(self) -> Array:
        assert self.angle.ndim == 2, "called with its time axis"
        angle = self.angle + self.turns.astype(self.angle.dtype) * (np.pi / 2)
        c, s = jnp.cos(angle), jnp.sin(-angle if self.inverse else angle)
        rows = jnp.stack([c, -s], axis=-1), jnp.stack([s, c], axis=-1)
        return self.size[None, :, None, None] * jnp.stack(rows, axis=-2)


def build(seed: int = 0, *, reset: bool = True, **parts) -> dsfjax.System:
    rng = np.random.default_rng(seed)
    A = Rotation(
        jnp.asarray(rng.normal(size=(L, H))),
        jnp.asarray(rng.integers(0, 4, size=(1, H))),
        jnp.asarray(rng.uniform(0.7, 0.95, size=H)),
    )
    B = dsfjax.OuterInput(jnp.asarray(rng.normal(size=(L, 1, 2))), None, W=normal(rng, H * P, D))
    C = dsfjax.InnerOutput(normal(rng, L, H, 2), normal(rng, L, H, P))
    marks = jnp.asarray(np.isin(np.arange(L), (4, 9))) if reset else None
    given = dict(A=A, B=B, C=C, reset=marks, state_shape=(H, 2, P)) | parts
    return dsfjax.System(**given)  # pyright: ignore[reportArgumentType]


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return jnp.asarray(rng.normal(size=shape))


SYSTEM = build()
U = jnp.asarray(np.random.default_rng(1).normal(size=(L, D)))
H0 = jnp.asarray(np.random.default_rng(2).normal(size=(H, 2, P)))
METHODS = ("sequential", "associative", "checkpointed", "materialized")


def rotate(A: Rotation, t: int, i: int) -> np.ndarray:
    angle = float(A.angle[t, i]) + float(A.turns[0, i]) * np.pi / 2
    c, s = np.cos(angle), np.sin(angle)
    return float(A.size[i]) * np.array([[c, -s], [s, c]])


def loop(system, u, h0, *, backwards: bool = False):
    """Outputs, last state and states, written for this class alone."""
    A, B, C = system.A, system.B, system.C
    reset = np.zeros(L, bool) if system.reset is None else np.asarray(system.reset)
    h, y, states = np.array(h0), np.zeros((L, H * P)), np.zeros((L, H, 2, P))
    order = reversed(range(L)) if backwards else range(L)
    for t in order:
        if (t + 1 < L and reset[t + 1]) if backwards else reset[t]:
            h = np.zeros_like(h)
        v = (np.asarray(B.W) @ u[t]).reshape(H, P)
        h = np.stack([rotate(A, t, i) @ h[i] + np.outer(B.b[t, 0], v[i]) for i in range(H)])
        y[t] = np.stack([C.gate[t, i] * (C.c[t, i] @ h[i]) for i in range(H)]).reshape(-1)
        states[t] = h
    return y, h, states


def everything(system, u, h0):
    """All methods in one program: forwards, backwards, and gradients."""
    out = {}
    for method in METHODS:
        forwards = scan(system, u, h0, method=method, return_states=True)
        backwards = scan(system, u, h0, method=method, reverse=True)
        arrays, others = (system.A.angle, system.A.size, system.B.W, u, h0), method

        def loss(angle, size, W, u, h0, method=others):
            A = dataclasses.replace(system.A, angle=angle, size=size)
            B = dataclasses.replace(system.B, W=W)
            y, h = scan(dataclasses.replace(system, A=A, B=B), u, h0, method=method)
            return jnp.sum(jnp.sin(y)) + jnp.sum(h**2)

        out[method] = forwards, backwards, jax.grad(loss, argnums=tuple(range(5)))(*arrays)
    return out


@pytest.fixture(scope="module")
def runs():
    return compiled(everything)(SYSTEM, U, H0)


@pytest.mark.parametrize("method", METHODS)
def test_values_states_and_reverse(runs, method):
    (y, h_last, states), (y_back, h_back), _ = runs[method]
    expected = loop(SYSTEM, np.asarray(U), H0)
    for got, wanted in zip((y, h_last, states), expected, strict=True):
        assert error(got, wanted) < 1e-13
    expected = loop(SYSTEM, np.asarray(U), H0, backwards=True)
    assert error(y_back, expected[0]) < 1e-13 and error(h_back, expected[1]) < 1e-13


@pytest.mark.parametrize("method", METHODS[1:])
def test_gradients_agree(runs, method):
    for got, wanted in zip(runs[method][2], runs["sequential"][2], strict=True):
        assert error(got, wanted) < 1e-12


def test_gradients_are_right(runs):
    """Central differences of the NumPy loop, of the angle and of the constant size."""

    def loss(A):
        y, h, _ = loop(dataclasses.replace(SYSTEM, A=A), np.asarray(U), H0)
        return np.sin(y).sum() + (h**2).sum()

    for name, place, gradient in (
        ("angle", (3, 1), runs["checkpointed"][2][0]),
        ("size", (1,), runs["checkpointed"][2][1]),
    ):
        x = np.asarray(getattr(SYSTEM.A, name))
        delta = np.zeros_like(x)
        delta[place] = 1e-6
        ends = [
            loss(dataclasses.replace(SYSTEM.A, **{name: jnp.asarray(x + s * delta)}))  # pyright: ignore[reportArgumentType]
            for s in (1, -1)
        ]
        assert abs((ends[0] - ends[1]) / 2e-6 - gradient[place]) < 1e-7 * abs(gradient[place])


def test_chunked_says_what_to_use():
    with pytest.raises(ValueError, match=r"does not run Rotation.*checkpointed"):
        scan(SYSTEM, U, method="chunked")
    found = dsfjax.explain(SYSTEM)
    assert found.method == "checkpointed" and "Rotation" in found.structure


def test_decoding_and_slices():
    y, h = compiled(scan)(SYSTEM, U)
    state, run = None, compiled(step)
    for t in range(L):
        y_t, state = run(dsfjax.slice_time(SYSTEM, t, t + 1), U[t], state)
        assert error(y_t, y[t]) < 1e-13
    assert error(state, h) < 1e-13


def outputs(system, length=L):
    return loop(system, np.asarray(U), np.zeros((H, 2, P)))[0]


def test_matrices_kernel_and_coordinates():
    expected = outputs(SYSTEM)
    dense, full, phi = compiled(
        lambda s: (dsfjax.to_dense(s), dsfjax.materialize(s, full=True), dsfjax.materialize(s))
    )(SYSTEM)
    assert dense.A.shape == (L, 12, 12) and phi.shape == (H, P, L, L)
    assert error(np.einsum("tosd,sd->to", full, U), expected) < 1e-13
    log_t = jnp.asarray(np.random.default_rng(3).normal(size=(L, H)))
    for other in (
        dense,
        compiled(dsfjax.rescale)(SYSTEM, log_t),
        compiled(dsfjax.pad_state, n=4)(SYSTEM),
        dsfjax.concat_time(*(dsfjax.slice_time(SYSTEM, *x) for x in ((0, 5), (5, L)))),
    ):
        y, _ = compiled(scan)(other, U)
        assert error(y, expected) < 1e-12


def test_parallel_and_series():
    first, second = SYSTEM, build(5, reset=False)
    second = dataclasses.replace(
        second,
        B=dataclasses.replace(second.B, W=normal(np.random.default_rng(6), H * P, H * P)),  # pyright: ignore[reportArgumentType]
    )
    both = compiled(dsfjax.parallel)(first, first)
    assert error(compiled(scan)(both, U)[0], 2 * outputs(first)) < 1e-13
    chain = compiled(dsfjax.series)(first, second)
    expected = loop(second, outputs(first), np.zeros((H, 2, P)))[0]
    assert error(compiled(scan)(chain, U)[0], expected) < 1e-12


def test_summaries_combine():
    halves = [
        compiled(dsfjax.summarize)(dsfjax.slice_time(SYSTEM, a, b), U[a:b])
        for a, b in ((0, 3), (3, L))
    ]
    whole = dsfjax.combine(*halves)
    expected = loop(SYSTEM, np.asarray(U), H0)[1]
    assert error(whole.apply(H0), expected) < 1e-12


def test_eigenvalues_are_those_of_the_rotation():
    values = np.asarray(compiled(analysis.eigenvalues)(build(reset=False)))
    size, turn = np.asarray(SYSTEM.A.size), np.asarray(SYSTEM.A.angle)  # pyright: ignore[reportAttributeAccessIssue]
    angle = turn + np.asarray(SYSTEM.A.turns) * np.pi / 2  # pyright: ignore[reportAttributeAccessIssue]
    expected = size[None] * np.exp(1j * np.abs(np.angle(np.exp(1j * angle))))
    found = np.where(values.imag[..., 0] > values.imag[..., 1], values[..., 0], values[..., 1])  # pyright: ignore[reportAttributeAccessIssue]
    assert error(found, expected) < 1e-12


@pytest.mark.slow  # one program of all analyses
def test_every_analysis_runs():
    """Each public function of one system, on a system with a normaliser; values where simple."""
    plain = build(reset=False)
    eta = dsfjax.GivenNormalizer(0.1 * U[:, :H])
    system = dataclasses.replace(plain, eta=eta)
    dense = dsfjax.System(
        dsfjax.Dense(plain.A.matrix()), plain.B, plain.C, eta=eta, state_shape=plain.state_shape
    )
    dy = jnp.cos(jnp.arange(L * H * P, dtype=float)).reshape(L, H * P)
    marks = jnp.array([1, 4])
    calls = {
        "eigenvalues": lambda s: analysis.eigenvalues(s),
        "log_eigenvalues": lambda s: analysis.log_eigenvalues(s),
        "spectrum": lambda s: analysis.spectrum(s),
        "outside": lambda s: analysis.outside(s),
        "horizons": lambda s: analysis.horizons(s, 0.1),
        "half_life": lambda s: analysis.half_life(s),
        "lyapunov_exponents": lambda s: analysis.lyapunov_exponents(s),
        "normalizers": lambda s: analysis.normalizers(s).log,
        "normalized": lambda s: scan(analysis.normalized(s), U)[0],
        "state_gradients": lambda s: analysis.state_gradients(s, dy),
        "gradient_norms": lambda s: analysis.gradient_norms(s, dy),
        "gramians": lambda s: analysis.gramians(s, at=[5]),
        "state_use": lambda s: analysis.state_use(s),
        "balanced_truncation": lambda s: analysis.balanced_truncation(s, 1).singular_values,
        "state_covariance": lambda s: analysis.state_covariance(s, U),
        "mean_age": lambda s: analysis.mean_age(s),
        "retention": lambda s: analysis.retention(s, U, marks),
        "stability": lambda s: analysis.stability(s, U),
        "impulse_response": lambda s: analysis.impulse_response(s, 2, U[0]),
        "receptive_field": lambda s: analysis.receptive_field(s),
        "attention_map": lambda s: analysis.attention_map(s, 5),
        "equivalent": lambda s: analysis.equivalent(s, s),
        "mean_gramians": lambda s: analysis.mean_gramians(s),
        "written": lambda s: analysis.written(s, U),
        "response": lambda s: analysis.response(s, 2, analysis.written(s, U)[2]),
        "effect": lambda s: analysis.effect(s, U, analysis.scale_write(s, 2, 0.0)),
        "scale_write": lambda s: scan(analysis.scale_write(s, 2, 0.5, head=0), U)[0],
        "replace_write": lambda s: scan(
            *analysis.replace_write(s, U, 2, value=jnp.ones(H * P)), method="sequential"
        )[0],
        "scale_gate": lambda s: scan(analysis.scale_gate(s, "forget", 0.5, step=3), U)[0],
        "replace_gate": lambda s: scan(analysis.replace_gate(s, "output", 1.0, step=3), U)[0],
        "freeze_decay": lambda s: scan(analysis.freeze_decay(s, 3), U)[0],
    }
    run = compiled(lambda s: {name: call(s) for name, call in calls.items()})
    mine, reference = run(system), run(dense)
    for name in calls:
        pairs = zip(jax.tree.leaves(mine[name]), jax.tree.leaves(reference[name]), strict=True)
        for got, wanted in pairs:
            np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-10, err_msg=name)
    public = {
        name
        for name, f in vars(analysis).items()
        if inspect.isfunction(f) and "System" in str(inspect.signature(f).parameters.get("system"))
    }
    of_kernels = {n for n in public if "KernelSystem" == _annotation(n, "system")}
    assert public - of_kernels <= set(calls)


def _annotation(name: str, parameter: str) -> str:
    return str(inspect.signature(getattr(analysis, name)).parameters[parameter].annotation)
