"""``fedef sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text


def sweep_command(
    file: Annotated[Path, typer.Argument(help="TOML file of the sweep.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The sweep's folder; what completed or diverged there is not run again. runs/NAME."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Runs at a time, one core each; 0: in this process. All cores."),
    ] = None,
) -> None:
    r"""Run every combination of a file's axes with paired seeds and leave tables of the results.

    \b
    seeds = 5
    tune = {step-size = [0.1, 1.0]}
    [base]
    problem = "digits-mlp"
    [axes]
    dirichlet-alpha = [0.1, 1.0]
    method = ["ef21-sgdm", "norm-ef21-sgdm"]

    A run that diverges or crashes is recorded and the sweep goes on. Stop it at any moment and
    call it again: it continues. 'fedef report FOLDER' draws the results.
    """
    from sims.sweeps.display import Display, summary_table
    from sims.sweeps.sweep import FOLDER, run_sweep

    with Display(Console(stderr=True)) as display:
        results = run_sweep(file, out=out, workers=workers, watch=display)
    console = Console(soft_wrap=True)
    console.print(summary_table(results))
    counts = results["status"].value_counts().sort_index()
    console.print(", ".join(f"{count} runs {status}" for status, count in counts.items()))
    for error in results["error"].dropna().unique()[:5]:
        console.print(Text(f"crashed: {error}"))
    at_end = results[(results["phase"] == "report") & results["edge"].fillna(False)]
    if len(at_end):
        cells = at_end["cell"].nunique()
        console.print(f"{cells} cells use a value at an end of the tuning grid: widen it")
    console.print(Text(f"results in {results.attrs[FOLDER]}"))
