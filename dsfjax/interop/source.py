"""A module of another project as data: what its constructor takes and what it computes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jax import Array

from dsfjax import nn, systems
from dsfjax._util.names import choose, unknown
from dsfjax.interop.weights import Shapes, Weights
from dsfjax.systems import Architecture


class Function(NamedTuple):
    """A module as a function of its weights, on one sequence.

    Attributes:
        shapes: Of the weights, by their original names.
        run: ``run(weights, x (L, …), *inputs) -> y (L, …)``.
        system: ``system(weights, x, *inputs) -> (System, u)``; None if it is no single mixer.
        inputs: Names of what it takes besides x, each (L,).
        complex_weights: Names of the weights that are complex.
    """

    shapes: Shapes
    run: Callable[..., Array]
    system: Callable[..., tuple[Any, Array]] | None = None
    inputs: tuple[str, ...] = ()
    complex_weights: tuple[str, ...] = ()

    def function(self) -> Function:
        """Itself: what every constructor gives has a function."""
        return self


class Recipe(NamedTuple):
    """A mixer of another project in terms of `dsfjax.nn.Mixer`.

    Attributes:
        name: Of the architecture, as in `dsfjax.systems.names`.
        options: Its keywords but for d_model.
        around: What surrounds it.
        d_model: Width of the mixer.
        shapes: Of the original weights.
        params: The mixer's parameters from the original weights, differentiable.
        adapt: Changes the architecture where the original departs from it.
    """

    name: str
    options: dict[str, Any]
    around: nn.Surrounding
    d_model: int
    shapes: Shapes
    params: Callable[[Weights], dict[str, Any]]
    adapt: Callable[[Architecture], Architecture] = lambda arch: arch

    def architecture(self) -> Architecture:
        """The architecture, over the inner width of its surroundings."""
        width = self.around.expand * self.d_model
        return self.adapt(systems.get(self.name, d_model=width, **self.options))

    def mixer(self) -> Callable[[Weights], nn.Mixer]:
        """The mixer as a function of the original weights."""
        arch = self.architecture()
        bound = nn.bind(lambda rngs: nn.Mixer(arch, self.d_model, self.around, rngs=rngs))
        return lambda weights: bound(self.params(weights))

    def function(self) -> Function:
        """The mixer as a `Function`."""
        mixer = self.mixer()
        convolved = self.around.conv_width > 0

        def run(weights: Weights, x: Array) -> Array:
            return mixer(weights)(x)[0]

        def system(weights: Weights, x: Array) -> tuple[Any, Array]:
            bound = mixer(weights)
            if convolved or "bias_v" in bound.core:
                return bound.system(x)
            # Nothing stands before the recurrence: the token is x, the value map is in the System.
            return bound.arch.system(bound.parameters(), x), x

        return Function(self.shapes, run, system)


class Source(NamedTuple):
    """What stands for a class of another project.

    Attributes:
        build: Its constructor, from the keywords that decide which function it computes; what it
            returns (a `Recipe`, a `Function`) has a method ``function() -> Function``.
        inert: Keywords that it also takes, which decide initial values, dropout (which is off in
            evaluation), speed or the device.
    """

    build: Callable[..., Any]
    inert: tuple[str, ...] = ()


def construct(module: str, source: Source, kwargs: Mapping[str, Any]) -> Any:
    """Call the constructor, after checking its keywords.

    Args:
        module: Its name, for messages.
        source: The constructor.
        kwargs: Its keywords.

    Raises:
        TypeError: For an unknown keyword, with the nearest, or a missing one.
        ValueError: For values that are not supported.
    """
    parameters = inspect.signature(source.build).parameters
    known = [*parameters, *source.inert]
    for name in kwargs:
        if name not in known:
            raise TypeError(unknown(f"{module} has no keyword", name, known))
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in kwargs:
            raise TypeError(f"{module}: missing keyword {name!r}.")
    return source.build(**{k: v for k, v in kwargs.items() if k in parameters})


def find(module: str, sources: Mapping[str, Source]) -> Source:
    """The source of that name, or a ValueError that names the nearest."""
    return sources[choose("module", module, sources)]


def only(module: str, keyword: str, value: Any, *supported: Any) -> None:
    """Raise unless the value of a keyword is one of those supported."""
    if value not in supported:
        choices = " or ".join(repr(v) for v in supported)
        raise ValueError(f"{module}: {keyword} = {value!r} is not supported; expected {choices}.")
