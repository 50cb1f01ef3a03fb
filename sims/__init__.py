"""Runs of fedef: engines, sweeps, the command line; ``run`` and ``sweep`` for scripts."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sims.door import RunResult, run
    from sims.sweeps.sweep import run_sweep as sweep

__all__ = ["RunResult", "run", "sweep"]
_HOMES = {
    "RunResult": ("sims.door", "RunResult"),
    "run": ("sims.door", "run"),
    "sweep": ("sims.sweeps.sweep", "run_sweep"),
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: ``import sims`` alone loads nothing."""
    if name in _HOMES:
        module, attribute = _HOMES[name]
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'sims' has no attribute {name!r}")
