"""An `Op`: a batched function under the name that people know, and the System behind it."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

from jax import Array

from dsfjax._util.names import unknown
from dsfjax.core import KernelSystem, System
from dsfjax.ops.forms import Form, check

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
    their annotations name (`Form`), and an argument that it does not have is refused by its name.

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
        parameters: Iterable[inspect.Parameter] | None = None,
    ) -> None:
        self.names, self.peer, self.assemble = names, peer, assemble
        self.peer_name = peer_name
        functools.update_wrapper(self, function)
        own = inspect.signature(function)
        self._signature = own if parameters is None else own.replace(parameters=[*parameters])
        self.__signature__ = self._signature
        peers = ", ".join(f"``{self.path(name)}``" for name in names)
        self.__doc__ = f"{inspect.getdoc(function) or ''}\n\nCounterpart of {peers}."
        self._function = function

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The function."""
        given = self._bound(args, kwargs).arguments
        missing = [x.name for x in self.parameters.values() if x.default is x.empty]
        missing = ", ".join(repr(name) for name in missing if name not in given)
        if missing:
            raise TypeError(f"{self.names[0]}: expected also {missing}. It is {self.text()}.")
        given = {name: self.forms[name].taken(x) for name, x in given.items()}
        check(self.names[0], self.forms, given)
        call: Callable[..., R] = self._function
        return call(**given)

    def reordered(self, name: str, *behind: str) -> Op[..., R]:
        """The same function under another name of the peer, which has another order of arguments.

        Args:
            name: That name.
            behind: What follows ``output_final_state`` by position there. The arguments before it
                are in the same order, the others are keywords.
        """
        order = list(self.parameters)
        first = order[: order.index("output_final_state") + 1]
        order = [*first, *behind, *(x for x in order if x not in first and x not in behind)]
        by_position = len(first) + len(behind)
        kind = inspect.Parameter
        parameters = [
            self.parameters[x].replace(
                kind=kind.POSITIONAL_OR_KEYWORD if i < by_position else kind.KEYWORD_ONLY
            )
            for i, x in enumerate(order)
        ]
        made = Op[..., R](self._function, self.assemble, self.peer, (name,), parameters=parameters)
        made.__doc__ = (
            f"`{self.names[0]}` with another order of arguments.\n\n"
            f"Counterpart of ``{made.path(name)}``."
        )
        REGISTRY[name] = made
        return made

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
        # In part: a state that the op cannot do without is not needed for its System.
        bound, taken = self._bound(args, kwargs), self._taken
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

    def _bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> inspect.BoundArguments:
        """What was given, by the names of the arguments; some may be missing."""
        name, parameters = self.names[0], self.parameters
        for given in kwargs:
            if given not in parameters:
                why = LEFT_OUT.get(given)
                if given in RENAMED and RENAMED[given] not in parameters:
                    why = "it is not supported by this one; transpose the states"
                said = unknown(f"{name}: unknown argument", given, parameters)
                raise TypeError(f"{name} does not take {given!r}: {why}." if why else said)
        positions = [x.name for x in parameters.values() if x.kind is not x.KEYWORD_ONLY]
        if len(args) > len(positions):
            raise TypeError(
                f"{name}: expected at most {len(positions)} arguments by position, got "
                f"{len(args)}; give those behind {positions[-1]!r} as keywords. It is "
                f"{self.text()}."
            )
        twice = [x for x in positions[: len(args)] if x in kwargs]
        if twice:
            raise TypeError(
                f"{name}: expected {twice[0]!r} once, got it by position and as a keyword. It is "
                f"{self.text()}."
            )
        return self._signature.bind_partial(*args, **kwargs)

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

    @property
    def function(self) -> Callable[..., R]:
        """What is called: the same where only the order of the arguments differs."""
        return self._function

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
    def forms(self) -> dict[str, Form]:
        """What every argument may be, from its annotation."""
        return {name: Form.of(self.hints.get(name)) for name in self.parameters}


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
    "cu_seqlens": "it has no packed sequences; call it for each sequence",
    "cu_seqlens_cpu": "it follows from cu_seqlens; leave it out",
    "disable_recompute": "the engine decides what it keeps; leave it out",
    "final_states_out": "nothing is written in place; use return_final_states",
    "fuse_pregate_headwise_rms_norm": "norm, gate and sum what MIMO_Out=None, Z=None gives",
    "head_first": "layouts are [B, T, H, ·]; transpose the arrays",
    "max_CG_iteration": "the linear equations are solved exactly; leave it out",
    "max_num_seqs": "that is the length of cu_seqlens minus one; leave it out",
    "output_attentions": "use dsfjax.materialize(op.system(…))",
    "outproj_norm_eps": "norm, gate and sum what MIMO_Out=None, Z=None gives",
    "outproj_norm_weight": "norm, gate and sum what MIMO_Out=None, Z=None gives",
    "return_both": "use use_normalize=False, or op.system(…) for the normaliser",
    "return_intermediate_states": "use dsfjax.scan(op.system(…), u, return_states=steps)",
    "safe_gate": "no number depends on it; leave it out",
    "solve_tril_precision": "use dsfjax.Precision with op.system(…)",
    "transpose_state_layout": "it is called state_v_first here",
    "use_cache": "the cache is that of dsfjax.scan(op.system(…), u)",
    "use_graph": "jax.jit compiles with a traced cu_seqlens; leave it out",
}
"""Arguments of peers that have no counterpart, and what to do instead."""

RENAMED = {"transpose_state_layout": "state_v_first"}
"""Those of them that have another name here, in the ops that have it."""
