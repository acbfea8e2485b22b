r"""Peak memory of any function, estimated on its jaxpr: nothing is compiled, run or allocated.

XLA's CPU compiler says how much memory a program takes only after it has compiled it, which takes
minutes for a large model. This follows what it does, by rules that were read off its buffers:

* **One graph.** Calls, rules of custom derivatives and loops of one step are inlined, and equal
  expressions are computed once. So what a backward pass "computes again" outside of a loop is kept
  after all. On a CPU that is true within ``jax.checkpoint``, too, before jaxlib 0.11.1, whose
  compiler drops the barriers that should prevent it. Otherwise they count.
* **Fusion.** Element-wise operations are part of what reads them, so their results are nowhere in
  memory. In memory is what is read by anything else (a product, a loop, a scatter), and what has
  several readers and is dear (an exponential, a division).
* **Kernels of sums and products.** A reduction or a product takes the element-wise operations that
  only it reads with it. What such a kernel reads is in memory, also a vector that was broadcast to
  a matrix. A reader that sees the same array in another shape has a copy of its own. There are no
  such kernels of complex numbers.
* **Order.** Operations run in the order in which their operands are ready, first come, first
  served. So all that can be computed early is, and then waits for its reader.
* **Life.** An array lives from the operation that makes it to the last that reads it; an
  element-wise operation writes in the place of an operand that dies. A loop holds what it stacks up
  from the beginning, its carry once, and the row that it is at.

The peak is the largest sum of what is alive, and 5 % for the gaps that arrays of different sizes
leave. Other compilers (GPU, TPU) decide otherwise; there the number is an indication.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Sequence, Set
from typing import Any, NamedTuple

import jax

from dsfjax._util.versions import at_least
from dsfjax.cost.buffers import BARRIER, FUSIBLE, Graph, Node, Value
from dsfjax.cost.jaxpr_rules import PRODUCTS, UPDATES, loop_sizes

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
        CPU (jaxlib 0.10.2, Intel Xeon, float64) training steps of 40 architectures (two layers, d =
        64, L = 256, batch 16) are −6 to +15 % off, half of them less than 8 %, S4 −18 % and MesaNet
        +20 % (``tests/cost/test_memory.py``). Two of them with more layers, d = 128 and L = 512
        were −2 % off, three members that are mostly parameters +2 %, and a language model of 64
        million parameters (softmax attention, 12 layers, L = 1024, batch 8; 8.2 GiB) −3 %. With
        ``remat`` the latter took more than without on a CPU, and the estimate was 11 % too low.

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


def memory_of(closed: Any, donated: Sequence[bool] | None = None) -> Memory:
    """`peak_memory` of a function that has been traced.

    Args:
        closed: Its jaxpr, such as ``jax.jit(f).trace(…).jaxpr``. Of a ``jax.shard_map`` the part of
            one device counts.
        donated: For each argument whether it is donated; None for none.

    Returns:
        A `Memory`.
    """
    # On a CPU XLA left the barriers of what is computed again out before jaxlib 0.11.1.
    barriers = jax.default_backend() != "cpu" or at_least("jaxlib", 0, 11, 1)
    graph = Graph(closed.jaxpr, barriers)
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


def _transposed(node: Node) -> int:
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


def _peak(graph: Graph, carried: Set[Value], *, outermost: bool = False) -> int:
    """The most that is alive while a graph runs.

    Args:
        graph: The graph.
        carried: Inputs that are in memory of its own: the carry and the row of a loop.
        outermost: Whether its results are no temporaries, as they are written to where they stay.
    """
    sources: dict[Value, frozenset[Value]] = {}

    def read(value: Value) -> frozenset[Value]:
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
    last: dict[Value, int] = {}
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
            extra = _transposed(node) if node.name in PRODUCTS else 0
            peak = max(peak, sum(alive.values()) + sum(made.values()) + extra)
        for value in dying:
            alive.pop(value, None)
        alive.update((value, size) for value, size in made.items() if value in last)
    return peak


def _in_order(run: list[Node], needs: dict[Node, frozenset[Value]]) -> list[Node]:
    """Operations in the order in which their operands are ready."""
    waits: dict[Node, int] = {}
    readers: dict[Node, list[Node]] = {}
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


def _carry(node: Node) -> list[Value]:
    """The operands that a loop writes to."""
    params = node.params
    if node.name == "scan":
        first, count = loop_sizes(params)
        return node.reads[first : first + count]
    if node.name == "while":
        return node.reads[params["cond_nconsts"] + params["body_nconsts"] :]
    return []


def _inside(node: Node) -> int:
    """The most that is alive within a loop or a branch, with what a loop stacks up."""
    if node.name == "cond":
        return max(_peak(body, frozenset()) for body in node.bodies)
    params, (body,) = node.params, node.bodies
    first = loop_sizes(params)[0] if node.name == "scan" else params["body_nconsts"]
    count = len(_carry(node))
    stacked = node.makes[count:] if node.name == "scan" else []
    # A row of what a loop goes through is cut out, unless element-wise operations read it in place.
    rows = {value for value in body.inputs[first + count :] if not body.reads_in_place(value)}
    carried = rows.union(body.inputs[first : first + count])
    return _peak(body, carried) + sum(value.size for value in stacked)
