"""Operations and memory traffic of any function, counted on its jaxpr: nothing is run or allocated.

Counting follows XLA's conventions, so that the two can be compared: one for every arithmetic
operation on an element (comparisons, selections and conversions included), two for a multiplication
and addition in a matrix product, exponentials and their kind apart. Unlike XLA's, the count
multiplies the body of a loop by its number of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import Jaxpr, Literal
from jax.interpreters.partial_eval import dce_jaxpr

from dsfjax.cost.jaxpr_rules import (
    CALLS,
    ELEMENTWISE,
    EXPANDED,
    MOVES,
    OPAQUE,
    REDUCTIONS,
    RELABELLED,
    TRANSCENDENTAL,
    UPDATES,
    VIEWS,
    flops,
    nbytes,
    size,
)
from dsfjax.engines.guard import AT_MOST, RARE


class Operations(NamedTuple):
    """What a function does.

    Attributes:
        flops: Arithmetic operations on real numbers; transcendental functions not among them.
        transcendentals: Evaluations of exp, log, tanh, √ and the like.
        bytes: Bytes read and written, if element-wise operations fuse into what uses them.
        notes: What the count leaves out, in words; empty if nothing.
    """

    flops: int
    transcendentals: int
    bytes: int
    notes: tuple[str, ...] = ()


def count_operations(
    f: Callable[..., Any], *args: Any, loop_bodies_once: bool = False
) -> Operations:
    """Count the operations of ``f(*args)``.

    Args:
        f: A function that JAX can trace.
        *args: Arrays, or `jax.ShapeDtypeStruct` in their place: sizes of any kind cost nothing.
        loop_bodies_once: Count the body of a loop once instead of once per step, as
            ``compiled.cost_analysis()`` does.

    Returns:
        An `Operations`.

    Numerics:
        Complex arithmetic counts as its real operations (6 for a product, 2 for a sum), where XLA
        counts one. A loop whose number of steps is not static counts once and is noted; those of
        attention over blocks of keys count as if all blocks were seen. Branches count as the most
        expensive one; a branch for inputs that are not finite does not count. Random numbers count
        as nothing, and so does what depends on constants alone, which the compiler computes. Bytes
        are a model of a compiler that fuses element-wise operations into what reads them and keeps
        nothing in caches: matrix products, reductions and loops read and write memory.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jax.ShapeDtypeStruct((100_000, 100_000), jnp.float32)
        >>> count_operations(lambda x: jnp.exp(x @ x), x)[:2]
        (2000000000000000, 10000000000)
    """
    whole = jax.make_jaxpr(f)(*args).jaxpr
    # The compiler leaves out what no output needs, within calls and loops, too.
    jaxpr, _ = dce_jaxpr(whole, [True] * len(whole.outvars), instantiate=True)
    counter = _Counter(loop_bodies_once)
    inputs = [_Value(nbytes(v.aval), stored=True) for v in jaxpr.invars]
    for out in counter.run(jaxpr, inputs):
        counter.store(out)
    notes = tuple(sorted(counter.notes))
    return Operations(counter.flops, counter.transcendentals, counter.bytes, notes)


class _Value:
    """An array: stored in memory, or an expression of stored ones that has yet to be evaluated.

    Attributes:
        nbytes: Its size.
        stored: Whether it is in memory.
        known: Whether it depends on constants alone.
    """

    def __init__(
        self,
        nbytes: int,
        *,
        stored: bool,
        sources: frozenset[_Value] = frozenset(),
        known: bool = False,
    ):
        self.nbytes, self.stored, self._sources, self.known = nbytes, stored, sources, known

    @property
    def sources(self) -> frozenset[_Value]:
        """What is read when this is."""
        return frozenset({self}) if self.stored else self._sources


class _Counter:
    """Interprets a jaxpr, adding up."""

    def __init__(self, loop_bodies_once: bool) -> None:
        self.loop_bodies_once = loop_bodies_once
        self.flops = self.transcendentals = self.bytes = 0
        self.notes: set[str] = set()
        self._most: int | None = None  # steps of a loop that says so

    def run(self, jaxpr: Jaxpr, inputs: Sequence[_Value]) -> list[_Value]:
        """Count all equations; return the outputs."""
        values: dict[Any, _Value] = {}
        for var in jaxpr.constvars:
            values[var] = _Value(nbytes(var.aval), stored=True, known=True)
        values.update(zip(jaxpr.invars, inputs, strict=True))

        def read(atom: Any) -> _Value:
            constant = isinstance(atom, Literal)
            return _Value(0, stored=False, known=True) if constant else values[atom]

        for eqn in jaxpr.eqns:
            outputs = self._equation(eqn, [read(x) for x in eqn.invars])
            values.update(zip(eqn.outvars, outputs, strict=True))
        return [read(x) for x in jaxpr.outvars]

    def store(self, value: _Value) -> _Value:
        """Evaluate an expression into memory."""
        if not value.stored:
            if not value.known:
                self.bytes += sum(x.nbytes for x in value.sources) + value.nbytes
            value.stored = True
        return value

    def _equation(self, eqn: Any, inputs: list[_Value]) -> list[_Value]:
        name = eqn.primitive.name
        if name in ("scan", "while", "cond"):
            return self._control(eqn, inputs)
        if name in CALLS:
            inner = next(eqn.params[k] for k in ("jaxpr", "call_jaxpr", "call") if k in eqn.params)
            label, before = str(eqn.params.get("name", "")), self._most
            if label.startswith(AT_MOST):
                self._most = int(label.removeprefix(AT_MOST))
            outputs = self.run(getattr(inner, "jaxpr", inner), inputs)
            self._most = before
            return outputs
        if name == "custom_linear_solve":  # as it is solved; the others are for its derivatives
            lengths, solve = eqn.params["const_lengths"], eqn.params["jaxprs"].solve
            begin = lengths.matvec + lengths.vecmat
            own = inputs[begin : begin + lengths.solve] + inputs[sum(lengths) :]
            return self.run(solve.jaxpr, own)
        out = [v.aval for v in eqn.outvars]
        known = all(x.known for x in inputs) and not eqn.effects
        if not known:
            self.flops += flops(eqn)
        if name in TRANSCENDENTAL and not known:
            self.transcendentals += EXPANDED.get(name, (0, 1))[1] * size(out[0])
        if name in RELABELLED:
            return [inputs[0]]  # the same numbers in the same order: evaluated once for both
        if name in VIEWS and inputs[0].stored:
            return [_Value(nbytes(aval), stored=True, known=known) for aval in out]
        if name in ELEMENTWISE | TRANSCENDENTAL | MOVES:
            sources = frozenset().union(*(x.sources for x in inputs))
            return [_Value(nbytes(x), stored=False, sources=sources, known=known) for x in out]
        if known:  # what is read of it is its numbers
            return [_Value(nbytes(aval), stored=True, known=True) for aval in out]
        return self._through_memory(eqn, inputs, out)

    def _through_memory(self, eqn: Any, inputs: list[_Value], out: list[Any]) -> list[_Value]:
        """Operations that read their operands from memory and write their results to it."""
        name, written = eqn.primitive.name, sum(nbytes(aval) for aval in out)
        if name in REDUCTIONS:
            self.bytes += sum(x.nbytes for x in frozenset().union(*(x.sources for x in inputs)))
        elif name == "gather":
            self.store(inputs[0])
            self.bytes += written
        elif name in UPDATES:  # in place: only what changes is read and written
            changes = self.store(inputs[UPDATES[name]])
            self.store(inputs[0])
            self.bytes += changes.nbytes
            written = changes.nbytes
        else:
            if name not in OPAQUE and not name.startswith("random_"):
                self.notes.add(f"{name} is not known: counted as its memory traffic alone")
            read = sum(self.store(x).nbytes for x in inputs)
            self.bytes += read
        self.bytes += written
        return [_Value(nbytes(aval), stored=True) for aval in out]

    def _body(self, jaxpr: Jaxpr, steps: int) -> None:
        """A loop body on stored inputs, ``steps`` times."""
        inner = _Counter(self.loop_bodies_once)
        inputs = [_Value(nbytes(v.aval), stored=True) for v in jaxpr.invars]
        for out in inner.run(jaxpr, inputs):
            inner.store(out)
        self._add(inner, 1 if self.loop_bodies_once else steps)

    def _add(self, other: _Counter, times: int) -> None:
        self.flops += times * other.flops
        self.transcendentals += times * other.transcendentals
        self.bytes += times * other.bytes
        self.notes |= other.notes

    def _control(self, eqn: Any, inputs: list[_Value]) -> list[_Value]:
        """A loop or a choice of branches: operands and results are in memory."""
        name, params = eqn.primitive.name, eqn.params
        for x in inputs:
            self.store(x)
        if name == "scan":
            self._body(params["jaxpr"].jaxpr, params["length"])
        elif name == "while":
            if self._most is None:
                self.notes.add("while: its number of steps is not static, counted as one")
            for part in ("cond_jaxpr", "body_jaxpr"):
                self._body(params[part].jaxpr, self._most or 1)
        else:
            common = [branch.jaxpr for branch in params["branches"] if not _is_rare(branch.jaxpr)]
            branches = [_Counter(self.loop_bodies_once) for _ in common]
            for counter, branch in zip(branches, common, strict=True):
                counter._body(branch, 1)
            self._add(max(branches, key=lambda c: (c.flops, c.bytes)), 1)
        return [_Value(nbytes(v.aval), stored=True) for v in eqn.outvars]


def _is_rare(branch: Jaxpr) -> bool:
    """Whether a branch runs only for inputs that are not finite, which no estimate includes."""
    return any(eqn.params.get("name") == RARE for eqn in branch.eqns)
