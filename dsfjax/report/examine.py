"""A trained model looked into: the tools of `dsfjax.analysis` on a few held-out sequences."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from dsfjax import analysis
from dsfjax._util.ahead import quick_options
from dsfjax.analysis.rows import kernel_rows, map_rows, token_rows
from dsfjax.analysis.spectrum import LOG_MODULUS_EDGES
from dsfjax.core import InnerOutput, KernelSystem, OuterInput, System
from dsfjax.nn import Model, stack_layers
from dsfjax.report.aspects import Aspect, registered
from dsfjax.report.findings import FADED, MODULUS_BINS, Findings, Layer
from dsfjax.report.trace import trace
from dsfjax.tasks import Example, Task
from dsfjax.training.gradients import output_gradients
from dsfjax.training.probes import QUANTILES, held_out

# Held-out sequences that are looked at, and tokens in each that are followed.
NUM_EXAMPLES, NUM_MARKS = 8, 8
# Rows of a shown Φ at most; those of longer sequences are averaged.
KERNEL_ROWS = 256
# The bins that are shown, and finer ones where quantiles lie.
EDGES = tuple(sorted({*np.log(MODULUS_BINS[1:]).tolist(), *LOG_MODULUS_EDGES}))


class Measured(NamedTuple):
    """One layer on one sequence; what needs a finite state is None without one."""

    spectrum: analysis.Spectrum
    horizons: analysis.HorizonCounts
    half_life: Float[Array, " H"]
    mean_age: Float[Array, " L"]
    retention: analysis.Retention
    stability: analysis.Stability
    exponents: Float[Array, "H k"]
    use: Float[Array, " N"] | None
    dimension: analysis.EffectiveDimension | None
    gradient: Float[Array, " L"] | None
    aspects: dict[str, Any]


class Summary(NamedTuple):
    """What is made of `Measured` over sequences and heads, a layer per row."""

    spectrum: analysis.Spectrum
    quantiles: Float[Array, "layers q"]
    survival: Float[Array, "layers L"]
    agreement: analysis.Agreement
    kernels: Float[Array, "layers L L"]


def examine(model: Model, params: PyTree, task: Task, *, count: int = NUM_EXAMPLES) -> Findings:
    """Run a model on held-out sequences and read its systems.

    Args:
        model: The model.
        params: Parameters of one member.
        task: The task it was trained on.
        count: Number of sequences, the first that training is evaluated on.

    Returns:
        What was found; Φ is that of the first sequence.

    Numerics:
        Sequences and layers go by one after the other, in one program that is compiled once for a
        model and length.
    """
    return Examination(model, params, task, count=count).compile()()


class Examination:
    """`examine` in three steps, so that the programs of several models can be compiled at once.

    Making one traces and lowers the program, ``compile`` compiles it, and what that returns
    executes it. Only ``compile`` may run on another thread (see `dsfjax._util.ahead`).

    Args:
        model: The model.
        params: Parameters of one member.
        task: The task it was trained on.
        count: Number of sequences.
    """

    def __init__(
        self, model: Model, params: PyTree, task: Task, *, count: int = NUM_EXAMPLES
    ) -> None:
        self._model, self._params, self._batch = model, params, _batch(task, count)
        self._marks, self._asked, self._pairs = marked(task, self._batch)
        leaves, structure = jax.tree.flatten((params, self._batch, self._marks))
        shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
        self._aspects = registered()
        self._program = _program(model, task, self._aspects, structure, shapes)

    def compile(self) -> Callable[[], Findings]:
        """Compile the program, unless an equal one has been compiled.

        Returns:
            A function that runs it and gives what it found.
        """
        run = self._program.run
        inputs = self._params, self._batch, self._marks
        return lambda: self._read(*jax.tree.map(np.asarray, run(*inputs)))

    def _read(self, found: Measured, summary: Summary) -> Findings:
        steps = self._batch.inputs.shape[1]
        cell = -(-steps // KERNEL_ROWS)
        shapes = jax.eval_shape(self._model.systems, self._params, self._batch.inputs[0])
        layers = [
            _layer(
                jax.tree.map(lambda leaf, i=i: leaf[:, i], found),
                jax.tree.map(lambda leaf, i=i: leaf[i], summary),
                self._marks,
                self._asked,
                cell,
                num_channels(system, steps),
            )
            for i, (system, _) in enumerate(shapes)
        ]
        own = {
            # Sequences are the first axis, layers the second.
            aspect.name: tuple(
                aspect.summarise(jax.tree.map(lambda leaf, i=i: leaf[:, i], measured))
                for i in range(len(layers))
            )
            for aspect in self._aspects
            if jax.tree.leaves(measured := found.aspects[aspect.name])
        }
        return Findings(tuple(layers), self._pairs, cell, own)


def _batch(task: Task, count: int) -> Example:
    """The held-out sequences; made by a program that runs once."""
    return held_out.lower(task, count).compile(compiler_options=quick_options())()


class _Program:
    """A lowered program that is compiled when it is first asked for."""

    def __init__(self, lowered: jax.stages.Lowered) -> None:
        self._lowered = lowered

    @functools.cached_property
    def run(self) -> Callable[..., tuple[Measured, Summary]]:
        return self._lowered.compile(compiler_options=quick_options())


def marked(
    task: Task, batch: Example
) -> tuple[Int[np.ndarray, "batch M"], Int[np.ndarray, "batch M"], tuple[tuple[int, int], ...]]:
    """Which tokens are followed: those that are asked for, or some of all if none is.

    Args:
        task: The task.
        batch: Its examples.

    Returns:
        Steps of the tokens, the steps at which they are asked for, and of the first sequence all
        pairs (query, source).
    """
    asked, steps = np.asarray(batch.query_positions), batch.inputs.shape[1]
    found = jax.vmap(task.sources)(batch)
    if found is None:
        marks = np.unique(np.linspace(0, steps - 2, NUM_MARKS).astype(int))
        marks = np.broadcast_to(marks, (len(asked), len(marks)))
        return marks, np.broadcast_to(asked[:, -1:], marks.shape), ()
    sources = np.asarray(found)
    chosen = np.unique(np.linspace(0, asked.shape[1] - 1, NUM_MARKS).astype(int))
    pairs = tuple(zip(asked[0].tolist(), sources[0].tolist(), strict=True))
    return sources[:, chosen], asked[:, chosen], pairs


@functools.lru_cache(maxsize=32)
def _program(
    model: Model, task: Task, looks: tuple[Aspect, ...], structure: Any, shapes: Any
) -> _Program:
    @jax.jit
    def run(
        params: PyTree, batch: Example, marks: Int[Array, "batch M"]
    ) -> tuple[Measured, Summary]:
        # Systems are small next to what is made of them, so those of all sequences are kept.
        def read(example: Example) -> tuple[System | KernelSystem, Array, Array]:
            layers = stack_layers(model.systems(params, example.inputs))
            return *layers, jnp.stack(
                output_gradients(model, params, example, measure=task.measure)
            )

        def look(
            of_sequence: tuple[tuple[System | KernelSystem, Array, Array], Array],
        ) -> Measured:
            layers, own = of_sequence
            return jax.lax.map(lambda layer: measure(*layer, marks=own, looks=looks), layers)

        systems, u, dy = jax.lax.map(read, batch)
        found = jax.lax.map(look, ((systems, u, dy), marks))
        first, steps = jax.tree.map(lambda leaf: leaf[0], systems), batch.inputs.shape[1]
        return found, summarise(found, jax.lax.map(lambda s: first_kernel(s, steps), first))

    return _Program(run.lower(*jax.tree.unflatten(structure, shapes)))


def measure(
    system: System | KernelSystem,
    u: Float[Array, "L d"],
    dy: Float[Array, "L d_out"],
    marks: Int[Array, " M"],
    looks: tuple[Aspect, ...] = (),
) -> Measured:
    """Everything about the system of one layer on one sequence.

    Args:
        system: The system.
        u: Its tokens.
        dy: Gradient of the loss to its outputs.
        marks: Steps of the tokens to follow.
        looks: Registered aspects.

    Returns:
        What the functions of `dsfjax.analysis` give, and what the aspects measure.
    """
    steps = u.shape[0]
    use = dimension = gradient = None
    if isinstance(system, System):
        use = analysis.state_use(system, length=steps)
        dimension = analysis.effective_dimension(use**2)
        gradient = jnp.linalg.norm(analysis.gradient_norms(system, dy), axis=1)
    return Measured(
        analysis.spectrum(system, length=steps, edges=EDGES),
        analysis.count_horizons(analysis.horizons(system, FADED, length=steps)),
        jnp.median(analysis.half_life(system, length=steps), axis=1),
        jnp.nanmean(analysis.mean_age(system, length=steps), axis=(1, 2)),
        analysis.retention(system, u, marks),
        analysis.stability(system, u),
        analysis.lyapunov_exponents(system, length=steps),
        use,
        dimension,
        gradient,
        {look.name: look.measure(system, u, dy) for look in looks},
    )


def summarise(found: Measured, kernels: Float[Array, "layers L L"]) -> Summary:
    """Distributions over sequences and heads.

    Args:
        found: With sequences and layers as leading axes.
        kernels: Of each layer.

    Returns:
        The summary.
    """
    spectrum = analysis.merge(analysis.merge(found.spectrum, 0), 1)
    quantiles = [analysis.quantile(spectrum, q, edges=EDGES) for q in QUANTILES]
    counts = analysis.HorizonCounts(*(x.mean(axis=(0, 2)) for x in found.horizons))
    state, output, predicted = found.retention
    measured = output if state is None else state
    agree = jax.vmap(analysis.agreement, in_axes=1)
    return Summary(
        spectrum,
        jnp.exp(jnp.stack(quantiles, axis=1)),
        analysis.survival(counts),
        agree(measured, jnp.broadcast_to(predicted, measured.shape)),
        kernels,
    )


def first_kernel(system: System | KernelSystem, steps: int) -> Float[Array, "L L"]:
    """Φ of head 0 on its values; the root mean square over channels where it differs between them.

    Args:
        system: The system of one layer.
        steps: L.

    Returns:
        (L, L). Where B or C is dense, over all pairs of output and token channels.

    Numerics:
        Row after row: no more than L × L numbers at once.
    """
    row = _channels(system, steps)

    def entries(t: Array) -> Array:
        found = row(t)
        return found[0] if found.shape[0] == 1 else jnp.sqrt(jnp.mean(found**2, axis=0))

    return map_rows(entries, steps, 1)


def num_channels(system: System | KernelSystem, steps: int) -> int:
    """How many Φ `first_kernel` takes the mean over; of shapes alone."""
    return jax.eval_shape(lambda s: _channels(s, steps)(jnp.zeros((), int)), system).shape[0]


def _channels(system: System | KernelSystem, steps: int) -> Any:
    """The function t ↦ Φ_{t,·}, (channels, L)."""
    structured = isinstance(system, KernelSystem) or (
        isinstance(system.B, OuterInput) and isinstance(system.C, InnerOutput)
    )
    if structured:
        row = kernel_rows("report", system, steps)
        return lambda t: row(t)[:, 0].T
    full = token_rows(system, steps)
    return lambda t: jnp.moveaxis(full(t), 1, 2).reshape(-1, steps)


def _layer(
    found: Measured, summary: Summary, marks: Any, asked: Any, cell: int, channels: int
) -> Layer:
    """One layer from arrays with the sequences in front, and its summary."""
    spectrum = summary.spectrum
    below = np.searchsorted(np.exp(EDGES), MODULUS_BINS[1:-1] * (1 - 1e-9)) + 1
    exponents = np.asarray(found.exponents).ravel()

    def mean_square(x: Any) -> Any:
        return None if x is None else np.sqrt(np.mean(np.square(x, dtype=float), axis=0))

    dimension = found.dimension
    return Layer(
        moduli=np.add.reduceat(spectrum.modulus, [0, *below]).astype(float),
        phases=np.asarray(spectrum.phase, float),
        quantiles=np.asarray(summary.quantiles, float),
        growing=float(spectrum.growing),
        survival=np.asarray(summary.survival, float),
        half_life=float(np.median(found.half_life)),
        mean_age=np.asarray(found.mean_age, float).mean(axis=0),
        trace=trace(found.retention, summary.agreement, marks, asked),
        use=mean_square(found.use),
        dimension=None if dimension is None else float(np.mean(dimension.rank)),
        participation=None if dimension is None else float(np.mean(dimension.participation)),
        exponents=np.quantile(exponents, [*QUANTILES, 1.0], method="nearest").astype(float),
        gradient=mean_square(found.gradient),
        warnings=tuple(analysis.warnings_of(found.stability)),
        kernel=_coarse(np.asarray(summary.kernels, float), cell),
        num_channels=channels,
    )


def _coarse(kernel: Any, cell: int) -> Any:
    """Means over cells of ``cell`` × ``cell`` entries; the last cells may be smaller."""
    starts = range(0, len(kernel), cell)
    sums = np.add.reduceat(np.add.reduceat(kernel, starts, axis=0), starts, axis=1)
    sizes = np.diff([*starts, len(kernel)])
    return sums / np.outer(sizes, sizes)
