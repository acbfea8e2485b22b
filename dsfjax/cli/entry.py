"""From words to a command, and from its outcome to an exit code."""

import errno
import io
import os
import sys
from collections.abc import Sequence

from dsfjax._util.interrupt import MESSAGE
from dsfjax.cli import opened_options, options, parse
from dsfjax.cli.usage import UsageError

OUTSIDE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG}
"""What the machine refuses; other errors of the operating system are defects of ours."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The words after ``dsfjax``; by default those of this process.

    Returns:
        The exit code: 0; 1 if `selfcheck` found an engine off, or a program of a comparison or
        sweep failed; 2 after one line on stderr that says what to change; 130 if interrupted; or
        141 if the reader of the output went away.

    Examples:
        >>> main(["compere", "TASK"])  # and "did you mean 'compare'?" on stderr
        2
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            # A λ that the terminal cannot show is no reason to end.
            stream.reconfigure(errors="replace")
    try:
        words = list(sys.argv[1:] if argv is None else argv)
        if words == ["--version"]:
            print(f"dsfjax {parse.version()}", flush=True)
            return 0
        command = parse.parse(words)
        code = 0 if command is None else _run(command)
        sys.stdout.flush()
        return code
    except UsageError as error:
        print(f"dsfjax: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(MESSAGE, file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever reads, such as `head`, has seen enough. Python writes what is left at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno not in OUTSIDE:
            raise
        print(f"dsfjax: {error.strerror}: {error.filename}", file=sys.stderr)
        return 2


def _run(command: options.Command) -> int:
    # Imported when needed: JAX takes a second, which --help and a misspelt option need not wait.
    if isinstance(command, options.Reading) and command.data_dir is not None:
        from dsfjax.tasks.data import reading

        reading.use(command.data_dir)
    match command:
        case options.Train() | options.Compare():
            from dsfjax.cli import training

            return training.main(command)
        case options.Sweep():
            from dsfjax.cli import sweep

            return sweep.main(command)
        case options.Results():
            from dsfjax.cli import results

            return results.main(command)
        case options.Systems():
            from dsfjax.cli import systems

            return systems.main(command)
        case options.Explain():
            from dsfjax.cli import systems

            return systems.explain(command)
        case opened_options.Analyze():
            from dsfjax.cli import analyze

            return analyze.main(command)
        case opened_options.Inspect():
            from dsfjax.cli import checkpoints

            return checkpoints.inspect(command)
        case opened_options.Convert():
            from dsfjax.cli import checkpoints

            return checkpoints.convert(command)
        case opened_options.Reduce():
            from dsfjax.cli import checkpoints

            return checkpoints.reduce(command)
        case opened_options.Finetune():
            from dsfjax.cli import finetune

            return finetune.main(command)
        case options.Data():
            from dsfjax.cli import data

            return data.main(command)
        case options.Lengths():
            from dsfjax.cli import lengthen

            return lengthen.main(command)
        case options.Recommend():
            from dsfjax.cli import recommend

            return recommend.main(command)
        case options.Bench():
            from dsfjax.cli import bench

            return bench.main(command)
        case options.Selfcheck():
            from dsfjax.cli import selfcheck

            return selfcheck.main(command)
        case _:
            raise TypeError(f"_run: expected a command of the list above, got {command}")
