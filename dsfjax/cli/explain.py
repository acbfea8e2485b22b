"""``dsfjax explain``."""

from dsfjax import systems
from dsfjax._util.names import choose
from dsfjax.cli import options
from dsfjax.cli.output import console
from dsfjax.cli.systems import abstract_system, sizes
from dsfjax.cli.usage import usage_errors
from dsfjax.engines import explain


def main(command: options.Explain) -> int:
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
        found = explain(system, method=command.method, length=command.length)  # type: ignore
    text = f"{command.mixer}\n{found}"
    console().print(text, soft_wrap=True, highlight=False, markup=False)
    return 0
