"""What is said of a model is what the functions of analysis say of its systems."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax import analysis, nn
from dsfjax.aspects import Asked, Findings, gradient_flow, phi_maps, state_use
from dsfjax.aspects.eigenvalues import MODULUS_BINS
from dsfjax.aspects.memory_curves import FADED
from dsfjax.core import (
    Dense,
    DenseInput,
    DenseOutput,
    Diagonal,
    InnerOutput,
    OuterInput,
    System,
)
from dsfjax.engines import materialize
from dsfjax.report.examine import examine
from dsfjax.tasks import Example, mqar
from dsfjax.training.objective import output_gradients
from dsfjax.training.step import HELD_OUT, stream

TASK = mqar.MQARConfig(vocab_size=16, seq_len=12, num_kv_pairs=2)
EXAMPLES = [mqar.sample(stream(jax.random.key(0), HELD_OUT, i), TASK) for i in range(2)]
MARKS = jnp.array([1, 3])
SLOW = pytest.param("linear_attention", marks=pytest.mark.slow)


def model_of(mixer: str) -> tuple[nn.Model, dict]:
    config = nn.ModelConfig(mixer, vocab_size=16, d_model=8, d_state=3, block="mamba")
    model = nn.build(config)
    return model, model.init(jax.random.key(1))


@pytest.fixture(scope="module", params=["s6", "softmax_attention", SLOW])
def case(request: pytest.FixtureRequest) -> tuple[nn.Model, dict, Findings]:
    model, params = model_of(request.param)
    return model, params, examine(model, params, TASK, count=2)


def test_layers_are_what_analysis_says(case: tuple[nn.Model, dict, Findings]) -> None:
    model, params, found = case

    @jax.jit
    def look(tokens: jax.Array) -> list[tuple]:
        systems = [system for system, _ in model.systems(params, tokens)]
        return [
            (
                jnp.abs(analysis.eigenvalues(s)),
                jnp.median(analysis.half_life(s), axis=1),
                jnp.nanmean(analysis.mean_age(s), axis=(1, 2)),
                analysis.count_horizons(analysis.horizons(s, FADED)),
                analysis.lyapunov_exponents(s).max(),
            )
            for s in systems
        ]

    rows = [look(example.inputs) for example in EXAMPLES]
    columns = [found[name] for name in ("eigenvalues", "memory", "stability")]
    assert list(map(len, columns)) == [2, 2, 2]
    for i, (layer, memory, flow) in enumerate(zip(*columns, strict=True)):
        moduli, half, ages, counts, exponents = zip(*(row[i] for row in rows), strict=True)
        values = np.ravel(moduli)
        values = values[~np.isnan(values)]
        shares = np.histogram(np.minimum(values, MODULUS_BINS[-1]), MODULUS_BINS)[0] / values.size
        np.testing.assert_allclose(layer.moduli, shares, atol=1e-12)
        assert layer.growing == pytest.approx(np.mean(values > 1))
        assert flow.growing == pytest.approx(layer.growing)
        assert layer.is_positive
        assert memory.half_life == pytest.approx(np.median(half))
        np.testing.assert_allclose(memory.mean_age, np.mean(ages, axis=0), rtol=1e-9)
        mean = analysis.HorizonCounts(
            *(jnp.stack(x).mean(axis=(0, 1)) for x in zip(*counts, strict=True))
        )
        np.testing.assert_allclose(memory.survival, analysis.survival(mean), rtol=1e-9)
        assert flow.exponents[-1] == pytest.approx(np.max(exponents))


def test_state_use_and_gradients(case: tuple[nn.Model, dict, Findings]) -> None:
    model, params, found = case
    used, flows = found["state_use"], found["stability"]
    if used[0].use is None:
        assert all(x.use is None and x.dimension is None for x in used)
        assert all(x.gradient is None for x in flows)
        assert state_use.share_used(used) is None and gradient_flow.gradient_ratio(flows) is None
        assert "state_over_time" not in found
        return

    @jax.jit
    def look(example: Example) -> list[tuple]:
        dy = output_gradients(model, params, example)
        pairs = zip(model.systems(params, example.inputs), dy, strict=True)
        return [(analysis.state_use(s), analysis.gradient_norms(s, y)) for (s, _), y in pairs]

    rows = [look(example) for example in EXAMPLES]
    for i, (layer, flow) in enumerate(zip(used, flows, strict=True)):
        use, norms = (np.stack(x) for x in zip(*(row[i] for row in rows), strict=True))
        np.testing.assert_allclose(layer.use, np.sqrt((use**2).mean(axis=0)), rtol=1e-6, atol=1e-9)
        assert layer.dimension == np.mean(analysis.effective_dimension(jnp.asarray(use**2)).rank)
        square = (norms**2).sum(axis=2).mean(axis=0)
        np.testing.assert_allclose(flow.gradient, np.sqrt(square), rtol=1e-6)


def test_traces_and_kernels(case: tuple[nn.Model, dict, Findings]) -> None:
    model, params, found = case
    assert found["phi"][0].pairs == tuple(
        (int(t), 2 * j + 1) for j, t in enumerate(EXAMPLES[0].query_positions)
    )
    layers = jax.jit(model.systems)(params, EXAMPLES[0].inputs)
    for (system, _), layer in zip(layers, found["phi"], strict=True):
        phi = np.asarray(materialize(system))[0]
        if phi.ndim == 3:
            assert layer.num_channels == len(phi)
            phi = np.sqrt((phi**2).mean(axis=0))
        np.testing.assert_allclose(layer.kernel, phi, rtol=1e-6, atol=1e-12)
    kept = []
    retain = jax.jit(lambda x: analysis.retention(*model.systems(params, x)[0], MARKS))
    for example in EXAMPLES:
        retention = retain(example.inputs)
        trace = retention.output if retention.state is None else retention.state
        kept += [trace[m, example.query_positions[m]] for m in range(2)]
    expected = np.exp(np.mean(np.log(np.stack(kept))))
    assert found["memory"][0].until_asked == pytest.approx(expected, rel=1e-6)


def test_many_channels_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phi_maps, "MOST_CHANNELS", 3)
    decay = -jnp.asarray(np.random.default_rng(0).uniform(0.1, 1, (5, 2, 1, 6)))
    parts = Diagonal(decay), OuterInput(), InnerOutput()
    system = System(*parts, state_shape=(2, 1, 6))
    asked = Asked(jnp.zeros(1, int), None)
    found = jax.jit(phi_maps.measure)(system, jnp.zeros((5, 12)), jnp.zeros((5, 12)), asked)
    layer = phi_maps.summarise(found)
    shown = np.asarray(materialize(system))[0][[0, 2, 5]]
    np.testing.assert_allclose(layer.kernel, np.sqrt((shown**2).mean(axis=0)), rtol=1e-12)
    assert phi_maps.caption([layer]) == ("Root mean square over 3 of the 6 channels of the head.")


def test_dense_maps_have_a_kernel_on_tokens() -> None:
    rng = np.random.default_rng(0)
    system = System(
        Dense(jnp.asarray(rng.standard_normal((1, 3, 3)))),
        DenseInput(jnp.asarray(rng.standard_normal((5, 3, 2)))),
        DenseOutput(jnp.asarray(rng.standard_normal((5, 4, 3)))),
        state_shape=(1, 3, 1),
    )
    full = np.asarray(materialize(system, full=True))
    asked = Asked(jnp.zeros(1, int), None)
    found = jax.jit(phi_maps.measure)(system, jnp.zeros((5, 2)), jnp.zeros((5, 4)), asked)
    assert found.num_channels == 8 and found.pairs.shape == (0, 2)
    np.testing.assert_allclose(found.kernel, np.sqrt((full**2).mean(axis=(1, 3))))
