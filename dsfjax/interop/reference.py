"""`reference`: a module of another project, by its name, running on ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from dsfjax.core import KernelSystem, System
from dsfjax.interop import (
    attention_modules,
    blocks,
    griffin,
    language,
    mamba,
    mamba2,
    state_spaces,
    zoology_lstm,
)
from dsfjax.interop.source import Function, Source, construct, find
from dsfjax.interop.weights import Shapes, check

SOURCES: dict[str, Source] = {}
_FAMILIES = (
    attention_modules,
    mamba,
    mamba2,
    zoology_lstm,
    griffin,
    blocks,
    state_spaces,
    language,
)
for _family in _FAMILIES:
    SOURCES |= _family.SOURCES


class Reference:
    """A module of another project as a differentiable function of its weights.

    Attributes:
        module: Its original name.
        shapes: Names and shapes of its weights.
        inputs: Names of what it takes in addition to x.
        complex_weights: Names of the weights that are complex.
    """

    def __init__(self, module: str, function: Function) -> None:
        self.module = module
        self.shapes: Shapes = function.shapes
        self.inputs = function.inputs
        self.complex_weights = function.complex_weights
        self._function = function

    def __call__(self, weights: Mapping[str, Any], x: Any, **inputs: Any) -> Array:
        """Outputs of a batch, in evaluation (no dropout).

        Args:
            weights: Arrays by original name, in the original layout.
            x: (B, L, d), or token ids (B, L) for a language model.
            **inputs: Further inputs by name, each (B, L), such as ``segment_pos``.

        Returns:
            y (B, L, d), or logits (B, L, V).

        Raises:
            TypeError: For an unknown or missing input.
            ValueError: For a weight that is missing, extra or of a wrong shape, by name.
        """
        arrays = check(self.module, weights, self.shapes, self.complex_weights)
        x, extra = self._inputs(x, inputs, batched=True)
        return jax.vmap(lambda *args: self._function.run(arrays, *args))(x, *extra)

    def system(
        self, weights: Mapping[str, Any], x: Any, **inputs: Any
    ) -> tuple[System | KernelSystem, Array]:
        """The System of a mixer on one sequence, and the tokens that enter it.

        ``dsfjax.scan(system, u)[0]`` is what the mixer computes before its gate, norm and output
        map. u is x where nothing stands before the recurrence; otherwise the convolved token, or
        the value, where a bias or a convolution keeps it from being linear in the token.

        Args:
            weights: As in a call.
            x: One sequence (L, d).
            **inputs: Further inputs by name, each (L,).

        Returns:
            ``(system, u)``.

        Raises:
            TypeError: If the module is not a single mixer.
        """
        if self._function.system is None:
            raise TypeError(
                f"{self.module} is not a single mixer, so it has no one System. Ask for the mixer "
                "inside it, or for Model.systems of dsfjax.interop.language_model."
            )
        arrays = check(self.module, weights, self.shapes, self.complex_weights)
        x, extra = self._inputs(x, inputs, batched=False)
        return self._function.system(arrays, x, *extra)

    def __repr__(self) -> str:
        return f"reference({self.module!r}, {len(self.shapes)} weights)"

    def _inputs(
        self, x: Any, inputs: dict[str, Any], *, batched: bool
    ) -> tuple[Array, list[Array]]:
        x = jnp.asarray(x)
        is_tokens = jnp.issubdtype(x.dtype, jnp.integer)
        steps, lead = x.shape[: 1 + batched], "(B, L" if batched else "(L"
        if x.ndim != 1 + batched + (not is_tokens):
            expected = f"{lead})" if is_tokens else f"{lead}, d)"
            raise ValueError(f"{self.module}: expected x of shape {expected}, got {x.shape}.")
        for name in inputs:
            if name not in self.inputs:
                known = ", ".join(self.inputs) or "none besides x"
                raise TypeError(f"{self.module} has no input {name!r}; it takes: {known}.")
        extra = []
        for name in self.inputs:
            if name not in inputs:
                raise TypeError(f"{self.module}: missing input {name!r} of shape {lead}).")
            value = jnp.asarray(inputs[name])
            if value.shape != steps:
                raise ValueError(
                    f"{self.module}: input {name!r}: expected shape {steps}, got {value.shape}."
                )
            extra.append(value)
        return x, extra


def reference(module: str, **kwargs: Any) -> Reference:
    """A module of another project: the same function of the same weights, on our mixers.

    Args:
        module: Its name there, such as ``"zoology.mixers.attention.MHA"`` (`modules` lists them).
        **kwargs: Keywords of its constructor. Those that only decide initial values, dropout, speed
            or the device are accepted and have no effect here.
            ``zoology.mixers.attention.MHNA`` takes one more, ``normalizer``: "exp" (the code as
            published), "softplus", "sigmoid" or "exp_relu", the other normalisers of the paper.

    Returns:
        A `Reference`: ``apply(weights, x) -> y``, with ``apply.system`` and ``apply.shapes``.

    Raises:
        ValueError: For an unknown module, with the nearest, or a keyword's value that is not
            supported.
        TypeError: For an unknown or a missing keyword.

    References:
        Sieber et al. (2024), arXiv:2405.15731. Gu and Dao (2023), arXiv:2312.00752. Dao and Gu
        (2024), arXiv:2405.21060. De et al. (2024), arXiv:2402.19427.

    Example:
        >>> apply = reference("zoology.mixers.mamba.S6", d_model=2, d_state=1)
        >>> weights = {name: jnp.ones(shape) for name, shape in apply.shapes.items()}
        >>> apply(weights, jnp.ones((1, 3, 2))).shape
        (1, 3, 2)
        >>> apply({**weights, "D": jnp.ones(3)}, jnp.ones((1, 3, 2)))
        Traceback (most recent call last):
            ...
        ValueError: zoology.mixers.mamba.S6: weight 'D': expected shape (2,), got (3,).
    """
    return Reference(module, construct(module, find(module, SOURCES), kwargs).function())


def modules() -> tuple[str, ...]:
    """Names of all modules that `reference` knows.

    Example:
        >>> modules()[:2]
        ('zoology.mixers.attention.MHA', 'zoology.mixers.attention.MHNA')
    """
    return tuple(SOURCES)
