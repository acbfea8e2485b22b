r"""Looks inside a model while it trains: spectra, gradients through time, state use, sharpness.

A probe is what ``metrics.jsonl`` has under ``probe`` in the lines of the probed members, every
``probe_every`` steps: those of the first seed at every point of the other axes. It is JSON data,
numbers that are not finite being null::

    sharpness      largest eigenvalue of the Hessian of the loss, 8 held-out sequences
    layers         of each layer, over the first 4 of them, what the registered aspects note:
      modulus      |λ| at quantiles (`dsfjax.aspects.eigenvalues.QUANTILES`)
      growing      share of |λ| > 1
      dimension    directions of the state that carry 99 % of the energy; null without a finite
                   state
      gradient     norm of ∂L/∂h_t in each quarter of the sequence; null as above
      …            and the ``probes`` of aspects of your own

Gradient descent with learning rate :math:`γ` is stable where the sharpness is below :math:`2/γ`, so
how it grows and saturates says how training and loss surface work on each other.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from dsfjax import aspects, nn
from dsfjax._util.ahead import quick_options
from dsfjax.tasks import HELD_OUT as HELD_OUT_SPLIT
from dsfjax.tasks import Example, Task, examples
from dsfjax.training.config import TrainConfig
from dsfjax.training.objective import output_gradients, query_loss, said
from dsfjax.training.program import held_out_data
from dsfjax.training.step import HELD_OUT

# Held-out sequences of the Hessian, and those of them whose systems are read.
BATCH, READ = 8, 4


def probed(config: TrainConfig) -> list[int]:
    """The members that are probed: the first seed at every point of the other axes.

    Args:
        config: The run's config.

    Returns:
        Indices of members.

    Examples:
        >>> from dsfjax import tasks
        >>> task = tasks.get(tasks.names()[0], vocab_size=64, seq_len=32)
        >>> model = nn.ModelConfig("ssd", vocab_size=64)
        >>> probed(TrainConfig(task, model, seeds=(5, 6), learning_rates=(1e-3, 1e-2)))
        [0, 2]
    """
    return [i for i, member in enumerate(config.members) if member.seed == config.seeds[0]]


def probe(config: TrainConfig, params: PyTree) -> dict[str, Any]:
    """Look inside a model as it is now.

    Args:
        config: The run's config.
        params: Parameters of one member.

    Returns:
        JSON data, as described above.

    Numerics:
        16 products with the Hessian, forward mode over reverse mode through
        ``method="sequential"``, and the analysis of the systems of four sequences. One compilation
        per model and task.
    """
    watched = tuple(aspect for aspect in aspects.registered() if aspect.probes)
    run = _look(config.architecture, config.task, watched)
    steepest, noted = jax.tree.map(np.asarray, run(params))
    rows = {
        where: {
            name: None if values is None else _plain(values[i])
            for name, values in stack.values.items()
        }
        for stack in noted
        for i, where in enumerate(stack.numbers)
    }
    return {"sharpness": _plain(steepest), "layers": [rows[i] for i in sorted(rows)]}


def held_out(task: Task, count: int) -> Example:
    """The first sequences that training is evaluated on.

    Args:
        task: The task.
        count: How many.

    Returns:
        A batch of them.
    """
    data = held_out_data(task)
    # A program that runs once. The data are its argument: they may be much more than the examples.
    return _made.lower(task, count, data).compile(compiler_options=quick_options())(data)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _made(task: Task, count: int, data: PyTree) -> Example:
    key = jax.random.fold_in(jax.random.key(0), HELD_OUT)
    return examples(task, HELD_OUT_SPLIT, count, key, data)


def stacks_of(
    model: nn.Model, task: Task, params: PyTree, example: Example
) -> tuple[aspects.Stack, ...]:
    """The systems of a model on one sequence, as `dsfjax.aspects.measure` takes them.

    Args:
        model: The model.
        task: The task it is trained on.
        params: Parameters of one member.
        example: One sequence.

    Returns:
        The systems, their tokens and ∂L/∂y, in stacks of one structure.
    """
    dy = output_gradients(model, params, example, measure=task.measure)
    return aspects.stacks(model.systems(params, example.inputs, **said(example)), dy)


def asked_of(task: Task, example: Example) -> aspects.Asked:
    """What the task asks on one sequence."""
    return aspects.Asked(example.query_positions, task.sources(example))


@functools.lru_cache(maxsize=32)
def _look(
    config: nn.ModelConfig, task: Task, watched: tuple[aspects.Aspect, ...]
) -> Callable[[PyTree], tuple[Float[Array, ""], tuple[aspects.Measured, ...]]]:
    config = dataclasses.replace(config, precision="float32")
    model, batch = nn.build(config), held_out(task, BATCH)
    # Forward mode goes step by step, which dropout on an attention matrix cannot; it is off here.
    plain = dataclasses.replace(config, method="sequential", attention_dropout=0.0)
    stepwise = nn.build(plain)

    @jax.jit
    def look(params: PyTree) -> tuple[Float[Array, ""], tuple[aspects.Measured, ...]]:
        def loss(params: PyTree) -> Float[Array, ""]:
            return query_loss(stepwise, params, batch, measure=task.measure)[0]

        few = jax.tree.map(lambda leaf: leaf[:READ], batch)
        layers = jax.lax.map(functools.partial(stacks_of, model, task, params), few)
        asked = jax.vmap(functools.partial(asked_of, task))(few)

        # What no probe reads is not computed: the compiler leaves it out.
        def noted(stack: aspects.Measured) -> aspects.Measured:
            found = {
                name: None
                if stack.values[aspect.name] is None
                else jax.vmap(read)(stack.values[aspect.name])
                for aspect in watched
                for name, read in aspect.probes.items()
            }
            return aspects.Measured(found, stack.numbers)

        measured = aspects.measure(watched, layers, asked)
        return sharpness(loss, params, jax.random.key(0)), tuple(map(noted, measured))

    return look


def _plain(values: Any) -> Any:
    """Numbers as JSON has them; None in place of what is not finite."""
    if np.ndim(values):
        return [_plain(value) for value in values]
    return float(values) if math.isfinite(values) else None


def sharpness(
    loss: Callable[[PyTree], Float[Array, ""]],
    params: PyTree,
    key: PRNGKeyArray,
    *,
    iterations: int = 16,
) -> Float[Array, ""]:
    r"""The largest eigenvalue of the Hessian of a loss.

    .. math:: H v_j = β_{j-1} v_{j-1} + α_j v_j + β_j v_{j+1}

    makes a tridiagonal matrix of the α and β whose largest eigenvalue approaches that of H from
    below, in far fewer iterations than there are parameters.

    Args:
        loss: A scalar function of the parameters, of which forward mode over reverse mode can be
            taken: run systems with ``method="sequential"``.
        params: Where the Hessian is taken.
        key: Of the first vector.
        iterations: Products with the Hessian.

    Returns:
        λ_max, which may be negative. NaN where the loss is not finite.

    Numerics:
        ``iterations`` times about four times the work of the loss, and the memory of three copies
        of the parameters: vectors are not kept to be orthogonalised again, which leaves the largest
        eigenvalue right and repeats it.

    References:
        Lanczos (1950), J. Res. Natl. Bur. Stand. 45. Cohen et al. (2021), arXiv:2103.00065.

    Examples:
        >>> f = lambda x: x @ jnp.diag(jnp.array([3.0, 1.0, -5.0])) @ x / 2
        >>> round(float(sharpness(f, jnp.ones(3), jax.random.key(0))), 4)
        3.0
    """
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    drawn = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    first = jax.tree.unflatten(tree, drawn)
    gradient = jax.grad(loss)

    def advance(
        carry: tuple[PyTree, PyTree, Array], _: None
    ) -> tuple[tuple[PyTree, PyTree, Array], tuple[Array, Array]]:
        v, before, beta = carry
        w = jax.jvp(gradient, (params,), (v,))[1]
        alpha = _dot(w, v)
        w = jax.tree.map(lambda w, v, b: w - alpha * v - beta * b, w, v, before)
        norm = jnp.sqrt(_dot(w, w))
        # An invariant subspace has been used up: what is left of w is rounding.
        gone = norm <= 1e2 * jnp.finfo(norm.dtype).eps * jnp.abs(alpha)
        after = jax.tree.map(lambda w: jnp.where(gone, 0, w / jnp.where(gone, 1, norm)), w)
        return (after, v, jnp.where(gone, 0, norm)), (alpha, jnp.where(gone, 0, norm))

    norm = jnp.sqrt(_dot(first, first))
    start = jax.tree.map(lambda x: x / norm, first)
    carry = (start, jax.tree.map(jnp.zeros_like, start), jnp.zeros_like(norm))
    _, (alpha, beta) = jax.lax.scan(advance, carry, None, length=iterations)
    # Iterations after the end have made zeros; a value that is never the largest stands in.
    ended = jnp.concatenate([jnp.zeros(1, bool), jnp.cumsum(beta[:-1] == 0) > 0])
    alpha = jnp.where(ended, alpha[0], alpha)
    matrix = jnp.diag(alpha) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1)
    finite = jnp.isfinite(matrix).all()
    values = jnp.linalg.eigvalsh(jnp.where(finite, matrix, 0))
    return jnp.where(finite, values[-1], jnp.nan)


def _dot(a: PyTree, b: PyTree) -> Float[Array, ""]:
    products = jax.tree.map(lambda x, y: jnp.vdot(x, y, precision="highest"), a, b)
    return jnp.stack(jax.tree.leaves(products)).sum()
