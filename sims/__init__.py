"""Runs of fedef: engines, benchmarks, the command line, and ``run`` for scripts and notebooks."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sims.door import RunResult, run

__all__ = ["RunResult", "run"]
_HOMES = {"RunResult": "sims.door", "run": "sims.door"}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: ``import sims`` alone loads nothing."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sims' has no attribute {name!r}")
