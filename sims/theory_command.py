"""``fedef theory``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedef.config import Config
from fedef.experiment import Experiment
from sims.settings import Assignments, DataDir, read_settings

_out = Console()


def theory_command(
    settings: Assignments = None,
    eps: Annotated[float, typer.Option(help="Accuracy that iteration counts are for.")] = 1e-2,
    lower_bound: Annotated[float, typer.Option(help="A number that f never goes below.")] = 0.0,
    data_dir: DataDir = None,
) -> None:
    r"""What the theorems say about a problem and a compressor: constants, steps, bounds.

    \b
    fedef theory problem=polynomial num-clients=1 k=1 num-rounds=2000
    """
    from sims.theory_table import describe

    config = Config.from_flat(read_settings(settings, data_dir))
    experiment = Experiment.build(config)
    rows = describe(
        experiment.problem,
        experiment.method.compressor,
        num_rounds=config.num_rounds,
        weights=experiment.weights,
        participation=config.participation,
        eps=eps,
        lower_bound=lower_bound,
        seed=config.seed,
    )
    table = Table("theorem", "quantity", "value", "note", box=None, pad_edge=False)
    for row in rows:
        value = "n/a" if row.value is None else f"{row.value:.6g}"
        table.add_row(*map(escape, (row.theorem, row.quantity, value, row.note)))
    _out.print(table)
