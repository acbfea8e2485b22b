"""AdamW is PyTorch's, its schedule is the one written down, its rate may be traced."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dsfjax.training import optimizer
from dsfjax.training.optimizer import OptimizerConfig, unit_schedule


def gradient(w: Any) -> Any:
    """Of a function with curvatures of many sizes; for NumPy and JAX."""
    return 3.0 * w**3 - w + 0.5


def torch_adamw(w: np.ndarray, rates: list[float], decay: float, eps: float) -> np.ndarray:
    """The published algorithm of torch.optim.AdamW, written as its loop."""
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, rate in enumerate(rates, start=1):
        g = gradient(w)
        w = w - rate * decay * w
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g * g
        denominator = np.sqrt(v) / math.sqrt(1 - 0.999**t) + eps
        w = w - rate / (1 - 0.9**t) * m / denominator
    return w


def descend(adamw: optax.GradientTransformation, w: jax.Array, steps: int) -> jax.Array:
    state = adamw.init(w)
    for _ in range(steps):
        updates, state = adamw.update(gradient(w), state, w)
        w = optax.apply_updates(w, updates)  # type: ignore[assignment]
    return w


@pytest.mark.parametrize("eps", [1e-8, 1e-2])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_equals_torch_adamw(decay: float, eps: float) -> None:
    start = np.linspace(-2.0, 2.0, 7)
    config = OptimizerConfig(weight_decay=decay, eps=eps)
    rates = [0.03 * 0.5 * (1 + math.cos(math.pi * t / 20)) for t in range(20)]
    ours = descend(optimizer.build(config, 0.03, total_steps=20), jnp.asarray(start), 20)
    np.testing.assert_allclose(ours, torch_adamw(start, rates, decay, eps), rtol=0, atol=1e-13)


def test_traced_rate_and_length_equal_given_ones() -> None:
    config = OptimizerConfig(warmup_steps=2)
    start = jnp.linspace(-2.0, 2.0, 5)
    rates, lengths = jnp.array([1e-3, 1e-2, 0.1]), jnp.array([4, 6, 8])
    traced = jax.jit(
        jax.vmap(lambda r, n: descend(optimizer.build(config, r, total_steps=n), start, 4))
    )(rates, lengths)
    for row, rate, length in zip(traced, rates.tolist(), lengths.tolist(), strict=True):
        alone = descend(optimizer.build(config, rate, total_steps=length), start, 4)
        np.testing.assert_allclose(row, alone, rtol=0, atol=1e-14)
    assert float(jnp.abs(traced[0] - traced[2]).max()) > 0.1


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (OptimizerConfig(schedule="constant"), [1, 1, 1, 1, 1, 1, 1, 1]),
        (OptimizerConfig(), [0.5 * (1 + math.cos(math.pi * t / 8)) for t in range(8)]),
        (
            OptimizerConfig(schedule="constant", warmup_steps=4),
            [0.25, 0.5, 0.75, 1, 1, 1, 1, 1],
        ),
        (
            OptimizerConfig(warmup_steps=4),
            [0.25, 0.5, 0.75, 1, 1, *(0.5 * (1 + math.cos(math.pi * t / 4)) for t in (1, 2, 3))],
        ),
        (
            OptimizerConfig(schedule="cosine_per_epoch", steps_per_epoch=2),
            [x for t in range(4) for x in 2 * [0.5 * (1 + math.cos(math.pi * t / 4))]],
        ),
    ],
)
def test_schedule(config: OptimizerConfig, expected: list[float]) -> None:
    factor = unit_schedule(config, None if config.schedule == "constant" else 8)
    found = [float(factor(jnp.int32(t))) for t in range(8)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)


def test_cosine_ends_at_zero_and_stays() -> None:
    factor = unit_schedule(OptimizerConfig(), 8)
    assert [float(factor(jnp.int32(t))) for t in (8, 12)] == [0.0, 0.0]


def test_decay_mask() -> None:
    params = {"w": jnp.ones(2), "b": jnp.ones(2)}
    labels = {"w": "decay", "b": "no_decay"}
    zero = jax.tree.map(jnp.zeros_like, params)
    for decay_all, b in ((True, 0.95), (False, 1.0)):
        config = OptimizerConfig(schedule="constant", decay_all=decay_all)
        adamw = optimizer.build(config, 0.5, labels=lambda _: labels)
        updates, _ = adamw.update(zero, adamw.init(params), params)
        new: Any = jax.tree.map(jnp.add, params, updates)
        np.testing.assert_allclose(new["w"], 0.95, rtol=1e-15)
        np.testing.assert_allclose(new["b"], b, rtol=1e-15)


def test_clip_bounds_the_global_norm() -> None:
    # With b1 = b2 = 0 and a large eps the update is the clipped gradient over eps.
    config = OptimizerConfig(
        schedule="constant", weight_decay=0.0, clip=0.5, b1=0.0, b2=0.0, eps=1e6
    )
    adamw = optimizer.build(config, 1e6)
    g: Any = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    updates: Any
    updates, _ = adamw.update(g, adamw.init(g), g)
    np.testing.assert_allclose(updates["a"], -0.3, rtol=1e-5)
    np.testing.assert_allclose(updates["b"], -0.4, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule": "cosinus"}, "did you mean 'cosine'"),
        ({"steps_per_epoch": 3}, "only there"),
        ({"schedule": "cosine_per_epoch"}, "expected steps_per_epoch"),
        (
            {"schedule": "cosine_per_epoch", "steps_per_epoch": 3, "warmup_steps": 1},
            "expected warmup_steps=0",
        ),
        ({"schedule": "cosine_per_epoch", "steps_per_epoch": 0}, "steps_per_epoch >= 1"),
        ({"weight_decay": -0.1}, "weight_decay >= 0"),
        ({"weight_decay": float("nan")}, "weight_decay: expected a finite number, got nan"),
        ({"eps": float("inf")}, "eps: expected a finite number, got inf"),
        ({"clip": float("nan")}, "clip: expected a finite number, got nan"),
        ({"b2": 1.0}, r"b2 in \[0, 1\)"),
        ({"clip": 0.0}, "clip > 0"),
    ],
)
def test_config_errors(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**fields)


def test_build_errors() -> None:
    with pytest.raises(ValueError, match="expected total_steps"):
        optimizer.build(OptimizerConfig(), 0.1)
    with pytest.raises(ValueError, match="expected labels"):
        optimizer.build(OptimizerConfig(decay_all=False), 0.1, total_steps=3)


def test_dynamics_have_a_rate_of_their_own() -> None:
    config = OptimizerConfig(schedule="constant", dynamics_rate=0.25, decay_all=False)
    labels = {"w": "decay", "A_log": "dynamics", "b": "no_decay"}
    params = {name: jnp.ones(2) for name in labels}
    slow = optimizer.build(config, 0.1, labels=lambda _: labels)
    plain = optimizer.build(
        dataclasses.replace(config, dynamics_rate=1.0), 0.1, labels=lambda _: labels
    )
    one: Any
    other: Any
    one, other = (each.update(params, each.init(params), params)[0] for each in (slow, plain))
    ratio = {name: float(one[name][0] / other[name][0]) for name in labels}
    assert ratio == {"w": 1.0, "A_log": 0.25, "b": 1.0}
    assert float(other["w"][0]) == pytest.approx(-0.11) and float(
        other["A_log"][0]
    ) == pytest.approx(-0.1)
    with pytest.raises(ValueError, match="expected labels with decay_all=False or a dynamics_rate"):
        optimizer.build(OptimizerConfig(schedule="constant", dynamics_rate=0.5), 0.1)
    with pytest.raises(ValueError, match="expected average in"):
        OptimizerConfig(average=1.0)


def test_what_is_frozen_stays_and_has_no_state() -> None:
    """Whatever its gradient; the others move as they do alone."""
    params = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([[3.0]])}
    config = OptimizerConfig(schedule="constant", decay_all=False, clip=0.1, dynamics_rate=0.5)

    def frozen(tree: Any) -> Any:
        return {"a": jax.tree.map(lambda _: "frozen", tree["a"]), "b": "decay"}

    def free(tree: Any) -> Any:
        return jax.tree.map(lambda _: "decay", tree)

    gradients = jax.tree.map(lambda x: 5 * x, params)
    adamw = optimizer.build(config, 0.1, labels=frozen)
    updates: Any
    updates, state = adamw.update(gradients, adamw.init(params), params)
    alone = optimizer.build(config, 0.1, labels=free)
    own = {"b": params["b"]}
    expected: Any
    expected, of_own = alone.update({"b": gradients["b"]}, alone.init(own), own)
    assert not updates["a"].any() and np.array_equal(updates["b"], expected["b"])
    assert jax.tree.all(
        jax.tree.map(np.array_equal, jax.tree.leaves(state), jax.tree.leaves(of_own))
    )
    plain = optimizer.build(OptimizerConfig(schedule="constant"), 0.1)
    with_labels = optimizer.build(OptimizerConfig(schedule="constant"), 0.1, labels=free)
    same = jax.tree.structure(plain.init(params)) == jax.tree.structure(with_labels.init(params))
    assert same
