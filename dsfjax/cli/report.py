"""``dsfjax report``."""

from dsfjax import report
from dsfjax.cli import options
from dsfjax.cli.output import console
from dsfjax.cli.usage import UsageError, usage_errors
from dsfjax.training import RunError


def main(command: options.Report) -> int:
    """Write the report of a finished run or comparison.

    Args:
        command: The options.

    Returns:
        The exit code.

    Raises:
        UsageError: If the folder holds no comparison, or one that is damaged.
    """
    if not any((command.run_dir / name).exists() for name in ("compare.json", "result.json")):
        raise UsageError(
            f"expected a finished run or comparison in {command.run_dir}, found neither "
            f"compare.json nor result.json; make one with: "
            f"dsfjax compare mqar --run-dir {command.run_dir}"
        )
    with usage_errors(RunError):
        pages = report.write_all(command.run_dir, command.out)
    for page in pages:
        console().print(f"report: {page}", soft_wrap=True)
    return 0
