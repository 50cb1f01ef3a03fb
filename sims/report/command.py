"""``fedef report``: the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

_out = Console()


def report_command(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="FOLDER...", help="Folders of runs and sweeps, or of such folders."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the page. Default: report/ in the first FOLDER.")
    ] = None,
    title: Annotated[str, typer.Option(help="Of the page. Default: the folders' names.")] = "",
    partitions: Annotated[
        bool, typer.Option(help="Deal the data again and draw who holds what.")
    ] = True,
    target: Annotated[
        float | None,
        typer.Option(
            help="Test accuracy (loss, where there is none) whose cost is asked. Default: 95 % of "
            "the best method's (twice its loss)."
        ),
    ] = None,
    reference: Annotated[
        str,
        typer.Option(help="Method, as the page calls it, that all others are compared with."),
    ] = "",
) -> None:
    r"""Write one page about runs: curves, intervals, tables, partitions, configurations.

    \b
    fedef report runs/first runs/second --out report
    fedef report sweeps/k-and-alpha

    The page is OUT/index.html: it loads nothing and runs no script. Every figure is beside it, in
    OUT/figures, as PNG and CSV.
    """
    # Imported here: matplotlib, pandas and scipy take seconds that the other commands do not need.
    from sims.report.build import Wishes, build

    wishes = Wishes(title, partitions, target, reference)
    with Console(stderr=True).status("drawing"):
        page = build(folders, out or folders[0] / "report", wishes)
    _out.print(f"page: {page}", highlight=False, soft_wrap=True)
