"""Systems made of systems: in parallel, in series, and cut and joined along time."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from dsfjax.core.dense import Matrices, matrices
from dsfjax.core.dtypes import state_dtype
from dsfjax.core.kernel import KernelSystem
from dsfjax.core.maps import DenseInput, DenseOutput
from dsfjax.core.pytree import map_time, time_leaves
from dsfjax.core.skips import DenseSkip
from dsfjax.core.steps import steps
from dsfjax.core.system import System
from dsfjax.core.transitions import Dense

AnySystem = TypeVar("AnySystem", bound=System | KernelSystem)


def parallel(a: System, b: System) -> System:
    """The sum of two systems that read the same tokens: Φ = Φ_a + Φ_b.

    Args:
        a: System of token width d and output width d_out.
        b: System of the same widths.

    Returns:
        A dense real `System` with N = N_a + N_b (twice that for complex parts): block-diagonal A,
        stacked B, adjoined C, summed D. It starts from a zero state.

    Raises:
        ValueError: If widths or lengths differ.
    """
    if a.token_width != b.token_width or a.output_width != b.output_width:
        raise ValueError(
            "parallel: expected systems of equal widths, got (d, d_out) = "
            f"{(a.token_width, a.output_width)} and {(b.token_width, b.output_width)}."
        )
    length, first, second = _dense_pair("parallel", a, b)
    zero = jnp.zeros((*first.A.shape[:2], second.A.shape[1]), first.A.dtype)
    A = _block(first.A, zero, zero.swapaxes(1, 2), second.A)
    B = jnp.concatenate([first.B, second.B], axis=1)
    C = jnp.concatenate([first.C, second.C], axis=2)
    return _from_matrices(Matrices(A, B, C, first.D + second.D), length)


def series(a: System, b: System) -> System:
    r"""System b reading the outputs of system a: Φ = Φ_b Φ_a.

    .. math:: Λ = \begin{pmatrix} Λ^a & 0 \\ B^b C^a Λ^a & Λ^b \end{pmatrix}, \quad
       B = \begin{pmatrix} B^a \\ B^b (C^a B^a + D^a) \end{pmatrix}, \quad
       C = (D^b C^a, C^b), \quad D = D^b D^a.

    Args:
        a: The first system, of output width e.
        b: The second system, of token width e.

    Returns:
        A dense real `System` with N = N_a + N_b (twice that for complex parts), zero initial state.

    Raises:
        ValueError: If widths or lengths do not fit.
    """
    if a.output_width != b.token_width:
        raise ValueError(
            f"series: expected a second system that reads tokens of width {a.output_width}, the "
            f"output width of the first, got one that reads width {b.token_width}."
        )
    length, first, second = _dense_pair("series", a, b)
    BC, BD = _matmul(second.B, first.C), _matmul(second.B, first.D)
    A = _block(first.A, jnp.zeros_like(BC).swapaxes(1, 2), _matmul(BC, first.A), second.A)
    B = jnp.concatenate([first.B, _matmul(BC, first.B) + BD], axis=1)
    C = jnp.concatenate([_matmul(second.D, first.C), second.C], axis=2)
    return _from_matrices(Matrices(A, B, C, _matmul(second.D, first.D)), length)


def slice_time(system: AnySystem, start: int, stop: int) -> AnySystem:
    """The steps start ≤ t < stop of a system.

    Running the slices one after the other with the carried state gives the whole.

    Args:
        system: Finite or kernel system of length L.
        start: First step, 0 ≤ start < L.
        stop: One past the last step.

    Returns:
        A system of length stop − start of the same structure.

    Raises:
        ValueError: If the range is empty or outside the sequence.
    """
    length = system.length
    if not 0 <= start < stop or (length is not None and stop > length):
        most = "L" if length is None else length
        raise ValueError(f"slice_time: expected 0 ≤ start < stop ≤ {most}, got {start}, {stop}.")
    cut = map_time(lambda x: x if x.shape[0] == 1 else x[start:stop], system)
    return with_length(cut, stop - start)


def with_length(system: AnySystem, length: int | None) -> AnySystem:
    """The same arrays, said to cover so many steps; nothing is checked."""
    if not hasattr(system, "state_shape"):
        return system  # a kernel system has the length of its queries
    new = object.__new__(type(system))
    for field in dataclasses.fields(system):
        value = length if field.name == "length" else getattr(system, field.name)
        object.__setattr__(new, field.name, value)
    return new


def concat_time(*systems: AnySystem) -> AnySystem:
    """Systems one after the other in time, all of one structure.

    Quantities that are constant in time must be the same in all parts where the structure has no
    time axis for them (value map, rates of a factored decay); otherwise they are written out.

    Args:
        systems: At least one system; equal types, state shapes and widths.

    Returns:
        A system whose length is the sum of the lengths.

    Raises:
        ValueError: If structures or constants differ, or nothing is given.
    """
    if not systems:
        raise ValueError("concat_time: expected at least one system, got none.")
    first = systems[0]
    structures = [jax.tree.structure(with_length(s, None)) for s in systems]
    if any(structure != structures[0] for structure in structures):
        raise ValueError(
            "concat_time: expected systems of one structure (types, state shape, optional parts), "
            f"got {[str(structure) for structure in structures]}."
        )
    lengths = [steps(s) for s in systems]
    iterators = [iter(time_leaves(s)) for s in systems]

    def join(leaf: Array) -> Array:
        parts = [next(it) for it in iterators]
        if all(part is leaf for part in parts) and leaf.shape[0] == 1:
            return leaf
        parts = [
            jnp.broadcast_to(x, (n, *x.shape[1:])) for x, n in zip(parts, lengths, strict=True)
        ]
        return jnp.concatenate(parts)

    for other in systems[1:]:
        _check_constants(first, other)
    known = all(s.length is not None for s in systems)
    return with_length(map_time(join, first), sum(lengths) if known else None)


def flip_time(system: AnySystem) -> AnySystem:
    """The system that runs backwards in time, with resets at the same document boundaries.

    A reset at step t separates t − 1 from t. Run backwards, the step that must forget is t − 1.
    """
    flipped = map_time(lambda x: x[::-1], system)
    if system.reset is None:
        return flipped
    boundaries = jnp.concatenate([jnp.zeros((1,), bool), system.reset[1:][::-1]])
    return dataclasses.replace(flipped, reset=boundaries)


def _check_constants(a: object, b: object) -> None:
    """Raise if arrays without a time axis differ (values are compared where they are known)."""
    for field in dataclasses.fields(a):  # type: ignore[arg-type]
        x, y = getattr(a, field.name), getattr(b, field.name)
        if dataclasses.is_dataclass(x):
            _check_constants(x, y)
        elif field.metadata.get("time") is False and x is not y and x is not None:
            known = not any(isinstance(v, Tracer) for v in (x, y))
            if x.shape != y.shape or (known and not np.array_equal(x, y)):
                raise ValueError(
                    f"concat_time: {type(a).__name__}.{field.name} has no time axis and must be "
                    "the same in all parts."
                )


def _dense_pair(name: str, a: System, b: System) -> tuple[int | None, Matrices, Matrices]:
    """Both systems as real matrices over the same steps, in the wider dtype."""
    lengths = {a.length, b.length} - {None}
    if len(lengths) > 1:
        raise ValueError(
            f"{name}: expected systems of one length (or constant in time), got {a.length} and "
            f"{b.length}."
        )
    for system in (a, b):
        if system.C.before_update:
            raise ValueError(
                f"{name}: expected outputs that read the state after the update; the state of the "
                "whole would have to be read both before and after it."
            )
    length = next(iter(lengths), None)
    dtype = state_dtype(a.real_dtype, b.real_dtype)
    return length, _real_matrices(a, length, dtype), _real_matrices(b, length, dtype)


def _real_matrices(system: System, length: int | None, dtype: np.dtype) -> Matrices:
    """Matrices for a real state: real and imaginary parts become separate states."""
    A, B, C, D = matrices(system, length)
    if system.is_complex:
        factor = 2 if system.C.conjugate_pairs else 1
        A = _block(A.real, -A.imag, A.imag, A.real)
        B = jnp.concatenate([B.real, B.imag], axis=1)
        C = factor * jnp.concatenate([C.real, -C.imag], axis=2)
    return Matrices(*(x.astype(dtype) for x in (A, B, C, D)))


def _from_matrices(m: Matrices, length: int | None) -> System:
    return System(
        Dense(m.A),
        DenseInput(m.B),
        DenseOutput(m.C),
        DenseSkip(m.D),
        state_shape=(1, m.A.shape[-1], 1),
        length=length,
    )


def _block(a: Array, b: Array, c: Array, d: Array) -> Array:
    return jnp.concatenate(
        [jnp.concatenate([a, b], axis=2), jnp.concatenate([c, d], axis=2)], axis=1
    )


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")
