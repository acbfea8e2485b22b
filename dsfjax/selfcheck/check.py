r"""Every engine on this device and in this precision, against float64 on the host.

The systems are random (`problems`), with resets, strong decays and decays of 0. Outputs and the
last state are compared with a loop over the matrices of `to_dense`,

.. math:: h_t = A_t h_{t-1} + B_t u_t, \qquad y_t = \mathrm{Re}(C_t h_t) + D_t u_t,

in NumPy; gradients, from cotangents of both, with those of the sequential engine in float64. Inputs
are rounded to the precision first, so that errors are those of the computation alone.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dsfjax._util.ahead import compiled
from dsfjax._util.errors import host, normwise
from dsfjax.core import KernelSystem, KVCache, to_dense
from dsfjax.engines import methods, scan
from dsfjax.selfcheck.problems import STRUCTURES, Problem

# Largest normwise errors of values and gradients. In bfloat16 outputs, gradients and the operands
# of products are rounded to 8 bits, a relative error of 2^-8 each, while states and sums are
# float32. Four such roundings in a row are allowed, and eight in a backward pass.
BOUNDS = {
    "float32": (2e-6, 1e-5),
    "bfloat16": (2.0**-6, 2.0**-5),
    "float64": (1e-12, 1e-11),
}


class Check(NamedTuple):
    """One engine on one structure.

    Attributes:
        structure: Of the transition and the maps around it.
        method: The engine.
        value_error: Normwise, the worse of outputs and last state; infinite where anything is NaN.
        gradient_error: Normwise, the worst over the arrays of the system, u and h0.
        worst: The array with that gradient error.
        value_bound: What the value error may be.
        gradient_bound: What the gradient error may be.
        failure: The exception, if the engine raised one.
    """

    structure: str
    method: str
    value_error: float
    gradient_error: float
    worst: str
    value_bound: float
    gradient_bound: float
    failure: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the engine ran and both errors are within their bounds."""
        within = self.value_error <= self.value_bound
        return within and self.gradient_error <= self.gradient_bound and self.failure is None


def selfcheck(
    dtype: str = "float32", *, structures: Sequence[str] | None = None, seed: int = 0
) -> Iterator[Check]:
    """Check every engine on every structure it runs.

    Args:
        dtype: Precision of system and tokens: "float32", "bfloat16" or "float64".
        structures: Names of `dsfjax.selfcheck.STRUCTURES`; all by default.
        seed: Of the random systems.

    Yields:
        A `Check` per pair, structure by structure, from the default device.

    Raises:
        ValueError: For another precision.

    Numerics:
        Bounds: 2e-6 and 1e-5 (value, gradient) in float32 at full precision of products, 1e-12 and
        1e-11 in float64, 2^-6 and 2^-5 in bfloat16.

    Example:
        >>> found = list(selfcheck(structures=["dense"]))
        >>> found[0].method, all(check.ok for check in found)
        ('sequential', True)
    """
    if dtype not in BOUNDS:
        raise ValueError(f"selfcheck: expected dtype to be one of {list(BOUNDS)}, got {dtype!r}.")
    names = list(STRUCTURES) if structures is None else structures
    for structure in compiled((_Structure(name, dtype, seed) for name in names), lead=2):
        yield from structure.checks()


class _Structure:
    """One structure with all its programs: lowered here, compiled elsewhere, run here."""

    def __init__(self, name: str, dtype: str, seed: int) -> None:
        self.name, self.dtype = name, dtype
        with _wide():
            self.problem = _rounded(STRUCTURES[name](np.random.default_rng(seed)), dtype)
            wide = _widened(self.problem)
            is_kernel = isinstance(wide.system, KernelSystem)
            self.dense = None if is_kernel else _Program(jax.jit(to_dense), (wide.system,))
            shapes = jax.eval_shape(lambda problem: _outputs(problem, "sequential"), wide)
            bars = _cotangents(shapes, dtype)
            self.gradients = _pull_back(wide, "sequential", bars)
        with jax.enable_x64(dtype == "float64"):
            self.engines = {
                method: _pull_back(self.problem, method, bars) for method in methods(wide.system)
            }

    def compile(self) -> _Structure:
        for program in (self.dense, self.gradients, *self.engines.values()):
            if program is not None:
                program.compile()
        return self

    def checks(self) -> list[Check]:
        with _wide():
            expected = _reference(self.problem, self.dense)
            gradients = [np.asarray(x) for x in self.gradients()[1]]
        return [self._check(method, expected, gradients) for method in self.engines]

    def _check(
        self, method: str, expected: tuple[np.ndarray, Any], gradients: list[np.ndarray]
    ) -> Check:
        bounds = BOUNDS[self.dtype]
        try:
            with jax.enable_x64(self.dtype == "float64"):
                out, found = self.engines[method]()
        except Exception as error:  # an engine that raises is off; the others are still checked
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            return Check(self.name, method, math.inf, math.inf, "", *bounds, reason)
        pairs = zip(jax.tree.leaves(out), jax.tree.leaves(expected), strict=True)
        value_error = max(normwise(x, y) for x, y in pairs)
        errors = [normwise(x, y) for x, y in zip(found, gradients, strict=True)]
        worst = max(range(len(errors)), key=errors.__getitem__)
        leaf = _names(self.problem)[worst]
        return Check(self.name, method, value_error, errors[worst], leaf, *bounds)


class _Program:
    """A program and its arguments; what goes wrong on its way is raised when it is called."""

    def __init__(self, function: Any, arguments: tuple[Any, ...]) -> None:
        self._arguments, self._stage, self._error = arguments, None, None
        self._reach(lambda: function.lower(*arguments))

    def _reach(self, stage: Callable[[], Any]) -> None:
        try:
            self._stage = stage()
        except Exception as error:
            self._error = error

    def compile(self) -> None:
        if self._error is None:
            self._reach(self._stage.compile)  # type: ignore[union-attr]

    def __call__(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._stage(*self._arguments)  # type: ignore[misc]


@contextlib.contextmanager
def _wide() -> Iterator[None]:
    """Float64 on the host."""
    with jax.enable_x64(True), jax.default_device(host()):
        yield


def _pull_back(problem: Problem, method: str, bars: Any) -> _Program:
    """Outputs and gradients to everything that is differentiable."""
    arrays, rebuild = _differentiable(jax.tree.map(jnp.asarray, problem))

    @jax.jit
    def run(arrays: list[Array], bars: Any) -> tuple[Any, list[Array]]:
        out, pull = jax.vjp(lambda x: _outputs(rebuild(x), method), arrays)
        bars = jax.tree.map(lambda bar, x: bar.astype(x.dtype), bars, out)
        return out, pull(bars)[0]

    return _Program(run, (arrays, jax.tree.map(jnp.asarray, bars)))


def _outputs(problem: Problem, method: str) -> tuple[Array, Any]:
    y, h = scan(*problem, method=method)
    return y, (h.k, h.v) if isinstance(h, KVCache) else h


def _reference(problem: Problem, to_matrices: Callable[[], Any] | None) -> tuple[np.ndarray, Any]:
    """Outputs and last state in float64, by NumPy; ``to_matrices`` gives the dense form."""
    system, u, h0 = _widened(problem)
    if isinstance(system, KernelSystem):
        return _attention(system, np.asarray(u))
    assert to_matrices is not None
    dense = to_matrices()
    A, B, C, D = (np.asarray(x) for x in (dense.A, dense.B, dense.C, dense.D))
    h, u, y = np.asarray(h0).reshape(-1), np.asarray(u), np.zeros(C.shape[:2])
    twice = 2 if system.is_complex and system.C.conjugate_pairs else 1
    for t in range(len(u)):
        h = A[t] @ h + B[t] @ u[t]
        y[t] = twice * np.real(C[t] @ h) + D[t] @ u[t]
    return y, h.reshape(system.state_shape)


def _attention(system: KernelSystem, u: np.ndarray) -> tuple[np.ndarray, Any]:
    """Softmax attention within documents, query by query; the last state is keys and values."""
    q, k = np.asarray(system.q), np.asarray(system.k)
    length, heads, _ = q.shape
    v = (u @ np.asarray(system.W).T).reshape(length, heads, -1)
    document = np.cumsum(np.asarray(system.reset))
    y = np.zeros_like(v)
    for t in range(length):
        seen = np.flatnonzero(document[: t + 1] == document[t])
        for h in range(heads):
            weight = np.exp(k[seen, h * k.shape[1] // heads] @ q[t, h])
            y[t, h] = weight @ v[seen, h] / weight.sum()
    return y.reshape(length, -1), (k, v)


def _cotangents(shapes: Any, dtype: str) -> Any:
    """Random cotangents of outputs and last state; those of outputs are exact in ``dtype``."""
    rng = np.random.default_rng(1)

    def draw(x: Any) -> np.ndarray:
        bar = rng.normal(size=x.shape)
        return bar + 1j * rng.normal(size=x.shape) if x.dtype.kind == "c" else bar

    y, h = jax.tree.map(draw, shapes)
    single = jax.tree.map(lambda x: np.asarray(x, np.complex64 if x.dtype.kind == "c" else "f4"), h)
    return np.asarray(y.astype(jnp.dtype(dtype)), np.float64), h if dtype == "float64" else single


def _differentiable(tree: Any) -> tuple[list[Array], Callable[[list[Array]], Any]]:
    """The real and complex leaves, and a function that puts others in their place."""
    leaves, structure = jax.tree.flatten(tree)
    places = [i for i, x in enumerate(leaves) if jnp.issubdtype(x.dtype, jnp.inexact)]

    def rebuild(arrays: list[Array]) -> Any:
        new = dict(enumerate(leaves)) | dict(zip(places, arrays, strict=True))
        return jax.tree.unflatten(structure, [new[i] for i in range(len(leaves))])

    return [leaves[i] for i in places], rebuild


def _names(problem: Problem) -> list[str]:
    return [
        jax.tree_util.keystr(path).lstrip(".")
        for path, x in jax.tree_util.tree_leaves_with_path(problem)
        if jnp.issubdtype(x.dtype, jnp.inexact)
    ]


def _rounded(problem: Problem, dtype: str) -> Problem:
    """To the precision; the state, and whatever is complex, at least to single."""

    def cast(x: Any, real: Any) -> np.ndarray:
        x = np.asarray(x)
        if x.dtype.kind == "c":
            return x if dtype == "float64" else x.astype(np.complex64)
        return x.astype(real) if x.dtype.kind == "f" else x

    state = np.float64 if dtype == "float64" else np.float32
    system, u = jax.tree.map(lambda x: cast(x, jnp.dtype(dtype)), problem[:2])
    return Problem(system, u, jax.tree.map(lambda x: cast(x, state), problem.h0))


def _widened(problem: Problem) -> Problem:
    def cast(x: Any) -> Array:
        if x.dtype == bool:
            return jnp.asarray(x)
        return jnp.asarray(x, jnp.complex128 if np.iscomplexobj(x) else jnp.float64)

    return jax.tree.map(cast, problem)
