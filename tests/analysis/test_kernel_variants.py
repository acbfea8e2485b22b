"""What analysis says of kernels with a window, decays, a soft cap or a sink."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import Scalar, analysis, feature_system, materialize
from dsfjax.analysis.phi import kernel_rows, map_rows
from tests import reference_loop as reference
from tests import systems_zoo as zoo
from tests.engine_runs import compiled


@pytest.mark.parametrize("name", ["everything", "path"])
def test_rows_are_those_of_the_attention_map(name):
    system = zoo.kernel_variant(name, 20)
    rows = jax.jit(lambda s: map_rows(kernel_rows("test", s, 20), 20, 4))(system)
    assert reference.error(jnp.moveaxis(rows[..., 0], 2, 0), materialize(system)) < 1e-12


def test_eigenvalues_are_decays_times_ratios_of_normalisers():
    system = zoo.kernel_variant("forgetting", 9, with_reset=False)
    log_a = np.asarray(system.weight_log_decay)
    eta = np.zeros((9, 4))
    for h in range(4):
        for t in range(9):
            eta[t, h] = sum(np.exp(reference.score(system, h, t, s)) for s in range(t + 1))
    expected = np.exp(log_a[1:]) * eta[:-1] / eta[1:]
    found = compiled(analysis.eigenvalues)(system)[1:, :, 0]
    assert reference.error(found, expected) < 1e-12


def test_features_keep_decays_and_refuse_the_rest():
    """Linear attention with decays: Φ of the finite system, row by row."""
    system = zoo.kernel_variant("forgetting", 6)
    finite = feature_system(system, jnp.exp)
    assert isinstance(finite.A, Scalar) and finite.A.log_a is system.weight_log_decay
    message = r"feature_system: expected the kernel.*with window, soft_cap.*dataclasses\.replace"
    with pytest.raises(ValueError, match=message):
        feature_system(zoo.kernel_variant("window", 6), jnp.exp)
    with pytest.raises(ValueError, match="keys are moved by a transition"):
        analysis.eigenvalues(zoo.kernel_variant("path", 6))
    with pytest.raises(ValueError, match="rkhs_norm: .*with transition"):
        analysis.rkhs_norm(system, zoo.tokens(system, 6))
