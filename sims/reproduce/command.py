"""``fedef reproduce``: the command, its arguments and its progress."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

_out = Console()
_err = Console(stderr=True)


def reproduce_command(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[STUDY]...",
            help="polynomial, smoothness, logistic, phase-retrieval, dro, fair, "
            "resnet20 or all (the default).",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer seeds and shorter grids: a few minutes.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder of the page.")] = Path("reproduction"),
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the data files. Default: FEDEF_DATA.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Studies that run at once.")] = 1,
) -> None:
    r"""Run the papers' experiments again and write one page: printed, ours, agrees or not, and why.

    \b
    fedef reproduce polynomial --quick
    fedef reproduce logistic dro --data-dir data --out reproduction
    fedef reproduce all --jobs 2

    The page is OUT/index.html, self-contained; its numbers are in OUT/results.json, its figures in
    OUT/figures. A study whose data files are missing is left out, and the page says so.
    """
    # Imported here: matplotlib and scipy.stats take a second that the other commands do not need.
    from sims.reproduce.report import chosen, reproduce

    selected = chosen(names or [])
    with Progress(
        TextColumn("{task.fields[study]:16}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        console=_err,
    ) as bars:
        tasks = {
            name: bars.add_task("waiting", study=name, total=1.0, start=False) for name in selected
        }

        def show(study: str, text: str, fraction: float) -> None:
            bars.start_task(tasks[study])
            bars.update(tasks[study], completed=fraction, description=text)

        page = reproduce(
            selected, quick=quick, out=out, data_dir=data_dir, jobs=jobs, progress=show
        )
    _out.print(f"page: {page}", highlight=False, soft_wrap=True)
