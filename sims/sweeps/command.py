"""``fedef sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def sweep_command(
    file: Annotated[Path, typer.Argument(help="TOML file of the sweep.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The sweep's folder; what ended there is not run again. runs/NAME."),
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
    from sims.sweeps.display import Display
    from sims.sweeps.sweep import FOLDER, run_sweep

    console = Console(stderr=True)
    with Display(console) as display:
        results = run_sweep(file, out=out, workers=workers, watch=display)
    folder = results.attrs[FOLDER]
    counts = results["status"].value_counts().sort_index()
    print(", ".join(f"{count} runs {status}" for status, count in counts.items()))
    print(f"results in {folder}")
    at_end = results[(results["phase"] == "report") & results["edge"].fillna(False)]
    if len(at_end):
        print(
            f"{at_end['cell'].nunique()} cells use a value at an end of the tuning grid: widen it"
        )
    for error in results["error"].dropna().unique()[:5]:
        print(f"crashed: {error}")
