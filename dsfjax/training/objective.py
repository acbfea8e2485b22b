r"""What a model is trained for: cross-entropy at the positions that carry an answer.

With vocabulary :math:`V`, features :math:`x \in \mathbb{R}^{L \times d}` and :math:`q` queries per
sequence, the dense loss costs :math:`L V d` operations for the logits, of which all but
:math:`q V d` are thrown away. :func:`query_loss` gathers the features first and so never computes
them; value and gradient are those of :func:`full_loss`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, Shaped

from dsfjax.nn import Model
from dsfjax.tasks.mqar import Batch
from dsfjax.training import division

IGNORED = -100
"""Label of a position without an answer."""


def query_loss(
    model: Model,
    params: PyTree,
    batch: Batch,
    key: PRNGKeyArray | None = None,
    *,
    dropout: Float[Array, ""] | None = None,
    weights: Shaped[Array, " b"] | None = None,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    r"""Mean cross-entropy over the query positions of a batch.

    .. math:: \frac{1}{bq} \sum_{i,j} \left[ \log \sum_v e^{z_{ijv}} - z_{ij\,y_{ij}} \right],
        \qquad z_{ij} = \mathrm{head}(x_i[t_{ij}])

    Args:
        model: The model; its ``features`` sees one sequence at a time.
        params: Parameters of the model.
        batch: ``inputs`` (b, L), ``query_positions`` (b, q) and ``targets`` (b, q), integers.
        key: A PRNG key for dropout (training), or None (evaluation).
        dropout: A rate in place of the model's own that are not 0; it may be traced.
        weights: Weights of the sequences in the means, such as 0 for those that only fill the batch
            up; None for the same weight for all.
        axis_name: Axis of the devices that the batch is divided over (`dsfjax.training.division`):
            ``batch`` and ``weights`` are this device's, ``key`` is that of all.

    Returns:
        The loss (this device's term of it, if the batch is divided), and ``{"loss", "accuracy"}``:
        accuracy is the fraction of queries whose largest logit is the target. Scalars, in the dtype
        of the logits but at least float32.

    Examples:
        >>> import jax
        >>> from dsfjax.nn import ModelConfig, build
        >>> from dsfjax.tasks import mqar
        >>> task = mqar.MQARConfig(vocab_size=64, seq_len=32, num_kv_pairs=4)
        >>> model = build(ModelConfig("linear_attention", vocab_size=64, d_model=4, num_layers=1))
        >>> batch = mqar.batch(jax.random.key(0), task, 2)
        >>> params = jax.jit(model.init)(jax.random.key(1))
        >>> loss, metrics = jax.jit(lambda params: query_loss(model, params, batch))(params)
        >>> sorted(metrics)
        ['accuracy', 'loss']
    """

    def features_at_queries(example: Batch, key: PRNGKeyArray | None) -> Array:
        features = model.features(params, example.inputs, key=key, dropout=dropout)
        return features[example.query_positions]

    keys = None
    if key is not None:
        devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
        keys = division.own(jax.random.split(key, devices * len(batch.inputs)), axis_name)
    features = _over_batch(features_at_queries, batch, keys)
    each = jnp.ones(len(batch.targets), int) if weights is None else weights
    each = jnp.broadcast_to(each[:, None], batch.targets.shape)
    return _cross_entropy(model.head(params, features), batch.targets, each, axis_name)


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
    logits = _over_batch(logits_of, inputs, keys)
    labelled = labels != IGNORED
    # An ignored label is no index; any valid one does, as its term is weighted by zero.
    return _cross_entropy(logits, jnp.where(labelled, labels, 0), labelled)


def _over_batch(function: Callable[..., Array], batch: PyTree, keys: Array | None) -> Array:
    if keys is None:
        return jax.vmap(lambda example: function(example, None))(batch)
    return jax.vmap(function)(batch, keys)


def _cross_entropy(
    logits: Float[Array, "b t v"],
    targets: Int[Array, "b t"],
    weights: Shaped[Array, "b t"],
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    weights = weights.astype(logits.dtype)
    weights = weights / division.total(weights.sum(), axis_name)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    loss = (weights * (jax.nn.logsumexp(logits, axis=-1) - chosen)).sum()
    accuracy = (weights * (logits.argmax(axis=-1) == targets)).sum()
    return loss, {"loss": loss, "accuracy": accuracy}
