"""``fedef bench``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

_out = Console()


def bench_command(
    turns: Annotated[int, typer.Option(min=1, help="Turns that the contenders take.")] = 60,
    only: Annotated[
        str,
        typer.Option(help="A group: core, ray, rounds, tiny, clients or server. Default: all."),
    ] = "",
) -> None:
    """Measure ours against bare loops and other simulators, side by side, and print ratios."""
    from sims.bench import run_benchmarks

    table = Table("what", "ours", "beside", "ratio", "asked")
    try:
        for row in run_benchmarks(turns=turns, only=only):
            table.add_row(row.what, row.ours, row.beside, f"{row.ratio:.3f}", f"<= {row.asked:.3g}")
    finally:  # what was measured is shown, whatever happens to the rest
        if table.rows:
            _out.print(table)
