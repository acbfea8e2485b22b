"""``dsfjax systems`` and ``dsfjax explain``: architectures without their numbers."""

import jax
import jax.numpy as jnp
from rich import box
from rich.table import Table

from dsfjax import engines, systems
from dsfjax._util.names import choose
from dsfjax.analysis.normalizer import has_finite_state
from dsfjax.cli import options
from dsfjax.cli.output import console, say
from dsfjax.cli.usage import usage_errors
from dsfjax.core import KernelSystem, System


def main(command: options.Systems) -> int:
    """Print the table of architectures.

    Args:
        command: The options.

    Returns:
        The exit code.

    Raises:
        UsageError: If an architecture cannot have these sizes.
    """
    with usage_errors(ValueError, TypeError):
        table = _table(command)
    console().print(table)
    return 0


def sizes(command: options.Systems | options.Explain) -> dict[str, int]:
    """The sizes of an architecture that a command line gives.

    Args:
        command: Options with ``d_model``, ``d_state`` and ``num_heads``.

    Returns:
        Keywords for ``dsfjax.systems.get``; one that is not given is the architecture's own.
    """
    given = {name: getattr(command, name) for name in ("d_model", "d_state", "num_heads")}
    return {name: value for name, value in given.items() if value is not None}


def abstract_system(
    architecture: systems.Architecture, length: int, d_model: int
) -> System | KernelSystem:
    """The system that an architecture makes of a sequence: its shapes, without any numbers.

    Args:
        architecture: The architecture.
        length: Length of the sequence.
        d_model: Width of its tokens.

    Returns:
        A system of ``jax.ShapeDtypeStruct``.
    """

    def make() -> System | KernelSystem:
        params = architecture.init(jax.random.key(0))
        u = jnp.zeros((length, d_model))
        if architecture.reads_state:  # its values are not a linear map of tokens
            return architecture.system_and_tokens(params, u)[0]
        return architecture.system(params, u)

    return jax.eval_shape(make)


def _table(command: options.Systems) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("architecture", no_wrap=True)
    for head in ("A", "state size N", "A and B share", "|λ|", "normaliser"):
        table.add_column(head)
    for name in systems.names():
        # One line per architecture: the sizes apply where there is something they are a size of.
        given = {k: v for k, v in sizes(command).items() if k in systems.options(name)}
        found = systems.get(name, **given)
        system = abstract_system(found, 2, command.d_model)
        traits = found.traits
        size = traits.state
        if has_finite_state(system):
            size += f" = {system.num_states:,}"
        table.add_row(name, traits.structure, size, traits.shares, traits.bounds, traits.normalizer)
    return table


def explain(command: options.Explain) -> int:
    """Print how an architecture is computed at a length, and why.

    Args:
        command: The options.

    Returns:
        The exit code.

    Raises:
        UsageError: If there is no such architecture, or not of these sizes.
    """
    with usage_errors(ValueError, TypeError):
        if command.length < 1:
            raise ValueError(f"expected --length >= 1, got {command.length}")
        if not command.mixer:
            raise ValueError(f"expected --mixer, one of {', '.join(systems.names())}")
        choose("mixer", command.mixer, systems.names())
        architecture = systems.get(command.mixer, **sizes(command))
        system = abstract_system(architecture, command.length, command.d_model)
        found = engines.explain(system, method=command.method, length=command.length)  # type: ignore
    say(f"{command.mixer}\n{found}")
    return 0
