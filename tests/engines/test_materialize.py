"""Φ against NumPy: from the loop's impulse responses, and from dense matrices."""

import dataclasses

import numpy as np
import pytest

from dsfjax import materialize, to_dense
from tests import reference_loop as reference
from tests import systems_zoo as zoo
from tests.engine_runs import compiled

L = 5


def impulse_responses(system) -> np.ndarray:
    """(L, d_out, L, d): the loop is linear in u, so its columns are its outputs for unit tokens."""
    columns = np.zeros((L, system.output_width, L, system.token_width))
    for s in range(L):
        for i in range(system.token_width):
            u = np.zeros((L, system.token_width))
            u[s, i] = 1
            columns[:, :, s, i] = reference.run(system, u).y
    return columns


@pytest.mark.parametrize("name", zoo.EVERY)
def test_full_kernel(name):
    system = zoo.system(name, L)
    full = np.asarray(compiled(materialize, full=True, length=L)(system))
    assert reference.error(full, impulse_responses(system)) < 1e-12
    for t in range(L):
        assert np.all(full[t, :, t + 1 :] == 0)


@pytest.mark.parametrize("name", zoo.EVERY)
def test_dense_matrices(name):
    """Products of the paper's matrices, C_t Λ_t ⋯ Λ_{s+1} B_s, give the same kernel."""
    system = zoo.system(name, L)
    dense = compiled(to_dense, length=L)(system)
    A, B, C, D = (np.asarray(x) for x in (dense.A, dense.B, dense.C, dense.D))
    states = system.num_states
    assert A.shape == (L, states, states)
    assert (B.shape[1], C.shape[2]) == (states, states)
    factor = 2 if dense.C.conjugate_pairs and system.is_complex else 1
    full = np.zeros((L, system.output_width, L, system.token_width))
    for s in range(L):
        impulse = np.zeros_like(B[s])
        for t in range(s, L):
            before = impulse
            impulse = A[t] @ impulse if t > s else B[s]
            seen = before if dense.C.before_update else impulse
            full[t, :, s] = factor * np.real(C[t] @ seen)
        full[s, :, s] += D[s]
    assert reference.error(full, impulse_responses(system)) < 1e-12


@pytest.mark.parametrize("name", zoo.EVERY)
def test_kernel_on_values(name):
    system = zoo.system(name, L)
    if not system.acts_on_values:
        with pytest.raises(ValueError, match="full=True"):
            materialize(system, length=L)
        return
    heads, _, p = system.state_shape
    phi = np.asarray(compiled(materialize, length=L)(system))
    written, read = system.B.rank, system.C.rank
    lead = () if written * read == 1 else (read, written)
    assert phi.shape in [(*lead, heads, L, L), (*lead, heads, p, L, L)]
    phi = phi.reshape(read, written, heads, -1, L, L)
    u = np.asarray(zoo.tokens(system, L))
    y = np.zeros((L, system.output_width))
    for t in range(L):
        for s in range(t + 1):
            v = reference.values(system, u, s).reshape(written, heads, p)
            y[t] += (phi[..., t, s] * v).sum(axis=1).reshape(-1)
    without_skip = reference.run(dataclasses.replace(system, D=None), u).y
    assert reference.error(y, without_skip) < 1e-12


def test_shape_follows_what_varies_over_channels():
    shapes = {
        name: np.shape(materialize(zoo.system(name, L)))
        for name in ("scalar_given", "scalar_summed", "scalar_mixed_groups", "diagonal_full")
    }
    assert shapes == {
        "scalar_given": (2, 4, L, L),  # its input scale and gate are per channel
        "scalar_summed": (2, L, L),
        "scalar_mixed_groups": (4, L, L),
        "diagonal_full": (2, 4, L, L),
    }


def test_rows_of_a_summed_normalizer_are_averages():
    phi = np.asarray(materialize(zoo.system("scalar_summed", 20)))
    assert np.all(phi >= 0)
    assert reference.error(phi.sum(axis=-1), np.ones(phi.shape[:2])) < 1e-14


def test_kernel_system_has_no_matrices():
    with pytest.raises(TypeError, match="no finite matrices"):
        to_dense(zoo.kernel_system(3))
