"""Choose tuned values on the tuning runs: the best mean of a metric in each group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from statistics import fmean
from typing import Any

from fedef.errors import ConfigError
from sims.sweeps.plan import METRICS, Group, Settings, Tuning


@dataclass(frozen=True)
class Choice:
    """What a group uses."""

    point: int
    """Index of the grid."""
    values: Settings
    edge: bool
    """Whether a value is at an end of the grid, so that a better one may lie outside."""
    scores: tuple[float | None, ...]
    """Mean metric by point of the grid; None: some run of it did not complete."""


def choose(
    tuning: Tuning, records: Mapping[Group, Sequence[Sequence[Mapping[str, Any]]]]
) -> dict[Group, Choice]:
    """Return the choice of each group.

    Parameters
    ----------
    tuning
        Grid and metric.
    records
        By group and by point of the grid: the summaries of the runs, `status` among them.

    Notes
    -----
    A point with a run that did not complete is never better than one without. Equal points: the
    first. No point without such a run: the first of the grid.

    Raises
    ------
    ConfigError
        If all runs of a group completed and none has the metric.
    """
    return {group: _choice(tuning, points) for group, points in records.items()}


def _choice(tuning: Tuning, points: Sequence[Sequence[Mapping[str, Any]]]) -> Choice:
    runs = [run for of_point in points for run in of_point]
    if all(run["status"] == "completed" and run.get(tuning.metric) is None for run in runs):
        measured = [name for name in METRICS if any(run.get(name) is not None for run in runs)]
        raise ConfigError(
            f"tune-metric: no tuning run has {tuning.metric!r}; these runs have "
            f"{', '.join(measured) or 'none to choose by'}"
        )
    sign = METRICS[tuning.metric]
    scores = [_score(tuning.metric, runs) for runs in points]
    costs = [inf if score is None else sign * score for score in scores]
    best = costs.index(min(costs))
    return Choice(best, tuning.grid[best], tuning.ends[best], tuple(scores))


def _score(metric: str, runs: Sequence[Mapping[str, Any]]) -> float | None:
    values = [run.get(metric) for run in runs if run["status"] == "completed"]
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(runs) else None
