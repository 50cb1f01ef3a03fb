"""``fedef partition``: the command."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedef.config import Config, read_toml
from fedef.experiment import Experiment
from sims.settings import Assignments, ConfigFile, DataDir, read_settings

_out = Console()
_MOST_ROWS = 30


def partition_command(
    settings: Assignments = None,
    config: ConfigFile = None,
    out: Annotated[Path, typer.Option(help="The picture; its numbers go beside it as CSV.")] = Path(
        "partition.png"
    ),
    data_dir: DataDir = None,
) -> None:
    r"""Show who holds what: a table here, a picture in a file. Nothing is trained.

    \b
    fedef partition problem=digits-mlp num-clients=10 dirichlet-alpha=0.1
    fedef partition partitioner=pathological classes-per-client=2 --out two-classes.png

    The label distance of a client is the total variation between its classes and those of all
    examples, sum |p_i - p| / 2; of the partition: the weighted mean over its clients.
    """
    # Imported here: matplotlib takes a second that the other commands do not need.
    from sims.page.drawing import png
    from sims.partition_picture import Dealt, picture

    values = {**(read_toml(config) if config else {}), **read_settings(settings, data_dir)}
    dealt = Dealt.of(Experiment.build(Config.from_flat(values)))
    heading, *rows = dealt.rows()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(png(picture(dealt, width=7.0, height=5.4)))
    numbers = out.with_suffix(".csv")
    with numbers.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([heading, *rows])
    # Counts of each class only as far as they fit a line.
    columns = len(heading) if len(heading) <= 14 else 4
    table = Table(title=dealt.name, title_justify="left", box=None, pad_edge=False)
    for name in heading[:columns]:
        table.add_column(name, justify="right")
    for row in rows[:_MOST_ROWS]:
        table.add_row(*row[:columns])
    _out.print(table)
    if len(rows) > _MOST_ROWS:
        _out.print(f"... and {len(rows) - _MOST_ROWS} more clients")
    _out.print(dealt.summary, highlight=False)
    _out.print(f"picture: {out}, numbers: {numbers}", highlight=False, soft_wrap=True)
