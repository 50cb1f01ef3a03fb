"""The command line: the commands, and how an error ends."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer
from rich.console import Console
from rich.text import Text

from fedef import ensure_ours
from fedef.errors import FedefError
from sims.bench_command import bench_command
from sims.edge_command import edge
from sims.keys_command import keys_command
from sims.partition_command import partition_command
from sims.report.command import report_command
from sims.reproduce.command import reproduce_command
from sims.run_command import EXIT_INTERRUPTED, run_command
from sims.sweeps.command import sweep_command
from sims.theory_command import theory_command

EXIT_ERROR = 1

app = typer.Typer(
    help="Federated learning with normalized error feedback: clients send top-k corrections, "
    "the server takes normalized steps.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("run")(run_command)
app.command("keys")(keys_command)
app.command("theory")(theory_command)
app.command("bench")(bench_command)
app.command("reproduce")(reproduce_command)
app.command("partition")(partition_command)
app.command("sweep")(sweep_command)
app.command("report")(report_command)
app.add_typer(edge, name="edge")

_err = Console(stderr=True)


def _fail(message: str) -> NoReturn:
    """End with one line; as text, since what a user typed may look like rich's markup."""
    line = Text.assemble(("error", "bold red"), " ", message)
    _err.print(line, highlight=False, soft_wrap=True)
    sys.exit(EXIT_ERROR)


def main() -> None:
    """Run the command line; an error on purpose is one line and exit status 1."""
    try:
        ensure_ours()
        app()
    except FedefError as error:
        _fail(str(error))
    except OSError as error:  # a full disk, a folder that was removed meanwhile
        _fail(f"{error}; check the disk and the folder's permissions")
    except MemoryError as error:
        _fail(f"not enough memory ({error}); choose fewer clients or a smaller problem")
    except KeyboardInterrupt:
        _err.print("interrupted")
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
