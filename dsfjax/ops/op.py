"""An `Op`: a batched function under the name that people know, and the System behind it."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

import jax.numpy as jnp
from jax import Array

from dsfjax._util.names import unknown
from dsfjax.core import KernelSystem, System

P = ParamSpec("P")
R = TypeVar("R")


class Assembled(NamedTuple):
    """What `dsfjax.scan` takes of one sequence.

    Attributes:
        system: The System or KernelSystem.
        u: Its tokens, (T, d).
    """

    system: System | KernelSystem
    u: Array


class Op(Generic[P, R]):
    """A function on a batch of sequences that runs a System which it can also show.

    It is called as the function that it wraps. Array arguments are checked against the axes that
    their annotations name, and an argument that it does not have is refused by its name.

    Attributes:
        names: Its names in `dsfjax.ops`; several where the peer has several for the same numbers.
        peer: Module in which the peer has them.
        peer_name: Its name there, where that is another; None where it is the same.
        assemble: From those arguments of the function that make the System, of one sequence and by
            their names, to `Assembled`, or to a tuple of those where one System reads what another
            has given.
    """

    def __init__(
        self,
        function: Callable[P, R],
        assemble: Callable[..., Assembled | tuple[Assembled, ...]],
        peer: str,
        names: tuple[str, ...],
        peer_name: str | None = None,
    ) -> None:
        self.names, self.peer, self.assemble = names, peer, assemble
        self.peer_name = peer_name
        functools.update_wrapper(self, function)
        peers = ", ".join(f"``{self.path(name)}``" for name in names)
        self.__doc__ = f"{inspect.getdoc(function) or ''}\n\nCounterpart of {peers}."
        self._function = function

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The function."""
        self._refuse_unknown(kwargs)
        _check_axes(self.names[0], self.axes, self._signature.bind(*args, **kwargs).arguments)
        return self._function(*args, **kwargs)

    def system(self, *args: Any, reset: Array | None = None, **kwargs: Any) -> Any:
        """The System of one sequence, a tuple where there are several.

        Run it with ``dsfjax.scan(op.system(…), op.tokens(…))``.

        Args:
            *args: The arguments of the op, in its order, arrays without the axis B.
            reset: Boolean (T,), the first steps of documents, or None.
            **kwargs: Further arguments of the op. What it does with the System, such as an initial
                state, is left to `dsfjax.scan`.
        """
        found = self.assembled(*args, reset=reset, **kwargs)
        if isinstance(found, Assembled):
            return found.system
        return tuple(one.system for one in found)

    def tokens(self, *args: Any, reset: Array | None = None, **kwargs: Any) -> Any:
        """What that System is run on, (T, d), for the same arguments; a tuple for several."""
        found = self.assembled(*args, reset=reset, **kwargs)
        return found.u if isinstance(found, Assembled) else tuple(one.u for one in found)

    def assembled(
        self, *args: Any, reset: Array | None = None, **kwargs: Any
    ) -> Assembled | tuple[Assembled, ...]:
        """`system` and `tokens` at once."""
        self._refuse_unknown(kwargs)
        # In part: a state that the op cannot do without is not needed for its System.
        bound, taken = self._signature.bind_partial(*args, **kwargs), self._taken
        for given in bound.arguments:
            if given not in taken:
                raise TypeError(
                    f"{self.names[0]}.system: expected what makes the System, got {given!r}; give "
                    "it to dsfjax.scan, or leave it out."
                )
        bound.apply_defaults()
        own = {name: x for name, x in bound.arguments.items() if name in taken}
        for name in self._signature.parameters:
            if name in taken and name not in own:
                raise TypeError(
                    f"{self.names[0]}.system: expected {name!r}, got nothing for it; give it as to "
                    "the op, without the axis B."
                )
        if reset is None:
            return self.assemble(**own)
        if "reset" not in taken:
            raise TypeError(
                f"{self.names[0]}.system: expected reset=None, got an array; what it makes of its "
                "arguments does not know where documents start. Give it one document at a time."
            )
        return self.assemble(**own, reset=reset)

    def _refuse_unknown(self, kwargs: dict[str, Any]) -> None:
        name, parameters = self.names[0], self._signature.parameters
        for given in kwargs:
            if given not in parameters:
                why = LEFT_OUT.get(given)
                said = unknown(f"{name}: unknown argument", given, parameters)
                raise TypeError(f"{name} does not take {given!r}: {why}." if why else said)

    def __repr__(self) -> str:
        return f"<dsfjax.ops.{self.text()}>"

    def path(self, name: str) -> str:
        """Where the peer has what is called ``name`` here."""
        return f"{self.peer}.{self.peer_name or name}"

    def text(self, name: str | None = None) -> str:
        """How it is called, by one of its names, with the defaults that say something."""
        found, keywords = [], False
        for argument, x in self._signature.parameters.items():
            if x.kind is x.KEYWORD_ONLY and not keywords:
                found, keywords = [*found, "*"], True
            plain = x.default is x.empty or x.default is None or x.default is False
            found.append(argument if plain else f"{argument}={x.default}")
        return f"{name or self.names[0]}({', '.join(found)})"

    @functools.cached_property
    def _signature(self) -> inspect.Signature:
        return inspect.signature(self._function)

    @functools.cached_property
    def _taken(self) -> frozenset[str]:
        """Names of the arguments that make the System."""
        return frozenset(inspect.signature(self.assemble).parameters)

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Its arguments by name."""
        return self._signature.parameters

    @functools.cached_property
    def hints(self) -> dict[str, Any]:
        """The annotations of its arguments by name."""
        return typing.get_type_hints(self._function)

    @functools.cached_property
    def axes(self) -> dict[str, tuple[str, ...]]:
        """The axes of every array argument that can have but one shape, from its annotation."""
        found = {}
        for name in self.parameters:
            hint = self.hints.get(name)
            options = [getattr(x, "dim_str", None) for x in (hint, *typing.get_args(hint))]
            dims = [x for x in options if isinstance(x, str)]
            if len(dims) == 1:
                found[name] = tuple(dims[0].split())
        return found


def op(
    assemble: Callable[..., Assembled | tuple[Assembled, ...]],
    peer: str,
    *other_names: str,
    peer_name: str | None = None,
) -> Callable[[Callable[P, R]], Op[P, R]]:
    """Make a function an `Op` and register it.

    Args:
        assemble: See `Op`.
        peer: Module in which the peer has a function of that name.
        other_names: Further names of the peer for a function of the same numbers.
        peer_name: The peer's name, where it is not that of the function: that of a module.
    """

    def wrap(function: Callable[P, R]) -> Op[P, R]:
        made = Op(function, assemble, peer, (function.__name__, *other_names), peer_name)
        REGISTRY.update({name: made for name in made.names})
        return made

    return wrap


REGISTRY: dict[str, Op[..., Any]] = {}
"""Every op by each of its names."""

LEFT_OUT = {
    "chunk_indices": "it follows from cu_seqlens; leave it out",
    "chunk_size": "the engine chooses it and no number depends on it; leave it out",
    "checkpoint_level": "the engine decides what it keeps; leave it out",
    "cp_context": "cut the System over devices with dsfjax.scan_shards instead",
    "cu_seqlens_cpu": "it follows from cu_seqlens; leave it out",
    "disable_recompute": "the engine decides what it keeps; leave it out",
    "head_first": "layouts are [B, T, H, ·]; transpose the arrays",
    "max_CG_iteration": "the linear equations are solved exactly; leave it out",
    "max_num_seqs": "that is the length of cu_seqlens minus one; leave it out",
    "output_attentions": "use dsfjax.materialize(op.system(…))",
    "return_both": "use use_normalize=False, or op.system(…) for the normaliser",
    "return_intermediate_states": "use dsfjax.scan(op.system(…), u, return_states=steps)",
    "safe_gate": "no number depends on it; leave it out",
    "solve_tril_precision": "use dsfjax.Precision with op.system(…)",
    "transpose_state_layout": "it is called state_v_first here",
    "use_cache": "the cache is that of dsfjax.scan(op.system(…), u)",
    "use_graph": "jax.jit compiles with a traced cu_seqlens; leave it out",
}
"""Arguments of peers that have no counterpart, and what to do instead."""


def _check_axes(owner: str, axes: dict[str, tuple[str, ...]], arguments: dict[str, Any]) -> None:
    """Raise `ValueError` unless axes of the same name have the same size."""
    sizes: dict[str, int] = {}
    for name, dims in axes.items():
        x = arguments.get(name)
        if x is None or isinstance(x, tuple):  # a state of several arrays
            continue
        shape = jnp.shape(x)
        fits = len(shape) == len(dims) and all(
            sizes.get(dim, size) == size for dim, size in zip(dims, shape, strict=True)
        )
        if not fits:
            known = ", ".join(f"{dim} = {sizes[dim]}" for dim in dims if dim in sizes)
            raise ValueError(
                f"{owner}: expected {name} of shape [{', '.join(dims)}]"
                f"{f' with {known}' if known else ''}, got {list(shape)}. Axes are batch, time, "
                "heads, channels."
            )
        sizes.update({dim: n for dim, n in zip(dims, shape, strict=True) if dim != "_"})
