"""A batch of systems, one after the other, against a loop over the sequences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import KernelSystem, OuterInput, System, analysis, nn, systems
from dsfjax.analysis import eigenvalues
from dsfjax.nn import Layers, collect_systems
from tests.checks import unchecked
from tests.engine_runs import compiled
from tests.nn import small

BATCH, L = 3, 7


def tokens() -> jax.Array:
    return jnp.stack([small.tokens(L, seed) for seed in range(BATCH)])


@pytest.mark.parametrize(("mixer", "batch_size"), [("ssd", 1), ("softmax_attention", 2)])
def test_same_as_a_loop(mixer: str, batch_size: int) -> None:
    case = small.compiled(mixer)
    reset = jnp.zeros((BATCH, L), bool).at[1, 3].set(True)

    def moduli(layers):
        return [jnp.abs(eigenvalues(system)) for system, _ in layers]

    got = compiled(
        lambda p, t, r: collect_systems(case.model, p, t, moduli, reset=r, batch_size=batch_size)
    )(case.params, tokens(), reset)
    assert len(got) == 2
    one = compiled(lambda p, t, r: moduli(case.model.systems(p, t, reset=r)))
    for i, sequence in enumerate(tokens()):
        for layer, values in enumerate(one(case.params, sequence, reset[i])):
            np.testing.assert_allclose(got[layer][i], values, rtol=1e-6)


def test_the_identity_collects_the_systems() -> None:
    case = small.compiled("ssd")
    collect = compiled(lambda p, t: collect_systems(case.model, p, t, lambda layers: layers))
    layers, systems_of = collect(case.params, tokens()), compiled(case.model.systems)
    for i, sequence in enumerate(tokens()):
        for (system, u), (one, v) in zip(layers, systems_of(case.params, sequence), strict=True):
            leaves = zip(jax.tree.leaves(system), jax.tree.leaves(one), strict=True)
            for got, expected in leaves:
                np.testing.assert_allclose(got[i], expected, rtol=1e-5, atol=1e-7)
            np.testing.assert_allclose(u[i], v, rtol=1e-5, atol=1e-7)


def test_one_sequence_is_refused() -> None:
    case = small.compiled("ssd")
    with unchecked(), pytest.raises(ValueError, match="use model.systems"):
        collect_systems(case.model, case.params, small.tokens(L), lambda layers: layers)


def _ranked(system: System | KernelSystem) -> bool:
    """Whether a step writes several values, whose ages have no mean."""
    return isinstance(system, System) and isinstance(system.B, OuterInput) and system.B.rank > 1


@pytest.mark.parametrize(
    "mixer",
    [
        name if name == "s6" else pytest.param(name, marks=pytest.mark.slow)
        for name in systems.names()
    ],
)
def test_spectra_and_memory_of_every_architecture(mixer: str) -> None:
    """The tools of analysis on the layers of a model, as shares and ages that must be possible."""
    case = small.compiled(mixer)

    def read(layers: Layers) -> list:
        return [
            (
                eigenvalues(system),
                analysis.spectrum(system),
                analysis.count_horizons(analysis.horizons(system)),
                None if _ranked(system) else analysis.mean_age(system),
                analysis.retention(system, u, jnp.array([2])),
                jnp.array(isinstance(system, System) and system.C.before_update),
            )
            for system, u in layers
        ]

    run = compiled(lambda params, tokens: collect_systems(case.model, params, tokens, read))
    for values, spectra, counts, age, kept, late in run(case.params, tokens()):
        whole = analysis.merge(analysis.merge(spectra))
        np.testing.assert_allclose(whole.modulus.sum(), 1, rtol=1e-6)
        np.testing.assert_allclose(whole.phase.sum(), 1, rtol=1e-6)
        np.testing.assert_allclose(np.exp(whole.maximum), np.nanmax(np.abs(values)), rtol=1e-5)
        np.testing.assert_allclose((counts.ended + counts.censored).sum(axis=-1), 1, rtol=1e-6)
        survival = analysis.survival(jax.tree.map(lambda x: x.mean(axis=0), counts))
        assert (np.diff(survival, axis=-1) <= 1e-6).all() and (survival[:, 0] == 1).all()
        if age is not None:
            # A state read before the update has nothing in it at the first step.
            age = np.asarray(age)[:, 1:]
            assert (age > -1e-5).all() and (age < np.arange(1, L)[:, None, None] + 1e-5).all()
        assert np.isnan(kept.predicted[:, 0, :2]).all()
        # The first output that shows the token: its own, or the next where it is read before.
        first = 3 if np.any(late) else 2
        np.testing.assert_allclose(kept.output[:, 0, first], 1, rtol=1e-5)


def test_a_constant_system_says_how_long_its_sequence_is() -> None:
    """Else a tool that is not told the length would look at one step."""
    model = nn.build(small.config("s4d", num_layers=1))
    params = jax.eval_shape(model.init, jax.random.key(0))
    ((system, u),) = jax.eval_shape(model.systems, params, tokens()[0])
    assert system.A.log_a.shape[0] == 1 and system.length == u.shape[0] == L
