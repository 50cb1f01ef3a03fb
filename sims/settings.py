"""What commands are given: KEY=VALUE, an option that stands for a key, a folder for the run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from fedef.config import Config, parse_assignments
from fedef.errors import ConfigError

Assignments = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings, as for 'fedef run'."),
]
ConfigFile = Annotated[
    Path | None, typer.Option(help="TOML file of settings; KEY=VALUE go before it.")
]
OutFolder = Annotated[
    Path | None, typer.Option(help="The run's folder. Default: a new one in runs/.")
]
DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder of data files: data-dir=. Default: the environment's FEDEF_DATA."),
]


def read_settings(settings: list[str] | None, data_dir: Path | None) -> dict[str, Any]:
    """Flat keys of what was given.

    Raises
    ------
    ConfigError
        If an item is not KEY=VALUE, or a key is given twice.
    """
    values = parse_assignments(settings or [])
    if data_dir is None:
        return values
    if "data-dir" in values:
        raise ConfigError(
            f"data-dir: given twice, as {values['data-dir']!r} and --data-dir {str(data_dir)!r}; "
            "keep one"
        )
    return {**values, "data-dir": str(data_dir)}


def new_folder(config: Config) -> Path:
    """A folder in runs/ that is not there yet."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = f"{config.problem}-{config.method}-seed{config.seed}-{stamp}"
    folder, number = Path("runs") / name, 2
    while folder.exists():
        folder, number = Path("runs") / f"{name}-{number}", number + 1
    return folder
