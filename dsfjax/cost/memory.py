r"""Peak memory of any function, estimated on its jaxpr: nothing is compiled, run or allocated.

XLA's CPU compiler says how much memory a program takes only after it has compiled it, which takes
minutes for a large model. This follows what it does, by rules that were read off its buffers:

* **One graph.** Calls, rules of custom derivatives and loops of one step are inlined, and equal
  expressions are computed once. So what a backward pass "computes again" outside of a loop is kept
  after all. On a CPU that is true within ``jax.checkpoint``, too: its compiler drops the barriers
  that should prevent it. Elsewhere they count.
* **Fusion.** Element-wise operations are part of what reads them, so their results are nowhere in
  memory. In memory is what is read by anything else (a product, a loop, a scatter), and what has
  several readers and is dear (an exponential, a division).
* **Kernels of sums and products.** A reduction or a product takes the element-wise operations that
  only it reads with it. What such a kernel reads is in memory, also a vector that was broadcast to
  a matrix. A reader that sees the same array in another shape has a copy of its own.
* **Order.** Operations run in the order in which their operands are ready, first come, first
  served. So all that can be computed early is, and then waits for its reader.
* **Life.** An array lives from the operation that makes it to the last that reads it; an
  element-wise operation writes in the place of an operand that dies. A loop holds what it stacks up
  from the beginning, its carry once, and the row that it is at.

The peak is the largest sum of what is alive, and 5 % for the gaps that arrays of different sizes
leave. Other compilers (GPU, TPU) decide otherwise; there the number is an indication.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence, Set
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from dsfjax.cost.jaxpr_rules import (
    CALLS,
    ELEMENTWISE,
    MOVES,
    REDUCTIONS,
    RELABELLED,
    TRANSCENDENTAL,
    UPDATES,
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
KERNELS = SUMS | {"dot_general"}
# Constants that fill an array of fewer bytes do not matter.
SMALL = 4096
# What arrays of different sizes need together, over what is alive: the compiler's placement of
# those of five architectures left gaps of 2 to 9 %.
GAPS = 1.05


class Memory(NamedTuple):
    """Bytes that a compiled function takes on each device.

    Attributes:
        arguments: Its arguments.
        outputs: Its results, without those that take the place of a donated argument.
        temporaries: The most that is alive in between.
    """

    arguments: int
    outputs: int
    temporaries: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)


def peak_memory(
    f: Callable[..., Any], *args: Any, donate_argnums: int | Sequence[int] = ()
) -> Memory:
    """Estimate the memory of ``jax.jit(f)(*args)`` before it is compiled.

    Args:
        f: A function that JAX can trace.
        *args: Arrays, or `jax.ShapeDtypeStruct` in their place: sizes of any kind cost nothing.
        donate_argnums: Arguments whose memory the results may take, as for ``jax.jit``.

    Returns:
        A `Memory`.

    Numerics:
        See `dsfjax.cost.memory` for what is followed. Next to ``compiled.memory_analysis()`` on a
        CPU (jaxlib 0.10) training steps of all eight architectures (two layers, d = 64, L = 256,
        batch 16) were −7 to +2 % off, two of them with more layers, d = 128 and L = 512 −2 %, three
        members that are mostly parameters +2 %, and a language model of 64 million parameters
        (softmax attention, 12 layers, L = 1024, batch 8; 8.2 GiB) −3 %. With ``remat`` the latter
        took more than without on a CPU, and the estimate was 11 % too low.

    Example:
        The two layers that the gradient of the first needs, and what is computed of them:

        >>> import jax, jax.numpy as jnp
        >>> x = jax.ShapeDtypeStruct((1000, 1000), jnp.float32)
        >>> found = peak_memory(jax.grad(lambda w, x: jnp.tanh(x @ w).sum()), x, x)
        >>> found.arguments, found.outputs
        (8000000, 4000000)
    """
    donated = (donate_argnums,) if isinstance(donate_argnums, int) else tuple(donate_argnums)
    flags = [index in donated for index, arg in enumerate(args) for _ in jax.tree.leaves(arg)]
    return memory_of(jax.make_jaxpr(f)(*args), flags)


def memory_of(closed: ClosedJaxpr, donated: Sequence[bool] | None = None) -> Memory:
    """`peak_memory` of a function that has been traced.

    Args:
        closed: Its jaxpr, such as ``jax.jit(f).trace(…).jaxpr``. Of a ``jax.shard_map`` the part of
            one device counts.
        donated: For each argument whether it is donated; None for none.

    Returns:
        A `Memory`.
    """
    graph = _Graph(closed.jaxpr, jax.default_backend() != "cpu")
    free = Counter(
        value.kind for value, given in zip(graph.inputs, donated or (), strict=False) if given
    )
    own = 0
    for value in graph.outputs:
        if free[value.kind]:
            free[value.kind] -= 1
        else:
            own += value.size
    peak = _peak(graph, frozenset(), outermost=True) + sum(graph.constants.values())
    return Memory(sum(value.size for value in graph.inputs), own, math.ceil(GAPS * peak))


@dataclasses.dataclass(eq=False, slots=True)
class _Value:
    """An array."""

    shape: tuple[int, ...]
    dtype: Any
    size: int
    node: _Node | None = None  # what makes it; None for an input or a literal
    literal: str | None = None
    readers: list[_Node] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, aval: Any) -> _Value:
        return cls(tuple(getattr(aval, "shape", ())), getattr(aval, "dtype", None), nbytes(aval))

    @property
    def aval(self) -> Any:
        return jax.ShapeDtypeStruct(self.shape, self.dtype)

    @property
    def kind(self) -> tuple[Any, ...]:
        return self.shape, str(self.dtype)


@dataclasses.dataclass(eq=False, slots=True)
class _Node:
    """An operation."""

    name: str
    reads: list[_Value]
    makes: list[_Value]
    params: dict[str, Any]
    bodies: list[_Graph] = dataclasses.field(default_factory=list)


class _Graph:
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
        self.nodes: list[_Node] = []
        self._known: dict[Any, list[_Value]] = {}
        self.inputs = [_Value.of(var.aval) for var in jaxpr.invars]
        self.outputs = self._inline(jaxpr, self.inputs)
        self._drop_unread()
        for node in self.nodes:
            node.bodies = [_Graph(body, barriers) for body in _bodies(node)]
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

    def _inline(self, jaxpr: Jaxpr, inputs: list[_Value]) -> list[_Value]:
        known: dict[Any, _Value] = dict(zip(jaxpr.invars, inputs, strict=True))
        known.update((var, _Value.of(var.aval)) for var in jaxpr.constvars)

        def read(atom: Any) -> _Value:
            if not isinstance(atom, Literal):
                return known[atom]
            value = _Value.of(atom.aval)
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
                stacked = params["num_consts"] + params["num_carry"]
                body = params["jaxpr"].jaxpr
                rows = [
                    self._put("reshape", [value], [var.aval], {})[0]
                    for value, var in zip(reads[stacked:], body.invars[stacked:], strict=True)
                ]
                makes = self._inline(body, reads[:stacked] + rows)
                for i in range(params["num_carry"], len(makes)):
                    makes[i] = self._put("reshape", [makes[i]], [avals[i]], {})[0]
            else:
                makes = self._put(name, reads, avals, params)
            known.update(zip(eqn.outvars, makes, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _put(
        self, name: str, reads: list[_Value], avals: list[Any], params: dict[str, Any]
    ) -> list[_Value]:
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
            key = name, names, tuple(about), tuple(_Value.of(aval).kind for aval in avals)
            if key in self._known:
                return self._known[key]
        node = _Node(name, reads, [_Value.of(aval) for aval in avals], params)
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

    def _kernels(self) -> dict[_Node, _Node]:
        """For each operation that a kernel takes with it, and for its last: which that is."""
        follows: set[_Node] = set()  # what is made of a sum alone, step by step
        for node in self.nodes:
            if node.name in SUMS or (
                node.name in TAKEN | RELABELLED | {"broadcast_in_dim"}
                and any(x.node in follows and len(x.readers) == 1 for x in node.reads)
            ):
                follows.add(node)
        kernel: dict[_Node, _Node] = {}
        for node in reversed(self.nodes):
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

    def _is_part(self, node: _Node, value: _Value) -> bool:
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

    def _takes(self, reader: _Node, node: _Node) -> bool:
        """Whether a reader computes what it reads of an operation by itself."""
        if reader.name in RELABELLED:
            value = reader.makes[0]
            return value not in self._results and all(self._takes(x, node) for x in value.readers)
        matrix = node.name == "transpose" and len(node.params["permutation"]) == 2
        if matrix and reader.name == "dot_general":
            return True  # which reads it in either order of its axes
        if reader in self._kernel:
            return self._kernel[reader] is self._kernel.get(node)
        return reader.name in FUSIBLE | REDUCTIONS

    def reads_in_place(self, value: _Value) -> bool:
        """Whether all that reads an input can read a part of a larger array instead."""
        for reader in value.readers:
            if reader.name in RELABELLED:
                if not self.reads_in_place(reader.makes[0]):
                    return False
            elif reader in self._kernel or reader.name not in FUSIBLE | REDUCTIONS:
                return False
        return True

    def _copies(self, node: _Node, value: _Value) -> int:
        """In how many shapes a result is read: each is written by itself."""
        if node.name not in FUSIBLE or node.name in DEAR:
            return 1
        return max(1, len(set(self._shapes_read(value))))

    def _shapes_read(self, value: _Value) -> Iterable[tuple[int, ...]]:
        for reader in value.readers:
            if reader.name in RELABELLED:
                yield from self._shapes_read(reader.makes[0])
            elif reader.name == "dot_general":
                yield from (
                    _shape_in_product(reader, i) for i, x in enumerate(reader.reads) if x is value
                )
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


def _bodies(node: _Node) -> list[Jaxpr]:
    """The parts of a loop, or the branches of a choice."""
    match node.name:
        case "scan":
            return [node.params["jaxpr"].jaxpr]
        case "while":
            return [node.params["body_jaxpr"].jaxpr]
        case "cond":
            return [branch.jaxpr for branch in node.params["branches"]]
    return []


def _passed(branches: Sequence[Any], reads: list[_Value]) -> list[_Value] | None:
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


def _is_view(name: str, value: _Value, aval: Any, params: dict[str, Any]) -> bool:
    """Whether an operation leaves the same numbers in the same order."""
    if value.literal is not None:
        return False
    if name == "transpose":
        moved = [axis for axis in params["permutation"] if value.shape[axis] != 1]
        return moved == sorted(moved)
    same = math.prod(value.shape) == math.prod(aval.shape)
    return name in RELABELLED or (name == "broadcast_in_dim" and same)


def _shape_in_product(node: _Node, operand: int) -> tuple[int, ...]:
    """The shape in which a product reads an operand: one axis for each of its roles."""
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
        if role == last:
            found[-1] *= size
        else:
            found.append(size)
        last = role
    return tuple(found)


def _transposed(node: _Node) -> int:
    """Bytes of the operands that a product needs in another order of their axes."""
    contracted, batch = node.params["dimension_numbers"]
    total = 0
    for value, sums, rows in zip(node.reads, contracted, batch, strict=True):
        rest = [axis for axis in range(len(value.shape)) if axis not in rows]
        inner, count = sorted(sums), len(sums)
        leading = tuple(rows) == tuple(range(len(rows)))
        if not leading or inner not in (rest[:count], rest[len(rest) - count :]):
            total += value.size
    return total


def _peak(graph: _Graph, carried: Set[_Value], *, outermost: bool = False) -> int:
    """The most that is alive while a graph runs.

    Args:
        graph: The graph.
        carried: Inputs that are in memory of its own: the carry and the row of a loop.
        outermost: Whether its results are no temporaries, as they are written to where they stay.
    """
    sources: dict[_Value, frozenset[_Value]] = {}

    def read(value: _Value) -> frozenset[_Value]:
        """What is read from memory where a value is."""
        if value.literal is not None:
            return frozenset()
        return sources.get(value, frozenset({value}))

    run = []
    for node in graph.nodes:
        if node.name == BARRIER:
            run.append(node)
            for value, made in zip(node.reads, node.makes, strict=True):
                sources[made] = read(value) | {made}
        elif not node.bodies and all(value not in graph.stored for value in node.makes):
            whole = frozenset().union(*map(read, node.reads))
            sources.update(dict.fromkeys(node.makes, whole))
        else:
            run.append(node)
    needs = {node: frozenset().union(*map(read, node.reads)) for node in run}
    run = _in_order(run, needs)
    last: dict[_Value, int] = {}
    for place, node in enumerate(run):
        last.update(dict.fromkeys(needs[node], place))
    results = frozenset().union(*map(read, graph.outputs))
    last.update(dict.fromkeys(results, len(run)))
    elsewhere = results if outermost else frozenset()
    alive = {value: value.size for value in graph.inputs if value in carried and value in last}
    peak = sum(alive.values())
    for place, node in enumerate(run):
        dying = [value for value in needs[node] if last[value] == place and value in alive]
        made = {
            value: graph.stored[value] * value.size
            for value in node.makes
            if value in graph.stored and value not in elsewhere
        }
        if node.bodies:
            moved = {value for value in _carry(node) if value in dying}
            inner = _inside(node) - sum(alive[value] for value in moved)
            peak = max(peak, sum(alive.values()) + inner)
        else:
            if node.name in FUSIBLE or node.name in UPDATES:
                for size in made.values():  # written in the place of an operand
                    taken = next((x for x in dying if alive.get(x) == size), None)
                    if taken is not None:
                        alive.pop(taken)
            extra = _transposed(node) if node.name == "dot_general" else 0
            peak = max(peak, sum(alive.values()) + sum(made.values()) + extra)
        for value in dying:
            alive.pop(value, None)
        alive.update((value, size) for value, size in made.items() if value in last)
    return peak


def _in_order(run: list[_Node], needs: dict[_Node, frozenset[_Value]]) -> list[_Node]:
    """Operations in the order in which their operands are ready."""
    waits: dict[_Node, int] = {}
    readers: dict[_Node, list[_Node]] = {}
    among = set(run)
    for node in run:
        before = {value.node for value in needs[node] if value.node in among} - {None}
        waits[node] = len(before)
        for other in before:
            readers.setdefault(other, []).append(node)  # type: ignore[arg-type]
    ready, found = deque(node for node in run if not waits[node]), []
    while ready:
        node = ready.popleft()
        found.append(node)
        for reader in readers.get(node, ()):
            waits[reader] -= 1
            if not waits[reader]:
                ready.append(reader)
    return found


def _carry(node: _Node) -> list[_Value]:
    """The operands that a loop writes to."""
    params = node.params
    if node.name == "scan":
        first = params["num_consts"]
        return node.reads[first : first + params["num_carry"]]
    if node.name == "while":
        return node.reads[params["cond_nconsts"] + params["body_nconsts"] :]
    return []


def _inside(node: _Node) -> int:
    """The most that is alive within a loop or a branch, with what a loop stacks up."""
    if node.name == "cond":
        return max(_peak(body, frozenset()) for body in node.bodies)
    params, (body,) = node.params, node.bodies
    first = params["num_consts"] if node.name == "scan" else params["body_nconsts"]
    count = len(_carry(node))
    stacked = node.makes[count:] if node.name == "scan" else []
    # A row of what a loop goes through is cut out, unless element-wise operations read it in place.
    rows = {value for value in body.inputs[first + count :] if not body.reads_in_place(value)}
    carried = rows.union(body.inputs[first : first + count])
    return _peak(body, carried) + sum(value.size for value in stacked)
