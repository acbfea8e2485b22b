r"""What a model is trained for: the loss at the positions where something is asked.

With vocabulary :math:`V`, features :math:`x \in \mathbb{R}^{L \times d}` and :math:`q` queries per
sequence, the dense loss costs :math:`L V d` operations for the logits, of which all but
:math:`q V d` are thrown away. :func:`query_loss` gathers the features first and so never computes
them; value and gradient are those of :func:`full_loss`.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, Shaped

from dsfjax.nn import Model
from dsfjax.tasks import Example, cross_entropy

Measure = Callable[[Array, Array], dict[str, Array]]
"""Outputs (…, k) and targets (…) to numbers of every query, as `dsfjax.tasks.Task.measure`."""

IGNORED = -100
"""Label of a position without an answer."""


def query_loss(
    model: Model,
    params: PyTree,
    batch: Example,
    key: PRNGKeyArray | None = None,
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

    Args:
        model: The model; its ``features`` sees one sequence at a time.
        params: Parameters of the model.
        batch: Examples: ``inputs`` (b, L), ``query_positions`` (b, q), ``targets`` (b, q).
        key: A PRNG key for dropout (training), or None (evaluation).
        measure: Outputs and targets to ``loss`` and further numbers of every query
            (`dsfjax.tasks.Task.measure`).
        dropout: A rate in place of the model's own that are not 0; it may be traced.
        weights: Weights of the sequences in the means, such as 0 for those that only fill the batch
            up; None for the same weight for all.
        axis_name: Axis of the devices that the batch is divided over (`dsfjax.training.objective`):
            ``batch`` and ``weights`` are this device's, ``key`` is that of all.

    Returns:
        The loss (this device's term of it, if the batch is divided), and the means of all that
        ``measure`` gives: ``{"loss", "accuracy"}``, the accuracy being the fraction of queries
        whose largest logit is the target. Scalars, in the dtype of the logits but at least float32.

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

    def features_at_queries(example: Example, key: PRNGKeyArray | None) -> Array:
        features = model.features(params, example.inputs, key=key, dropout=dropout)
        return features if model.pooled else features[example.query_positions]

    keys = None
    if key is not None:
        devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
        keys = own(jax.random.split(key, devices * len(batch.inputs)), axis_name)
    features = jax.vmap(features_at_queries)(batch, keys)
    each = jnp.ones(len(batch.targets), int) if weights is None else weights
    each = jnp.broadcast_to(each[:, None], batch.targets.shape)
    if batch.weights is not None:
        each = each * batch.weights
    outputs = model.head(params, features)
    outputs = outputs[:, None] if model.pooled else outputs
    return _mean(measure, outputs, batch.targets, each, axis_name)


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
    targets: Int[Array, "b t"],
    weights: Shaped[Array, "b t"],
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    outputs = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
    weights = weights.astype(outputs.dtype)
    weights = weights / total(weights.sum(), axis_name)
    found = measure(outputs, targets)
    means = {name: (weights * x.astype(weights.dtype)).sum() for name, x in found.items()}
    return means["loss"], means


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
    if axis_name is None:
        return examples
    size = len(examples) // jax.lax.axis_size(axis_name)
    return jax.lax.dynamic_slice_in_dim(examples, jax.lax.axis_index(axis_name) * size, size)


def total(parts: T, axis_name: str | None) -> T:
    """The sum of the parts of all devices, on each of them.

    Args:
        parts: Arrays.
        axis_name: The axis of the devices, or None.

    Returns:
        The sums.
    """
    return parts if axis_name is None else jax.lax.psum(parts, axis_name)


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
        ∂L/∂y of each layer, (L, d_out).

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
    tokens = example.inputs
    layers = jax.eval_shape(model.systems, params, tokens)
    dtype = jax.eval_shape(model.features, params, tokens).dtype
    zeros = tuple(jnp.zeros((len(tokens), system.output_width), dtype) for system, _ in layers)
    batch = jax.tree.map(lambda leaf: leaf[None], example)

    def loss(added: tuple[Array, ...]) -> Array:
        changed = model._replace(features=partial(model.features, added=added))
        return query_loss(changed, params, batch, measure=measure)[0]

    return jax.grad(loss)(zeros)
