r"""Every engine on this device, in every precision, against float64 on the host.

The systems are random (`problems`), with resets, strong decays and decays of 0. Outputs and the
last state are compared with a loop over the matrices of `to_dense`,

.. math:: h_t = A_t h_{t-1} + B_t u_t, \qquad y_t = \mathrm{Re}(C_t h_t) + D_t u_t,

in NumPy, or with attention query by query; with the sequential engine in float64 where the
matrices belong to another state (a normaliser) or do not exist (keys and weights that a transition
changes). Gradients, from cotangents of outputs and last state, are compared with those of the
sequential engine in float64. Inputs are rounded to the precision first, so that errors are those
of the computation alone.

Every op of `dsfjax.ops` is run as it is called (`called`), and its results and gradients are
compared with those of the same call in float64 on the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dsfjax import ops
from dsfjax._util.ahead import compiled, quick_options
from dsfjax._util.errors import BOUNDS, lacks, normwise
from dsfjax._util.names import choose
from dsfjax.analysis.normalizer import has_finite_state
from dsfjax.core import KernelSystem, KVCache, Precision, to_dense
from dsfjax.core.policy import DEFAULT
from dsfjax.engines import methods, scan
from dsfjax.selfcheck.called import Called
from dsfjax.selfcheck.found import Check
from dsfjax.selfcheck.problems import STRUCTURES, Problem
from dsfjax.selfcheck.programs import (
    Program,
    as_arrays,
    float64_on_host,
    input_dtype,
    lowered,
    parted,
    policy_of,
    widened,
)


def selfcheck(
    precisions: Sequence[str] = ("float32",),
    *,
    structures: Sequence[str] | None = None,
    seed: int = 0,
) -> Iterator[Check]:
    """Check every engine on every structure it runs, and every op.

    Args:
        precisions: Of "float32", "bfloat16", "tf32" and "float64". The first three are those that
            commands take; bfloat16 rounds the arrays of the system and the tokens, tf32 the
            operands of products, on which ops, that compute in full precision, are not checked.
        structures: Names of `dsfjax.selfcheck.STRUCTURES` and of `dsfjax.ops.names()`; by default
            all. An op of several names is checked once.
        seed: Of the random systems and arguments.

    Yields:
        A `Check` for each structure, precision and engine, in this order, then for each op and
        precision, from the default device.

    Raises:
        ValueError: For an unknown precision, tf32 on a device without it, an unknown structure, or
            an op of your own whose annotations do not say the axes of its arrays.

    Numerics:
        Bounds (value, gradient): 2e-6 and 1e-5 in float32 at full precision of products, 2^-6 and
        2^-5 in bfloat16, 2^-9 and 2^-8 in tf32, 1e-12 and 1e-11 in float64.

    Example:
        >>> found = list(selfcheck(structures=["dense"]))
        >>> found[0].method, all(check.ok for check in found)
        ('sequential', True)
    """
    for precision in precisions:
        choose("precision", precision, BOUNDS)
        if reason := lacks(precision):
            raise ValueError(f"selfcheck: expected another precision, got {precision}: {reason}.")
    names = [*STRUCTURES, *ops.names()] if structures is None else structures
    for name in names:
        choose("structure or op", name, (*STRUCTURES, *ops.names()))
    # Not by name: one function may have several.
    called: dict[Callable[..., Any], ops.Op[..., Any]] = {}
    for name in names:
        if name not in STRUCTURES:
            op = getattr(ops, name)
            called.setdefault(op.function, op)

    def subjects() -> Iterator[_Structure | Called]:
        yield from (_Structure(name, precisions, seed) for name in names if name in STRUCTURES)
        yield from (Called(op, precisions, seed) for op in called.values())

    for subject in compiled(subjects(), lead=2):
        yield from subject.checks()


class _Structure:
    """One structure with all its programs: lowered here, compiled elsewhere, run here."""

    def __init__(self, name: str, precisions: Sequence[str], seed: int) -> None:
        self.name = name
        with float64_on_host():
            exact = STRUCTURES[name](np.random.default_rng(seed))
            wide = widened(exact)
            self.dense = lowered(jax.jit(to_dense), wide.system) if _has_matrices(wide) else None
            shapes = jax.eval_shape(lambda problem: _outputs(problem, "sequential"), wide)
            # Tf32 has the inputs of float32, and so the same reference.
            dtypes = dict.fromkeys(map(input_dtype, precisions))
            self.problems = {dtype: _rounded(exact, dtype) for dtype in dtypes}
            self.bars = {dtype: _cotangents(shapes, dtype) for dtype in dtypes}
            bars = next(iter(self.bars.values()))
            self.sequential = _pull_back(wide, "sequential", DEFAULT, widened(bars))
        self.engines = {}
        for precision in precisions:
            dtype = input_dtype(precision)
            problem, bars, policy = self.problems[dtype], self.bars[dtype], policy_of(precision)
            with jax.enable_x64(dtype == "float64"):
                self.engines[precision] = {
                    method: _pull_back(problem, method, policy, bars)
                    for method in methods(wide.system)
                }

    def compile(self) -> _Structure:
        engines = (program for programs in self.engines.values() for program in programs.values())
        for program in (self.dense, self.sequential, *engines):
            if program is not None:
                # Every program runs once. On a CPU the compiler would take seven times as long to
                # optimise it; what is checked are the engines, not the optimiser.
                program.compile(**quick_options())
        return self

    def checks(self) -> Iterator[Check]:
        references = {dtype: self._reference(dtype) for dtype in self.problems}
        for precision, programs in self.engines.items():
            for method, program in programs.items():
                yield self._check(precision, method, program, *references[input_dtype(precision)])

    def _reference(self, dtype: str) -> tuple[Any, list[np.ndarray]]:
        """Outputs and last state, and the gradients, in float64."""
        problem = self.problems[dtype]
        with float64_on_host():
            wide = widened(problem)
            out, gradients = self.sequential(*parted(wide), widened(self.bars[dtype]))
            dense = None if self.dense is None else self.dense(wide.system)
            return _expected(problem, dense, out), [np.asarray(x) for x in gradients]

    def _check(
        self, precision: str, method: str, program: Program, expected: Any, gradients: list[Any]
    ) -> Check:
        bounds, dtype = BOUNDS[precision], input_dtype(precision)
        problem = self.problems[dtype]
        try:
            with jax.enable_x64(dtype == "float64"):
                out, found = program(*parted(as_arrays(problem)), as_arrays(self.bars[dtype]))
        except Exception as error:  # an engine that raises is off; the others are still checked
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            return Check(self.name, method, precision, math.inf, math.inf, "", *bounds, reason)
        pairs = zip(jax.tree.leaves(out), jax.tree.leaves(expected), strict=True)
        value_error = max(normwise(x, y) for x, y in pairs)
        errors = [normwise(x, y) for x, y in zip(found, gradients, strict=True)]
        worst = max(range(len(errors)), key=errors.__getitem__)
        leaf = _names(problem)[worst]
        return Check(self.name, method, precision, value_error, errors[worst], leaf, *bounds)


def _pull_back(problem: Problem, method: str, policy: Precision, bars: Any) -> Program:
    """Outputs and gradients to everything that is differentiable."""
    problem = as_arrays(problem)
    structure = jax.tree.structure(problem)

    @jax.jit
    def run(arrays: Any, rest: Any, bars: Any) -> tuple[Any, list[Array]]:
        def outputs(arrays: Any) -> Any:
            leaves = arrays | rest
            problem = jax.tree.unflatten(structure, [leaves[i] for i in range(len(leaves))])
            return _outputs(problem, method, policy)

        out, pull = jax.vjp(outputs, arrays)
        bars = jax.tree.map(lambda bar, x: bar.astype(x.dtype), bars, out)
        return out, jax.tree.leaves(pull(bars))

    return lowered(run, *parted(problem), as_arrays(bars))


def _outputs(problem: Problem, method: str, policy: Precision = DEFAULT) -> tuple[Array, Any]:
    y, h = scan(*problem, method=method, precision=policy)
    return y, (h.k, h.v) if isinstance(h, KVCache) else h


def _has_matrices(problem: Problem) -> bool:
    """Whether the dense form is one of the state that `scan` carries."""
    return has_finite_state(problem.system) and problem.system.eta is None


def _expected(problem: Problem, dense: Any, sequential: Any) -> Any:
    """Outputs and last state in float64: by NumPy, or else what the sequential engine gave."""
    system, u, h0 = widened(problem)
    if not has_finite_state(system):
        y, cache = sequential
        return (_attention(system, np.asarray(u)) if system.transition is None else y), cache
    if dense is None:
        return sequential
    A, B, C, D = (np.asarray(x) for x in (dense.A, dense.B, dense.C, dense.D))
    h, u, y = np.asarray(h0).reshape(-1), np.asarray(u), np.zeros(C.shape[:2])
    twice = 2 if system.is_complex and system.C.conjugate_pairs else 1
    for t in range(len(u)):
        before, h = h, A[t] @ h + B[t] @ u[t]
        y[t] = twice * np.real(C[t] @ (before if system.C.before_update else h)) + D[t] @ u[t]
    return y, h.reshape(system.state_shape)


def _attention(system: KernelSystem, u: np.ndarray) -> np.ndarray:
    """Softmax attention within documents, query by query."""
    q, k = np.asarray(system.q), np.asarray(system.k)
    length, heads, _ = q.shape
    v = (u @ np.asarray(system.W).T).reshape(length, heads, -1)
    sinks = np.zeros(heads) if system.sink is None else np.exp(np.asarray(system.sink))
    cap, window, document = system.soft_cap, system.window, np.cumsum(np.asarray(system.reset))
    y = np.zeros_like(v)
    for t in range(length):
        seen = np.flatnonzero(document[: t + 1] == document[t])
        if window is not None:
            seen = seen[(seen > t - window) | (seen < seen[0] + system.keep_first)]
        for h in range(heads):
            score = k[seen, h * k.shape[1] // heads] @ q[t, h]
            weight = np.exp(score if cap is None else cap * np.tanh(score / cap))
            y[t, h] = weight @ v[seen, h] / (weight.sum() + sinks[h])
    return y.reshape(length, -1)


def _cotangents(shapes: Any, dtype: str) -> Any:
    """Random cotangents of outputs and last state; those of outputs are exact in ``dtype``."""
    rng = np.random.default_rng(1)

    def draw(x: Any) -> np.ndarray:
        bar = rng.normal(size=x.shape)
        return bar + 1j * rng.normal(size=x.shape) if x.dtype.kind == "c" else bar

    y, h = jax.tree.map(draw, shapes)
    single = jax.tree.map(lambda x: np.asarray(x, np.complex64 if x.dtype.kind == "c" else "f4"), h)
    return np.asarray(y.astype(jnp.dtype(dtype)), np.float64), h if dtype == "float64" else single


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
