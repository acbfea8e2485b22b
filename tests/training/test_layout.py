"""How members are laid out: few slices, as equal as can be, none lost."""

import jax
import numpy as np
import pytest

from dsfjax.training.compilation import budget
from dsfjax.training.devices import SPLIT, WHOLE, layout


@pytest.mark.parametrize("num_members", [1, 2, 7, 10, 32])
@pytest.mark.parametrize("num_devices", [1, 3, 8])
@pytest.mark.parametrize("at_most", [None, 1, 4, 9, 100])
def test_every_member_has_one_place(
    num_members: int, num_devices: int, at_most: int | None
) -> None:
    device = jax.devices()[0]
    where = layout(num_members, [device] * num_devices, at_most=at_most)
    used = min(num_devices, num_members)
    assert len(where.devices) == used
    assert where.slice_size % used == 0
    assert at_most is None or where.slice_size <= max(at_most, used)
    rows = where.indices()
    assert len(rows) == where.num_slices
    assert np.concatenate(rows)[:num_members].tolist() == list(range(num_members))
    assert (np.concatenate(rows)[num_members:] == num_members - 1).all()
    # No slice is there to be filled up only, and the same limit gives the same layout again.
    assert where.slice_size * (where.num_slices - 1) < num_members
    assert layout(num_members, [device] * num_devices, at_most=where.slice_size) == where


def test_limit_must_be_positive() -> None:
    with pytest.raises(ValueError, match="at least one member at once, got 0"):
        layout(3, jax.devices(), at_most=0)


def test_width_must_divide() -> None:
    assert layout(6, jax.devices()[:1]).width == 1
    assert layout(6, jax.devices()[:1], width=3).width == 3
    with pytest.raises(ValueError, match="a width that divides 6 members, got 4"):
        layout(6, jax.devices()[:1], width=4)


def test_put_keeps_values() -> None:
    where = layout(3, jax.devices()[:1])
    tree = {"a": np.arange(6).reshape(3, 2), "b": jax.numpy.arange(3.0)}
    for spec in (SPLIT, WHOLE):
        placed = where.put(tree, spec)
        np.testing.assert_array_equal(placed["a"], tree["a"])
        np.testing.assert_array_equal(placed["b"], [0.0, 1.0, 2.0])
        assert placed["b"].sharding.is_equivalent_to(where.sharding(spec), 1)


def test_budget_is_shared_by_the_devices_of_a_machine() -> None:
    (device,) = jax.devices()[:1]
    assert budget([device, device]) == pytest.approx(budget([device]) / 2, abs=1)
