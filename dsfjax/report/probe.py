"""A trained model looked into: the eigenvalues of its transitions and one Φ."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from dsfjax.analysis import eigenvalues
from dsfjax.core import InnerOutput, KernelSystem, OuterInput, System
from dsfjax.engines import materialize
from dsfjax.nn import Layers, Model, collect_systems
from dsfjax.report.comparison import Probe
from dsfjax.tasks import mqar
from dsfjax.training.step import HELD_OUT, stream

# Held-out examples whose eigenvalues are shown; Φ is that of the first one.
NUM_EXAMPLES = 8


def probe(model: Model, params: PyTree, task: mqar.MQARConfig) -> Probe:
    """Run a model on held-out examples and read its systems.

    Args:
        model: The model.
        params: Parameters of one member.
        task: The task it was trained on.

    Returns:
        Eigenvalue moduli of all layers on the first ``NUM_EXAMPLES`` examples that training is
        evaluated on, and Φ of head 0 of the last layer on the first of them.
    """
    keys = [stream(jax.random.key(0), HELD_OUT, index) for index in range(NUM_EXAMPLES)]
    examples = [mqar.sample(key, task) for key in keys]
    tokens = jnp.stack([example.inputs for example in examples])

    @jax.jit
    def moduli(params: PyTree, tokens: Array) -> list[Array]:
        def read(layers: Layers) -> list[Array]:
            return [jnp.abs(eigenvalues(system)) for system, _ in layers]

        return collect_systems(model, params, tokens, read)

    @jax.jit
    def kernel_of(params: PyTree, tokens: Array) -> Array:
        return first_kernel(model.systems(params, tokens)[-1][0])

    values = np.concatenate([np.ravel(layer) for layer in moduli(params, tokens)])
    kernel = np.asarray(kernel_of(params, tokens[0]), np.float64)
    maps = kernel.reshape(-1, *kernel.shape[-2:])
    # Signs differ between channels and would cancel in a mean.
    shown = maps[0] if len(maps) == 1 else np.sqrt(np.mean(maps**2, axis=0))
    pairs = tuple((int(t), 2 * j + 1) for j, t in enumerate(examples[0].query_positions))
    return Probe(values[~np.isnan(values)].astype(np.float64), shown, len(maps), pairs)


def first_kernel(system: System | KernelSystem) -> Float[Array, "*channels L L"]:
    """Φ of head 0 on its values; where B or C is dense, of every pair of output and token channel.

    Args:
        system: The system of one layer.

    Returns:
        (L, L), (p, L, L) or (d_out, d, L, L).
    """
    if isinstance(system, System):
        structured = isinstance(system.B, OuterInput) and isinstance(system.C, InnerOutput)
        if not structured:
            return jnp.moveaxis(materialize(system, full=True), (1, 3), (0, 1))
    return materialize(system)[0]
