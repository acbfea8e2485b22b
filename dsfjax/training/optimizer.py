"""AdamW and its learning-rate schedule, with a learning rate that may be traced.

A sweep trains many learning rates in one compiled program, so the rate is an array there, as the
weight decay is, and the schedule has peak 1: rate and schedule are multiplied. (A schedule that is
*built* from a traced peak fails.)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree, Shaped

from dsfjax._util.fields import convert_fields
from dsfjax._util.names import choose

SCHEDULES = ("cosine", "cosine_per_epoch", "constant")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW without its learning rate, which is a member's own (``TrainConfig.learning_rates``).

    The defaults are those of the paper's experiments, except that its code steps the cosine once
    per epoch (``schedule="cosine_per_epoch"`` with ``steps_per_epoch``).

    Attributes:
        schedule: "cosine" to zero at the last step, "cosine_per_epoch" (the same, but constant
            within an epoch), or "constant".
        warmup_steps: Steps of linear warm-up before the schedule, the last of them at the peak.
        steps_per_epoch: Steps in an epoch, for "cosine_per_epoch" only.
        weight_decay: Decoupled weight decay; a step shrinks by learning rate × this.
        decay_all: Decay every parameter, biases and norms included, as the paper does; False
            spares those that the model labels "no_decay" or "dynamics".
        dynamics_rate: Factor on the learning rate of the parameters that the model labels
            "dynamics", such as A_log and the bias of Δ; state-space models are often trained with
            a lower rate there (arXiv 2111.00396).
        average: Decay rate of an exponential moving average of the parameters, by which the model
            is then judged and which a finished run has; None for the parameters themselves.
        b1: Decay rate of the first moment.
        b2: Decay rate of the second moment.
        eps: Added to the root of the second moment.
        clip: Largest global norm of the gradient, or None.

    Examples:
        >>> OptimizerConfig(schedule="cosin")
        Traceback (most recent call last):
            ...
        ValueError: unknown schedule 'cosin'; did you mean 'cosine'? Known: cosine,
        cosine_per_epoch, constant.
    """

    schedule: str = "cosine"
    warmup_steps: int = 0
    steps_per_epoch: int | None = None
    weight_decay: float = 0.1
    decay_all: bool = True
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip: float | None = None
    dynamics_rate: float = field(default=1.0, metadata={"later": True})
    average: float | None = field(default=None, metadata={"later": True})

    def __post_init__(self) -> None:
        convert_fields(self)
        choose("schedule", self.schedule, SCHEDULES)
        if (self.schedule == "cosine_per_epoch") != (self.steps_per_epoch is not None):
            raise ValueError(
                'expected steps_per_epoch with schedule="cosine_per_epoch" and only there, got '
                f"schedule={self.schedule!r} and steps_per_epoch={self.steps_per_epoch}"
            )
        if self.schedule == "cosine_per_epoch" and self.warmup_steps:
            raise ValueError(
                f"expected warmup_steps=0 with a schedule per epoch, got {self.warmup_steps}; "
                'use schedule="cosine"'
            )
        if self.steps_per_epoch is not None and self.steps_per_epoch < 1:
            raise ValueError(f"expected steps_per_epoch >= 1, got {self.steps_per_epoch}")
        for name in ("warmup_steps", "weight_decay", "eps"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"expected {name} >= 0 and finite, got {value}")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"expected {name} in [0, 1), got {getattr(self, name)}")
        if not (self.dynamics_rate >= 0 and math.isfinite(self.dynamics_rate)):
            raise ValueError(
                f"expected dynamics_rate >= 0 and finite, got {self.dynamics_rate}; 0 leaves the "
                "dynamics as they are initialised"
            )
        if self.average is not None and not 0 <= self.average < 1:
            raise ValueError(f"expected average in [0, 1) or None, got {self.average}")
        if self.clip is not None and not (self.clip > 0 and math.isfinite(self.clip)):
            raise ValueError(f"expected clip > 0 and finite, or None, got {self.clip}")


def unit_schedule(
    config: OptimizerConfig, total_steps: int | Int[Array, ""] | None
) -> Callable[[Any], Float[Array, ""]]:
    r"""The learning rate over its peak, as a function of the number of steps already taken.

    With warm-up :math:`w`, total :math:`T` and step :math:`t` (the first is 0):
    :math:`(t+1)/w` for :math:`t < w`, then 1 (constant) or
    :math:`\tfrac12 (1 + \cos(π (t-w)/(T-w)))`; per epoch of :math:`s` steps,
    :math:`\tfrac12 (1 + \cos(π \lfloor t/s \rfloor / (T/s)))`.

    Args:
        config: Which schedule.
        total_steps: T, which may be traced; None is enough for "constant".

    Returns:
        A function of the step (integer scalar) to the factor, a float scalar in [0, 1].

    Raises:
        ValueError: If the schedule needs ``total_steps`` and has none.

    Examples:
        >>> factor = unit_schedule(OptimizerConfig(warmup_steps=2), total_steps=6)
        >>> [round(float(factor(t)), 3) for t in range(6)]
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    if total_steps is None and config.schedule != "constant":
        raise ValueError(
            f"expected total_steps with schedule={config.schedule!r}, got None; "
            'give it, or use schedule="constant"'
        )

    def decay(t: Float[Array, ""]) -> Float[Array, ""]:
        if total_steps is None or config.schedule == "constant":
            return jnp.ones_like(t)
        if config.steps_per_epoch is None:
            fraction = (t - config.warmup_steps) / (total_steps - config.warmup_steps)
        else:
            num_epochs = total_steps / config.steps_per_epoch
            fraction = jnp.floor(t / config.steps_per_epoch) / num_epochs
        return 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip(fraction, 0.0, 1.0)))

    def factor(step: Any) -> Float[Array, ""]:
        t = jnp.asarray(step, float)
        if config.warmup_steps == 0:
            return decay(t)
        return jnp.where(t < config.warmup_steps, (t + 1.0) / config.warmup_steps, decay(t))

    return factor


def build(
    config: OptimizerConfig,
    learning_rate: float | Float[Array, ""],
    *,
    total_steps: int | Int[Array, ""] | None = None,
    weight_decay: float | Float[Array, ""] | None = None,
    labels: Callable[[PyTree], PyTree] | None = None,
) -> optax.GradientTransformation:
    r"""AdamW as PyTorch defines it, with a rate, a length and a decay that may be traced.

    .. math:: θ \leftarrow θ - α_t \left( \frac{\hat m_t}{\sqrt{\hat v_t} + ε} + w θ \right),
        \qquad α_t = α \cdot \text{schedule}(t)

    Build it inside the function that is vmapped over learning rates; the optimiser's state does
    not depend on them.

    Args:
        config: Everything but the rate.
        learning_rate: The peak :math:`α`, a number or a traced scalar.
        total_steps: Length of the schedule in steps; needed unless it is constant.
        weight_decay: In place of the config's; None takes that.
        labels: ``Model.labels``: params to a tree of "decay", "no_decay", "dynamics", and "frozen"
            for what stays as it is and has no state here. Needed with ``decay_all=False`` or a
            ``dynamics_rate`` other than 1.

    Returns:
        An optax gradient transformation.

    Raises:
        ValueError: If ``total_steps`` or ``labels`` is needed and absent.

    References:
        Loshchilov and Hutter (2019), arXiv:1711.05101.

    Examples:
        >>> import jax.numpy as jnp
        >>> optimizer = build(OptimizerConfig(schedule="constant"), 0.1)
        >>> params = {"w": jnp.array(1.0)}
        >>> updates, _ = optimizer.update({"w": jnp.array(2.0)}, optimizer.init(params), params)
        >>> round(float(updates["w"]), 4)
        -0.11
    """
    if labels is None and not (config.decay_all and config.dynamics_rate == 1):
        raise ValueError(
            "expected labels with decay_all=False or a dynamics_rate other than 1, got None; pass "
            "Model.labels"
        )

    def decays(params: PyTree) -> PyTree:
        assert labels is not None
        return jax.tree.map(lambda label: label == "decay", labels(params))

    decay = config.weight_decay if weight_decay is None else weight_decay

    def shrink(updates: PyTree, params: PyTree) -> PyTree:
        return jax.tree.map(lambda u, p: u + jnp.asarray(decay, u.dtype) * p, updates, params)

    def descend(updates: PyTree, rate: Shaped[Array, ""] | float) -> PyTree:
        down = jax.tree.map(lambda u: -jnp.asarray(rate, u.dtype) * u, updates)
        if labels is None or config.dynamics_rate == 1:
            return down
        return jax.tree.map(
            lambda u, label: config.dynamics_rate * u if label == "dynamics" else u,
            down,
            labels(updates),
        )

    parts = [
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.stateless(shrink)
        if config.decay_all
        else optax.masked(optax.stateless(shrink), decays),
        optax.scale_by_schedule(unit_schedule(config, total_steps)),
        optax.stateless(lambda updates, _: descend(updates, learning_rate)),
    ]
    if config.clip is not None:
        parts.insert(0, optax.clip_by_global_norm(config.clip))
    inner = optax.chain(*parts)
    return inner if labels is None else _without_frozen(inner, labels)


def _without_frozen(
    inner: optax.GradientTransformation, labels: Callable[[PyTree], PyTree]
) -> optax.GradientTransformation:
    """A transformation that neither sees nor changes the parameters labelled "frozen"."""

    def seen(tree: PyTree) -> PyTree:
        # A node without leaves in the place of a parameter, as `optax.masked` has it; but without
        # frozen parameters the state is that of the inner transformation itself.
        return jax.tree.map(
            lambda label, x: optax.MaskedNode() if label == "frozen" else x, labels(tree), tree
        )

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        found, state = inner.update(seen(updates), state, None if params is None else seen(params))

        def restored(x: Array, new: Any) -> Array:
            return jnp.zeros_like(x) if isinstance(new, optax.MaskedNode) else new

        return jax.tree.map(restored, updates, found), state

    return optax.GradientTransformation(lambda params: inner.init(seen(params)), update)
