r"""What a model is trained for: the loss at the positions where something is asked.

With vocabulary :math:`V`, features :math:`x \in \mathbb{R}^{L \times d}` and :math:`q` queries per
sequence, the dense loss costs :math:`L V d` operations for the logits, of which all but
:math:`q V d` are thrown away. :func:`query_loss` gathers the features first and so never computes
them; value and gradient are those of :func:`full_loss`. Where every step is asked, as in language
modelling, it computes the logits in blocks of queries, and again in the backward pass: with a large
vocabulary they would be most of a training step's memory.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, PyTree, Shaped

from dsfjax.engines import Shards
from dsfjax.nn import Model
from dsfjax.tasks import Example, cross_entropy

Measure = Callable[[Array, Array], dict[str, Array]]
"""Outputs (…, k) and targets (…) to numbers of every query, as `dsfjax.tasks.Task.measure`."""

IGNORED = -100
"""Label of a position without an answer."""

BLOCK = 2**24
"""Logits that are in memory at once, 64 MiB in float32."""


def query_loss(
    model: Model,
    params: PyTree,
    batch: Example,
    key: Key[Array, "*examples"] | None = None,
    *,
    measure: Measure = cross_entropy,
    dropout: Float[Array, ""] | None = None,
    weights: Shaped[Array, " b"] | None = None,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    r"""Mean loss over the queries of a batch, by default the cross-entropy.

    .. math:: \frac{1}{bq} \sum_{i,j} \left[ \log \sum_v e^{z_{ijv}} - z_{ij\,y_{ij}} \right],
        \qquad z_{ij} = \mathrm{head}(x_i[t_{ij}])

    The head of a classifier reads all of :math:`x_i` instead and answers the one query there is.
    Examples with a ``length`` or ``reset`` are read accordingly (`dsfjax.tasks.Example`).

    Args:
        model: The model; its ``features`` sees one sequence at a time.
        params: Parameters of the model.
        batch: Examples: ``inputs`` (b, L), ``query_positions`` (b, q), ``targets`` (b, q).
        key: A PRNG key for dropout (training), or None (evaluation); or one for each sequence, as
            `keys_of` makes them.
        measure: Outputs and targets to ``loss`` and further numbers of every query
            (`dsfjax.tasks.Task.measure`).
        dropout: A rate in place of the model's own that are not 0; it may be traced.
        weights: Weights of the sequences in the means, such as 0 for those that only fill the batch
            up; None for the same weight for all.
        axis_name: Axis of the devices that the batch is divided over (`dsfjax.training.objective`):
            ``batch`` and ``weights`` are this device's, ``key`` is that of all.

    The sequences of ``batch`` are whole. A model of sequences that are cut over devices
    (`Model.over`) is given its part here, and each of its devices answers as many of the queries.

    Returns:
        The loss and the means of all that ``measure`` gives: ``{"loss", "accuracy"}``, the accuracy
        being the fraction of queries whose largest logit is the target; this device's terms of
        them, if batch or sequences are divided. Scalars, in the dtype of the logits but at least
        float32.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from dsfjax.nn import ModelConfig, build
        >>> model = build(ModelConfig("linear_attention", vocab_size=8, d_model=4, num_layers=1))
        >>> batch = Example(jnp.array([[1, 7, 0, 1]]), jnp.array([[3]]), jnp.array([[7]]))
        >>> params = jax.jit(model.init)(jax.random.key(1))
        >>> loss, metrics = jax.jit(lambda params: query_loss(model, params, batch))(params)
        >>> sorted(metrics)
        ['accuracy', 'loss']
    """
    shards = model.shards

    def features_at_queries(example: Example, key: PRNGKeyArray | None) -> Array:
        where, inputs = said(example), shards.own(example.inputs)
        if example.reset is not None:
            where["reset"] = shards.own(example.reset)
        features = model.features(params, inputs, **where, key=key, dropout=dropout)
        # That of a classifier is one query; its head reads each sequence as a whole.
        if model.pooled:
            return model.head(params, features, **where)[None]
        return shards.rows(features, example.query_positions)

    keys = keys_of(key, len(batch.inputs), axis_name)
    features = jax.vmap(features_at_queries)(batch, keys)
    each = jnp.ones(len(batch.targets), int) if weights is None else weights
    each = jnp.broadcast_to(each[:, None], batch.query_positions.shape)
    if batch.weights is not None:
        each = each * batch.weights
    targets, each = jax.vmap(lambda x: jax.tree.map(shards.share, x))((batch.targets, each))
    each = jnp.where(shards.counts(batch.query_positions.shape[1]), each, 0)
    axes = axis_name, shards.axis_name
    if model.pooled:
        return _mean(measure, features, targets, each, axes)
    return _blockwise(measure, partial(model.head, params), features, targets, each, axes)


def full_loss(
    model: Model,
    params: PyTree,
    inputs: Int[Array, "b L"],
    labels: Int[Array, "b L"],
    key: PRNGKeyArray | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Mean cross-entropy over all positions whose label is not -100.

    For data that comes with dense labels; where the labels are few, :func:`query_loss` gives the
    same for less.

    Args:
        model: The model.
        params: Parameters of the model.
        inputs: Token ids, (b, L).
        labels: Target ids, (b, L); -100 where there is none.
        key: A PRNG key for dropout (training), or None (evaluation).

    Returns:
        The loss and ``{"loss", "accuracy"}`` as in :func:`query_loss`. NaN without any label.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from dsfjax.nn import ModelConfig, build
        >>> model = build(ModelConfig("linear_attention", vocab_size=8, d_model=4, num_layers=1))
        >>> params = jax.jit(model.init)(jax.random.key(0))
        >>> inputs = jnp.arange(8).reshape(1, 8)
        >>> loss, _ = jax.jit(lambda params: full_loss(model, params, inputs, inputs))(params)
        >>> bool(loss > 0)
        True
    """

    def logits_of(tokens: Array, key: PRNGKeyArray | None) -> Array:
        return model.apply(params, tokens, key=key)

    keys = None if key is None else jax.random.split(key, len(inputs))
    logits = jax.vmap(logits_of)(inputs, keys)
    labelled = labels != IGNORED
    # An ignored label is no index; any valid one does, as its term is weighted by zero.
    return _mean(cross_entropy, logits, jnp.where(labelled, labels, 0), labelled)


def _mean(
    measure: Measure,
    outputs: Float[Array, "b t k"],
    targets: Shaped[Array, "b t *answer"],
    weights: Shaped[Array, "b t"],
    axes: tuple[str | None, ...] = (),
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    weights = weights.astype(jnp.promote_types(outputs.dtype, jnp.float32))
    means = _sums(measure, outputs, targets, weights / total(weights.sum(), *axes))
    return means["loss"], means


def _sums(
    measure: Measure,
    outputs: Float[Array, "b t k"],
    targets: Shaped[Array, "b t *answer"],
    weights: Float[Array, "b t"],
) -> dict[str, Float[Array, ""]]:
    found = measure(outputs.astype(weights.dtype), targets)
    return {name: (weights * x.astype(weights.dtype)).sum() for name, x in found.items()}


def said(example: Example) -> dict[str, Array]:
    """What an example says of its sequence, as the keywords of a model's functions.

    Args:
        example: One sequence.

    Returns:
        ``length`` and ``reset``, those that it has.

    Examples:
        >>> example = Example(jnp.arange(4), jnp.array([3]), jnp.array([1]), length=jnp.array(3))
        >>> list(said(example))
        ['length']
    """
    own = {"length": example.length, "reset": example.reset}
    return {name: value for name, value in own.items() if value is not None}


def _blockwise(
    measure: Measure,
    head: Callable[[Array], Array],
    features: Float[Array, "b t d"],
    targets: Shaped[Array, "b t *answer"],
    weights: Shaped[Array, "b t"],
    axes: tuple[str | None, ...],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """`_mean` of a head's outputs, of which only so many are in memory at once."""
    width = jax.eval_shape(head, features).shape[-1]
    queries = weights.size
    count = -(-queries * width // BLOCK)
    if count <= 1:
        return _mean(measure, head(features), targets, weights, axes)
    size = -(-queries // count)

    def rows(leaf: Array) -> Array:
        flat = leaf.reshape(queries, *leaf.shape[2:])
        # What fills the last block up repeats the last query, with a weight of 0.
        filled = jnp.concatenate([flat, jnp.repeat(flat[-1:], count * size - queries, axis=0)])
        return filled.reshape(count, 1, size, *filled.shape[1:])

    dtype = jnp.promote_types(features.dtype, jnp.float32)
    weights = weights.astype(dtype) / total(weights.astype(dtype).sum(), *axes)
    own = (jnp.arange(count * size) < queries).reshape(count, 1, size)

    # Without the checkpoint the backward pass would keep the logits of all blocks.
    @jax.checkpoint
    def one(x: Array, targets: Array, weights: Array) -> dict[str, Array]:
        return _sums(measure, head(x), targets, weights)

    def add(sums: PyTree, block: tuple[Array, Array, Array]) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, sums, one(*block)), None

    blocks = rows(features), rows(targets), jnp.where(own, rows(weights), 0)
    first = jax.tree.map(lambda leaf: leaf[0], blocks)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(one, *first))
    sums, _ = jax.lax.scan(add, zeros, blocks)
    return sums["loss"], sums


T = TypeVar("T", bound=PyTree)


def own(examples: Array, axis_name: str | None) -> Array:
    """This device's part of what has an entry per example.

    Args:
        examples: Entries along the first axis, as many as the devices divide.
        axis_name: The axis of the devices, or None.

    Returns:
        The part.

    Examples:
        >>> own(jax.numpy.arange(4), None).tolist()
        [0, 1, 2, 3]
    """
    return Shards(axis_name).own(examples)


def keys_of(
    key: Key[Array, "*examples"] | None, count: int, axis_name: str | None
) -> Key[Array, " count"] | None:
    """A key for each of this device's examples, whichever device has them.

    Args:
        key: The key of a batch; None, or keys of examples, which are returned as they are.
        count: This device's examples.
        axis_name: The axis of the devices, or None.

    Returns:
        The keys, (count,), or None.
    """
    if key is None or key.ndim:
        return key
    devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    return own(jax.random.split(key, devices * count), axis_name)


def total(parts: T, *axes: str | None) -> T:
    """The sum of the parts of all devices, on each of them.

    Args:
        parts: Arrays.
        axes: The axes of the devices; None for one that there is not.

    Returns:
        The sums.
    """
    known = tuple(axis for axis in axes if axis is not None)
    return jax.lax.psum(parts, known) if known else parts


def output_gradients(
    model: Model, params: PyTree, example: Example, *, measure: Measure = cross_entropy
) -> tuple[Float[Array, "L _"], ...]:
    r"""Gradient of the loss of one sequence to the outputs of the systems of all layers.

    .. math:: ∂\mathcal L / ∂y_t, \qquad y_t \text{ the output of a System, before gate and norm},

    which `dsfjax.analysis.state_gradients` carries on to the states.

    Args:
        model: The model.
        params: Its parameters.
        example: One sequence: ``inputs`` (L,), ``query_positions`` (q,) and ``targets`` (q,).
        measure: What gives the loss, as in `dsfjax.training.query_loss`.

    Returns:
        ∂L/∂y of each system, (L, d_out), in the order of ``model.systems``.

    Numerics:
        One backward pass.

    Examples:
        >>> from dsfjax.nn import ModelConfig, build
        >>> model = build(ModelConfig("linear_attention", vocab_size=8, d_model=4, num_layers=2))
        >>> example = Example(jnp.array([1, 7, 0, 1]), jnp.array([3]), jnp.array([7]))
        >>> found = output_gradients(model, model.init(jax.random.key(1)), example)
        >>> [x.shape for x in found]
        [(4, 4), (4, 4)]
    """
    tokens, where = example.inputs, said(example)
    layers = jax.eval_shape(partial(model.systems, **where), params, tokens)
    dtype = jax.eval_shape(model.features, params, tokens).dtype
    zeros = tuple(jnp.zeros((len(tokens), system.output_width), dtype) for system, _ in layers)
    batch = jax.tree.map(lambda leaf: leaf[None], example)

    def loss(added: tuple[Array, ...]) -> Array:
        changed = model._replace(features=partial(model.features, added=added))
        return query_loss(changed, params, batch, measure=measure)[0]

    return jax.grad(loss)(zeros)
