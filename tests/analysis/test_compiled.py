"""Public functions are compiled as a whole: a second call on the same shape compiles nothing."""

from collections.abc import Callable
from typing import Any

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import Diagonal, InnerOutput, KernelSystem, OuterInput, System, analysis

L, H, N, P = 4, 1, 2, 2
RNG = np.random.default_rng(0)


def array(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.standard_normal(shape))


SYSTEM = System(
    Diagonal(-jnp.abs(array(L, H, N, 1))),
    OuterInput(array(L, H, N)),
    InnerOutput(array(L, H, N)),
    state_shape=(H, N, P),
)
KERNEL = KernelSystem(array(L, H, N), array(L, H, N), num_channels=P)
U, X, KEY = array(L, H * P), jnp.abs(array(L, H, N)), jax.random.key(0)
SPECTRUM = analysis.Spectrum(*[jnp.full((H, *s), 0.1) for s in [(59,), (36,)] + [()] * 6])
HORIZONS = analysis.Horizons(jnp.ones((L, H, N), int), jnp.zeros((L, H, N), bool))
COUNTS = analysis.HorizonCounts(jnp.ones(L) / L, jnp.zeros(L))
GRAM = jnp.eye(N)
GRAMIANS = analysis.Gramians(*[jnp.broadcast_to(GRAM, (1, H, 1, N, N))] * 2)
ONES: Any = [np.ones(H)] * 10
STABILITY = analysis.Stability(*ONES)


def double(u: jax.Array) -> jax.Array:
    return 2 * u


CALLS: dict[str, Callable[[], Any]] = {
    "agreement": lambda: analysis.agreement(U, 2 * U),
    "attention_map": lambda: analysis.attention_map(SYSTEM, 2),
    "balanced_truncation": lambda: analysis.balanced_truncation(SYSTEM, 1),
    "balancing": lambda: analysis.balancing(GRAMIANS, 1),
    "count_horizons": lambda: analysis.count_horizons(HORIZONS),
    "definiteness": lambda: analysis.definiteness(GRAM),
    "effect": lambda: analysis.effect(SYSTEM, U),
    "effective_dimension": lambda: analysis.effective_dimension(X),
    "eigenvalues": lambda: analysis.eigenvalues(SYSTEM),
    "elu_features": lambda: analysis.elu_features(X),
    "equivalent": lambda: analysis.equivalent(SYSTEM, SYSTEM, U),
    "feature_error": lambda: analysis.feature_error(KERNEL, U, jnp.exp),
    "find_coordinates": lambda: analysis.find_coordinates(SYSTEM, SYSTEM),
    "finite_states": lambda: analysis.finite_states(KERNEL, U, (2,), key=KEY),
    "gain": lambda: analysis.gain(double, U, iterations=2),
    "gradient_norms": lambda: analysis.gradient_norms(SYSTEM, U),
    "gram_matrix": lambda: analysis.gram_matrix(U),
    "gramians": lambda: analysis.gramians(SYSTEM, at=[1]),
    "half_life": lambda: analysis.half_life(SYSTEM),
    "hankel_singular_values": lambda: analysis.hankel_singular_values(GRAMIANS),
    "horizons": lambda: analysis.horizons(SYSTEM, 0.1),
    "impulse_response": lambda: analysis.impulse_response(SYSTEM, 1, U[0]),
    "jacobian_norms": lambda: analysis.jacobian_norms(double, U),
    "lagrange_bound": lambda: analysis.lagrange_bound(X, 2),
    "lemma_1": lambda: analysis.lemma_1(X, X, X),
    "log_eigenvalues": lambda: analysis.log_eigenvalues(SYSTEM),
    "lyapunov_exponents": lambda: analysis.lyapunov_exponents(SYSTEM),
    "mean_age": lambda: analysis.mean_age(SYSTEM),
    "mean_gramians": lambda: analysis.mean_gramians(SYSTEM),
    "merge": lambda: analysis.merge(SPECTRUM),
    "normalized": lambda: analysis.normalized(SYSTEM),
    "normalizers": lambda: analysis.normalizers(SYSTEM),
    "outside": lambda: analysis.outside(SYSTEM),
    "output_bound": lambda: analysis.output_bound(X, 2, X),
    "positive_features": lambda: analysis.positive_features(X, GRAM),
    "quantile": lambda: analysis.quantile(SPECTRUM, 0.5),
    "random_projection": lambda: analysis.random_projection(KEY, N, N),
    "reach": lambda: analysis.reach(GRAM),
    "receptive_field": lambda: analysis.receptive_field(SYSTEM),
    "response": lambda: analysis.response(SYSTEM, 1, jnp.ones((H, N, P))),
    "retention": lambda: analysis.retention(SYSTEM, U, jnp.array([1])),
    "rkhs_norm": lambda: analysis.rkhs_norm(KERNEL, U),
    "spectrum": lambda: analysis.spectrum(SYSTEM),
    "stability": lambda: analysis.stability(SYSTEM, U),
    "state_covariance": lambda: analysis.state_covariance(SYSTEM, U),
    "state_gradients": lambda: analysis.state_gradients(SYSTEM, U),
    "state_use": lambda: analysis.state_use(SYSTEM),
    "survival": lambda: analysis.survival(COUNTS),
    "truncation_error": lambda: analysis.truncation_error(KERNEL, U, 2),
    "truncation_rounding": lambda: analysis.truncation_rounding(X, 2),
    "warnings_of": lambda: analysis.warnings_of(STABILITY),
    "written": lambda: analysis.written(SYSTEM, U),
}
# They count and compile nothing.
COST = {
    "cache_equivalent",
    "cost",
    "count_operations",
    "match_size",
    "num_parameters",
    "state_size",
}
# They put other arrays into a System.
CHANGES = {
    "freeze_decay",
    "replace_gate",
    "replace_write",
    "scale_gate",
    "scale_head",
    "scale_write",
}
# On concrete arrays only, or nothing to compute for this system.
HOST = {"find_coordinates", "finite_states", "warnings_of", "normalized"}


def test_every_public_function_is_here() -> None:
    public = {
        name
        for name, value in vars(analysis).items()
        if not name.startswith("_") and callable(value) and not isinstance(value, type)
    }
    assert public == set(CALLS) | COST | CHANGES


@pytest.mark.parametrize("name", sorted(set(CALLS) - HOST))
def test_traces_to_one_program(name: str) -> None:
    equations = jax.make_jaxpr(CALLS[name])().eqns
    whole = [eqn for eqn in equations if eqn.params.get("name") in (name, f"_{name}")]
    assert len(whole) == 1
    # Besides it there may be the making of its arguments, which are compiled once for all.
    assert len(equations) <= 4


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CALLS))
def test_a_second_call_compiles_nothing(name: str) -> None:
    compiled = []

    def note(event: str, duration_secs: float, **kwargs: str | int) -> None:
        del duration_secs, kwargs
        compiled.append(event)

    jax.block_until_ready(CALLS[name]())
    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        jax.block_until_ready(CALLS[name]())
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    assert not [event for event in compiled if "compile" in event]
