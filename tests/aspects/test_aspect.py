"""One object is a section, a file, columns and a sentence of the verdict."""

import csv
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from dsfjax import Diagonal, InnerOutput, OuterInput, Scalar, System, materialize, scan
from dsfjax.aspects import Aspect, phi_maps, register, state_over_time
from dsfjax.aspects import aspect as registry
from dsfjax.report import page
from dsfjax.report.export import write_data
from dsfjax.report.verdict import decide
from tests.report.synthetic import comparison

L = 12


def sizes(system: System) -> state_over_time.Sizes:
    u = jnp.zeros((L, 6))
    run = jax.jit(lambda system: state_over_time.measure(system, u, u))
    return jax.tree.map(np.asarray, run(system))


def test_state_over_time_is_the_rank_of_the_block_from_past_to_future() -> None:
    rng = np.random.default_rng(0)
    a = jnp.asarray(-rng.random((L, 2, 4)))
    b, c = (jnp.asarray(rng.standard_normal((L, 2, 4))) for _ in range(2))
    system = System(Diagonal(a[..., None]), OuterInput(b), InnerOutput(c), state_shape=(2, 4, 3))
    found = sizes(system)
    phi = np.asarray(jax.jit(materialize)(system))
    assert found.steps.tolist() == list(range(L))
    for t in range(L):
        values = np.sort(
            np.concatenate([np.linalg.svd(phi[h, t:, : t + 1], compute_uv=False) for h in range(2)])
        )[::-1]
        # Each of the three value channels of a head has this block.
        assert found.rank[t] == 3 * np.sum(values > 1e-3 * values[0])
        p = values[values > 1e-12 * values[0]] / values.sum()
        np.testing.assert_allclose(found.entropy[t], 3 * np.exp(-np.sum(p * np.log(p))), rtol=1e-4)


@pytest.mark.parametrize("over", ["n", "p"])
def test_phi_of_a_system_without_one_entry_per_channel_is_that_of_the_tokens(over: Any) -> None:
    """Two terms written per step, or an output of n states instead of p channels."""
    rng, rank = np.random.default_rng(0), 2 if over == "n" else 1
    b = jnp.asarray(rng.standard_normal((4, *[2] * (rank - 1), 1, 3)))
    C = InnerOutput(jnp.asarray(rng.standard_normal((4, 1, 3 if over == "n" else 2))), over=over)
    system = System(Scalar(jnp.zeros((1, 1))), OuterInput(b, rank=rank), C, state_shape=(1, 3, 2))
    u = jnp.zeros((4, system.token_width))
    measure = jax.jit(lambda s: phi_maps.measure(s, u, u, registry.Asked(jnp.zeros(1, int), None)))
    jacobian = np.asarray(jax.jit(jax.jacrev(lambda u: scan(system, u)[0]))(u))  # (L, d_out, L, d)
    expected = np.sqrt(np.mean(jacobian**2, axis=(1, 3)))
    np.testing.assert_allclose(measure(system).kernel, expected, atol=1e-7)


def test_a_system_without_a_finite_state_has_no_such_size() -> None:
    scalar = System(Scalar(jnp.zeros((1, 1))), OuterInput(), InnerOutput(), state_shape=(1, 1, 6))
    found = sizes(scalar)
    np.testing.assert_allclose(found.entropy, 6.0, rtol=1e-6)  # one direction per channel
    assert (found.rank == 6).all()


def test_models_that_need_as_much_are_not_put_in_an_order() -> None:
    def layers(size: float) -> list[state_over_time.Sizes]:
        return [state_over_time.Sizes(np.arange(2), np.array([2.0, 4.0]), np.array([1.0, size]))]

    assert state_over_time.find({"a": layers(10.0), "b": layers(9.0)}) == ""
    assert state_over_time.find({"a": layers(10.0), "b": layers(5.0)}).startswith("a sends most")


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Aspect:
    """An aspect as a user would write it."""

    def draw(mixer: str, layers: Any, color: str) -> Figure:
        figure = Figure()
        figure.add_subplot().bar(range(len(layers)), layers, color=color)
        return figure

    monkeypatch.setattr(registry, "_ASPECTS", dict(registry._ASPECTS))
    return register(
        Aspect(
            name="gain_of_tokens",
            title="How large tokens are",
            how="How to read: a bar per layer.",
            measure=lambda system, u, dy: jnp.abs(u).max(),
            summarise=lambda found: float(np.mean(found)),
            draw=draw,
            rows=lambda layer: [{"largest": layer}],
            columns={"largest token": max},
            find=lambda models: f"{max(models, key=lambda name: max(models[name]))} is largest.",
        )
    )


def test_one_object_is_section_file_column_and_sentence(own: Aspect, tmp_path: Path) -> None:
    made = comparison()
    entries = tuple(
        dataclasses.replace(e, findings={**e.findings, own.name: (0.5, float(i))})
        for i, e in enumerate(made.entries)
        if e.findings is not None
    )
    made = dataclasses.replace(made, entries=entries)
    verdict = decide(made)
    assert verdict.reasons[own.title] == f"{entries[-1].mixer} is largest."
    files = write_data(made, tmp_path)
    with (tmp_path / f"{own.name}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[1] == {"mixer": entries[0].mixer, "layer": "2", "largest": "0.0"}
    text = page.render(made, verdict, "t", files)
    assert f"<h2>{own.title}</h2>" in text and own.how in text
    assert "largest token</button>" in text and f"data/{own.name}.csv" in text


def test_a_name_that_cannot_be_a_file_is_refused(own: Aspect) -> None:
    with pytest.raises(ValueError, match="letters, digits and underscores, got 'a/b'"):
        dataclasses.replace(own, name="a/b")
