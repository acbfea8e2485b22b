"""Signs of trouble: every one of them in a system that has it, and none in a healthy one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsfjax.analysis import Stability, eigenvalues, normalizers, stability, warnings_of
from dsfjax.core import GivenNormalizer, InnerOutput, OuterInput, Scalar, SummedNormalizer, System
from tests import systems_zoo as zoo
from tests.engine_runs import compiled

L = 64
look = compiled(stability)


def system(decay: float | np.ndarray, **parts) -> System:
    decays = jnp.asarray(np.broadcast_to(decay, (L,)))[:, None]
    one = jnp.ones((1, 1, 1))
    plain = System(
        Scalar(jnp.log(decays)), OuterInput(one), InnerOutput(one), state_shape=(1, 1, 1)
    )
    return dataclasses.replace(plain, **parts)


def said(system: System) -> list[str]:
    u = jnp.asarray(np.random.default_rng(0).normal(size=(L, 1)))
    return warnings_of(look(system, u))


def given(log_eta: np.ndarray) -> GivenNormalizer:
    return GivenNormalizer(jnp.asarray(log_eta)[:, None])


def test_healthy_systems_say_nothing() -> None:
    assert said(system(0.9)) == []
    assert said(system(np.random.default_rng(0).uniform(0.5, 1, L))) == []
    kernel = zoo.kernel_system(L, with_reset=False)
    kernel = dataclasses.replace(kernel, q=0.3 * kernel.q)
    found = warnings_of(look(kernel, zoo.tokens(kernel, L)))
    assert all("exceed 1" in sentence for sentence in found)  # nothing bounds it by 1


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"decay": 1e-4}, ["hardly anything is carried"]),
        ({"decay": 1.0}, ["nothing is ever forgotten"]),
        (
            {"decay": np.where(np.arange(L) % 4, 0.5, 1.5)},
            ["25 % of the eigenvalues exceed 1, the largest is 1.5"],
        ),
        (
            {"decay": 1.2},
            ["exceed 1", "doubles every 3.8 steps", "-fold from the first half"],
        ),
        ({"decay": 0.9, "eta": given(np.linspace(0, 12, L))}, ["normaliser grows by a factor of"]),
        (
            {"decay": 0.9, "eta": given(-np.linspace(0, 12, L))},
            ["exceed 1", "doubles every", "shrinks by a factor of 10^5.2", "the state grows"],
        ),
        (
            {
                "decay": 0.9,
                "eta": SummedNormalizer(),
                "B": OuterInput(jnp.asarray(np.cos(np.arange(L) * 0.5))[:, None, None]),
            },
            ["exceed 1", "normaliser is not positive at"],
        ),
    ],
)
def test_every_trouble_has_its_sentence(parts: dict, words: list[str]) -> None:
    found = said(system(**parts))
    assert all(sentence.startswith("head 0: ") and sentence.endswith(".") for sentence in found)
    assert len(found) == len(words), found
    for sentence, word in zip(found, words, strict=True):
        assert word in sentence, found


def test_overflow_is_reported() -> None:
    found = said(system(1e30))
    assert "overflowed" in found[0]


def test_numbers_of_two_heads() -> None:
    zoo_system = zoo.system("scalar_given", L)
    found = look(zoo_system, zoo.tokens(zoo_system, L))
    values = np.abs(np.asarray(eigenvalues(zoo_system)))[:, :, 0]
    log_eta = np.asarray(normalizers(zoo_system).log)
    defined = ~np.isnan(values)
    count = defined.sum(axis=0)
    expected = {
        "forgetting": np.sum((values < 1e-3) & defined, axis=0) / count,
        "growing": np.sum((values > 1 + 1e-4) & defined, axis=0) / count,
        "largest": np.log(np.nanmax(values, axis=0)),
        "swing": np.ptp(log_eta, axis=0),
        "trend": log_eta[-1] - log_eta[0],
    }
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-10)
    assert found.finite.all() and found.exponent.shape == (zoo.H,)


def test_a_batch_averages_shares_and_reports_the_worst_size() -> None:
    one, other = (
        look(system(decay), jnp.ones((L, 1))) for decay in (0.5, np.where(np.arange(L) < 6, 2, 0.5))
    )
    both = Stability(*jax.tree.map(lambda *x: jnp.stack(x), one, other))
    expected = f"{100 * 6 / L / 2:.0f} % of the eigenvalues exceed 1, the largest is 2:"
    assert [s for s in warnings_of(both) if expected in s]
