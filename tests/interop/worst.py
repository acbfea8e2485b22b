"""Table of the worst parity errors per family: ``python -m tests.interop.worst``."""

import jax
from rich.console import Console
from rich.table import Table

from tests import goldens


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    from tests.interop import parity

    table = Table("family", "files", "outputs", "gradients", "worst gradient", "AdamW")
    for family, pattern in parity.FAMILIES.items():
        names = goldens.names(pattern)
        found = {name: parity.errors(name) for name in names}
        forward = max(max(e.forward.values()) for e in found.values())
        worst, weight, where = max(
            (value, key, name) for name, e in found.items() for key, value in e.gradients.items()
        )
        adamw = [value for e in found.values() for value in e.adamw.values()]
        table.add_row(
            family,
            str(len(names)),
            f"{forward:.1e}",
            f"{worst:.1e}",
            f"{weight} of {where}",
            f"{max(adamw):.1e}" if adamw else "",
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
