"""Settings as the commands take them: KEY=VALUE, and an option that stands for a key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fedef.config import parse_assignments
from fedef.errors import ConfigError

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
