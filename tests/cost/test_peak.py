"""The most that a device can do: declared where its maker says it, else measured, never guessed."""

from types import SimpleNamespace

import jax
import pytest

from dsfjax.cost.peak import DECLARED, declared, measured


@pytest.mark.parametrize(
    ("kind", "precision", "expected"),
    [
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312e12),
        ("NVIDIA A100-SXM4-80GB", "float32", 19.5e12),
        ("TPU v4", "bfloat16", 275e12),
        ("TPU v4", "float32", None),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", "bfloat16", None),
        ("cpu", "float32", None),
    ],
)
def test_declared(kind: str, precision: str, expected: float | None) -> None:
    assert declared(SimpleNamespace(device_kind=kind), precision) == expected


def test_declared_rates_grow_as_the_precision_falls() -> None:
    for rates in DECLARED.values():
        known = [rates[name] for name in ("float32", "tf32", "bfloat16") if name in rates]
        assert known == sorted(known) and all(1e12 < rate < 1e16 for rate in known)


def test_measured_is_kept() -> None:
    assert declared(jax.devices("cpu")[0]) is None
    assert measured(size=128) is measured(size=128)
