"""A jaxpr as the graph of operations that XLA's CPU compiler makes of it, and what it stores.

`dsfjax.cost.memory` lists the rules (one graph, fusion, kernels) and finds what is alive at once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, Literal

from dsfjax.cost.jaxpr_rules import (
    CALLS,
    ELEMENTWISE,
    MOVES,
    PRODUCTS,
    REDUCTIONS,
    RELABELLED,
    TRANSCENDENTAL,
    loop_sizes,
    nbytes,
)
from dsfjax.engines.guard import RARE

BARRIER = "optimization_barrier"
FUSIBLE = (ELEMENTWISE | TRANSCENDENTAL | MOVES | {"gather"}) - {"concatenate", BARRIER}
# Not computed once more for every reader.
DEAR = TRANSCENDENTAL | {"div", "rem"}
# What a kernel of a sum or product can take with it.
TAKEN = frozenset("add sub mul div neg max min square integer_pow add_any abs sqrt rsqrt".split())
SUMS = frozenset({"reduce_sum", "reduce_max"})
KERNELS = SUMS | PRODUCTS
# Constants that fill an array of fewer bytes do not matter.
SMALL = 4096


@dataclasses.dataclass(eq=False, slots=True)
class Value:
    """An array.

    Attributes:
        shape: Its shape.
        dtype: Its dtype.
        size: Bytes of a device.
        node: What makes it; None for an input or a literal.
        literal: Its number, as text, if it is written in the jaxpr.
        readers: What reads it.
    """

    shape: tuple[int, ...]
    dtype: Any
    size: int
    node: Node | None = None
    literal: str | None = None
    readers: list[Node] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, aval: Any) -> Value:
        """A new array of the shape and dtype of an abstract one."""
        return cls(tuple(getattr(aval, "shape", ())), getattr(aval, "dtype", None), nbytes(aval))

    @property
    def aval(self) -> Any:
        """Its shape and dtype, for JAX."""
        return jax.ShapeDtypeStruct(self.shape, self.dtype)

    @property
    def kind(self) -> tuple[Any, ...]:
        """The same for arrays that can take each other's place."""
        return self.shape, str(self.dtype)


@dataclasses.dataclass(eq=False, slots=True)
class Node:
    """An operation.

    Attributes:
        name: Of its primitive.
        reads: Operands.
        makes: Results.
        params: As in the jaxpr.
        bodies: The parts of a loop, or the branches of a choice.
    """

    name: str
    reads: list[Value]
    makes: list[Value]
    params: dict[str, Any]
    bodies: list[Graph] = dataclasses.field(default_factory=list)


class Graph:
    """The operations of a jaxpr, and which of their results are in memory.

    Attributes:
        inputs: Its arguments.
        outputs: Its results.
        nodes: Its operations in order, those of calls among them.
        stored: What is in memory, with the number of its copies.
        constants: Arrays filled with one number, by shape and number: they are made once.
    """

    def __init__(self, jaxpr: Jaxpr, barriers: bool) -> None:
        self._barriers = barriers
        self.nodes: list[Node] = []
        self._known: dict[Any, list[Value]] = {}
        self.inputs = [Value.of(var.aval) for var in jaxpr.invars]
        self.outputs = self._inline(jaxpr, self.inputs)
        self._drop_unread()
        for node in self.nodes:
            node.bodies = [Graph(body, barriers) for body in _bodies(node)]
            for value in node.reads:
                value.readers.append(node)
        self._results = frozenset(self.outputs)
        self._kernel = self._kernels()
        self.stored = {
            value: self._copies(node, value)
            for node in self.nodes
            for value in node.makes
            if not self._is_part(node, value)
        }
        self.constants = self._constants()

    def _inline(self, jaxpr: Jaxpr, inputs: list[Value]) -> list[Value]:
        known: dict[Any, Value] = dict(zip(jaxpr.invars, inputs, strict=True))
        known.update((var, Value.of(var.aval)) for var in jaxpr.constvars)

        def read(atom: Any) -> Value:
            if not isinstance(atom, Literal):
                return known[atom]
            value = Value.of(atom.aval)
            value.literal = str(atom.val)
            return value

        for eqn in jaxpr.eqns:
            name, params = eqn.primitive.name, eqn.params
            reads = [read(atom) for atom in eqn.invars]
            avals = [var.aval for var in eqn.outvars]
            if self._barriers and params.get("prevent_cse") and params.get("differentiated"):
                # What is computed again waits for the gradient that asks for it.
                reads = self._put(BARRIER, reads, [value.aval for value in reads], {})
            if name in CALLS:
                inner = next(params[k] for k in ("jaxpr", "call_jaxpr", "call") if k in params)
                makes = self._inline(getattr(inner, "jaxpr", inner), reads)
            elif name == "shard_map":
                inner = params["jaxpr"]
                for value, var in zip(reads, inner.invars, strict=True):
                    value.size = nbytes(var.aval)  # a device's part
                makes = self._inline(getattr(inner, "jaxpr", inner), reads)
            elif name == "cond" and (passed := _passed(params["branches"], reads)) is not None:
                makes = passed
            elif name == "scan" and params["length"] == 1:
                constants, carry = loop_sizes(params)
                stacked = constants + carry
                body = params["jaxpr"].jaxpr
                rows = [
                    self._put("reshape", [value], [var.aval], {})[0]
                    for value, var in zip(reads[stacked:], body.invars[stacked:], strict=True)
                ]
                makes = self._inline(body, reads[:stacked] + rows)
                for i in range(carry, len(makes)):
                    makes[i] = self._put("reshape", [makes[i]], [avals[i]], {})[0]
            else:
                makes = self._put(name, reads, avals, params)
            known.update(zip(eqn.outvars, makes, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _put(
        self, name: str, reads: list[Value], avals: list[Any], params: dict[str, Any]
    ) -> list[Value]:
        """An operation's results: those of an equal one if there is one."""
        first = reads[0] if reads else None
        if name == "erfc":  # its expansion has the exponential of the derivative, too
            (power,) = self._put("square", reads, avals, {})
            (power,) = self._put("neg", [power], avals, {})
            reads = reads + self._put("exp", [power], avals, {"accuracy": None})
        elif first is not None and _is_view(name, first, avals[0], params):
            while first.node is not None and first.node.name == "reshape":
                first = first.node.reads[0]
            if first.shape == tuple(avals[0].shape):
                return [first]
            name, reads, params = "reshape", [first], {}
        elif name in ELEMENTWISE:
            # An operand with an axis of length 1 is broadcast.
            shape = tuple(avals[0].shape)
            for i, value in enumerate(reads):
                if len(value.shape) == len(shape) != 0 and value.shape != shape:
                    whole = jax.ShapeDtypeStruct(shape, value.dtype)
                    reads = reads[:]
                    (reads[i],) = self._put("broadcast_in_dim", [value], [whole], {})
        key = None
        if name not in ("scan", "while", "cond", BARRIER):
            names = tuple(value.literal or id(value) for value in reads)
            about = sorted((k, str(x)) for k, x in params.items() if k != "sharding")
            key = name, names, tuple(about), tuple(Value.of(aval).kind for aval in avals)
            if key in self._known:
                return self._known[key]
        node = Node(name, reads, [Value.of(aval) for aval in avals], params)
        for value in node.makes:
            value.node = node
        self.nodes.append(node)
        if key is not None:
            self._known[key] = node.makes
        return node.makes

    def _drop_unread(self) -> None:
        needed, kept = set(self.outputs), []
        for node in reversed(self.nodes):
            if not needed.isdisjoint(node.makes):
                kept.append(node)
                needed.update(node.reads)
        self.nodes = kept[::-1]

    def _kernels(self) -> dict[Node, Node]:
        """For each operation that a kernel takes with it, and for its last: which that is."""
        follows: set[Node] = set()  # what is made of a sum alone, step by step
        # There are none of complex numbers.
        own = [node for node in self.nodes if not _is_complex(node.makes[0])]
        for node in own:
            if node.name in SUMS or (
                node.name in TAKEN | RELABELLED | {"broadcast_in_dim"}
                and any(x.node in follows and len(x.readers) == 1 for x in node.reads)
            ):
                follows.add(node)
        kernel: dict[Node, Node] = {}
        for node in reversed(own):
            name, value = node.name, node.makes[0]
            if name in TAKEN | RELABELLED | KERNELS or (
                name == "broadcast_in_dim" and node in follows
            ):
                whose = {kernel.get(reader) for reader in value.readers}
                last = next(iter(whose)) if len(whose) == 1 else None
                if last is not None and value not in self._results:
                    kernel[node] = last
                elif name in KERNELS or (node in follows and name in TAKEN):
                    kernel[node] = node
        return kernel

    def _is_part(self, node: Node, value: Value) -> bool:
        """Whether a result is only part of what reads it, so nowhere in memory."""
        if node.name in RELABELLED | {BARRIER}:
            return True
        if value in self._results:
            return False
        last = self._kernel.get(node)
        if last not in (None, node) and all(self._kernel.get(x) is last for x in value.readers):
            return True
        if node.name not in FUSIBLE or not all(
            self._takes(reader, node) for reader in value.readers
        ):
            return False
        return len(value.readers) == 1 or node.name not in DEAR or node in self._kernel

    def _takes(self, reader: Node, node: Node) -> bool:
        """Whether a reader computes what it reads of an operation by itself."""
        if reader.name in RELABELLED:
            value = reader.makes[0]
            return value not in self._results and all(self._takes(x, node) for x in value.readers)
        matrix = node.name == "transpose" and len(node.params["permutation"]) == 2
        if matrix and reader.name in PRODUCTS:
            return True  # which reads it in either order of its axes
        if reader in self._kernel:
            return self._kernel[reader] is self._kernel.get(node)
        return reader.name in FUSIBLE | REDUCTIONS

    def reads_in_place(self, value: Value) -> bool:
        """Whether all that reads an input can read a part of a larger array instead."""
        for reader in value.readers:
            if reader.name in RELABELLED:
                if not self.reads_in_place(reader.makes[0]):
                    return False
            elif reader in self._kernel or reader.name not in FUSIBLE | REDUCTIONS:
                return False
        return True

    def _copies(self, node: Node, value: Value) -> int:
        """In how many shapes a result is read: each is written by itself."""
        if node.name not in FUSIBLE or node.name in DEAR:
            return 1
        shapes = (tuple(n for n in shape if n != 1) for shape in self._shapes_read(value))
        return max(1, len(set(shapes)))

    def _shapes_read(self, value: Value) -> Iterable[tuple[int, ...]]:
        for reader in value.readers:
            if reader.name in RELABELLED:
                yield from self._shapes_read(reader.makes[0])
            elif reader.name in PRODUCTS:
                if not _is_of_rows(reader):  # which reads rows in any shape
                    places = (i for i, x in enumerate(reader.reads) if x is value)
                    yield from (_shape_in_product(reader, i) for i in places)
            elif reader in self._kernel or reader.name not in FUSIBLE:
                yield value.shape

    def _constants(self) -> dict[Any, int]:
        found: dict[Any, int] = {}
        for node in self.nodes:
            for body in node.bodies:
                found |= body.constants  # they do not change from step to step
            if node in self._kernel and node.name in TAKEN and node.makes[0].size > SMALL:
                for value in node.reads:
                    if value.literal is not None:
                        found[*node.makes[0].kind, value.literal] = node.makes[0].size
        return found


def _is_complex(value: Value) -> bool:
    return jnp.issubdtype(value.dtype, jnp.complexfloating)


def _bodies(node: Node) -> list[Jaxpr]:
    """The parts of a loop, or the branches of a choice."""
    match node.name:
        case "scan":
            return [node.params["jaxpr"].jaxpr]
        case "while":
            return [node.params["body_jaxpr"].jaxpr]
        case "cond":
            return [branch.jaxpr for branch in node.params["branches"]]
    return []


def _passed(branches: Sequence[Any], reads: list[Value]) -> list[Value] | None:
    """What a choice returns, if all but the rare branch pass their operands through."""
    common = [
        branch.jaxpr
        for branch in branches
        if not any(eqn.params.get("name") == RARE for eqn in branch.jaxpr.eqns)
    ]
    if len(common) != 1 or common[0].eqns:
        return None
    known = dict(zip(common[0].invars, reads[1:], strict=True))
    if any(isinstance(atom, Literal) or atom not in known for atom in common[0].outvars):
        return None
    return [known[atom] for atom in common[0].outvars]


def _is_view(name: str, value: Value, aval: Any, params: dict[str, Any]) -> bool:
    """Whether an operation leaves the same numbers in the same order."""
    if value.literal is not None:
        return False
    if name == "transpose":
        moved = [axis for axis in params["permutation"] if value.shape[axis] != 1]
        return moved == sorted(moved)
    same = math.prod(value.shape) == math.prod(aval.shape)
    return name in RELABELLED or (name == "broadcast_in_dim" and same)


def _is_of_rows(node: Node) -> bool:
    """Whether a product works row by row: a number from each of two rows, or one times each row."""
    (contracted, _), _ = node.params["dimension_numbers"]
    depth = math.prod(node.reads[0].shape[axis] for axis in contracted)
    whole = depth * math.prod(node.makes[0].shape)
    return depth == 1 or all(math.prod(value.shape) == whole for value in node.reads)


def _shape_in_product(node: Node, operand: int) -> tuple[int, ...]:
    """The shape in which a product reads an operand: one axis of rows, one that is summed over."""
    contracted, batch = node.params["dimension_numbers"]
    shape = node.reads[operand].shape
    if not batch[operand] and len(shape) == 2:
        return shape
    found: list[int] = []
    last = None
    for axis, size in enumerate(shape):
        role = (axis in contracted[operand], axis in batch[operand])
        if size == 1:
            continue
        if role == last and not role[1]:
            found[-1] *= size
        else:
            found.append(size)
        last = role
    return tuple(found)
