"""What the loss says to the systems inside a model: its gradient to the outputs of every layer."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from dsfjax.nn import Model
from dsfjax.tasks import Example, cross_entropy
from dsfjax.training.objective import Measure, query_loss


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
