"""``fedef keys``."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedef.config import Config
from fedef.service import Service

_out = Console()


def keys_command() -> None:
    """List all settings with their defaults and meanings."""
    for keys_of in (Config, Service):
        table = Table("key", "default", "meaning", box=None, pad_edge=False)
        defaults = keys_of().to_flat()
        for name, field in keys_of.model_fields.items():
            key = name.replace("_", "-")
            table.add_row(Text(key, "bold"), str(defaults[key]), Text(field.description or ""))
        _out.print(table)
        if keys_of is Config:
            _out.print("\nOnly in the run config of 'flwr run':")
