"""Curves of several seeds as one: mean and 95 % t interval on a common grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sims.report.runs import Run, Values
from sims.statistics import t_interval

_MOST_POINTS = 160


@dataclass(frozen=True)
class Average:
    """A mean over runs along an axis."""

    x: Values
    mean: Values
    low: Values
    """Lower end of the 95 % t interval; NaN where there is none, see `t_interval`."""
    high: Values
    n: int


def over_rounds(runs: Sequence[Run], column: str) -> Average | None:
    """The mean at each round in which all runs were measured; None without any."""
    pairs = [_measured(run, "round", column) for run in runs]
    common = pairs[0][0] if pairs else np.empty(0)
    for x, _ in pairs[1:]:
        common = np.intersect1d(common, x)
    if len(common) == 0:
        return None
    common = common[_thinned(len(common))]
    values = np.stack([y[np.searchsorted(x, common)] for x, y in pairs])
    return Average(common, *t_interval(values), len(runs))


def over_bytes(runs: Sequence[Run], column: str) -> Average | None:
    """The mean of the last values that the runs had reached with so many bytes.

    The grid is geometric, from where all runs have a value to where the first one ends.
    """
    pairs = [_measured(run, "total-uplink-bytes", column) for run in runs]
    if not pairs or any(len(x) == 0 for x, _ in pairs):
        return None
    begin, end = max(x[0] for x, _ in pairs), min(x[-1] for x, _ in pairs)
    if not 0 < begin <= end:
        return None
    longest = max((x for x, _ in pairs), key=len)
    inside = longest[(longest > begin) & (longest < end)]
    grid = np.concatenate([[begin], inside[_thinned(len(inside))], [end]])
    values = np.stack([y[np.searchsorted(x, grid, side="right") - 1] for x, y in pairs])
    return Average(grid, *t_interval(values), len(runs))


def alone(run: Run, x_column: str, column: str) -> tuple[Values, Values]:
    """One run's measured points."""
    x, y = _measured(run, x_column, column)
    kept = _thinned(len(x))
    return x[kept], y[kept]


def _measured(run: Run, x_column: str, column: str) -> tuple[Values, Values]:
    x, y = run.curves[x_column], run.curves[column]
    known = np.isfinite(y) & np.isfinite(x)
    return x[known], y[known]


def _thinned(count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Indices of at most so many points as a figure shows, first and last among them.

    Half of them evenly, half ever rarer: both kinds of axis stay smooth.
    """
    if count <= _MOST_POINTS:
        return np.arange(count)
    even = np.linspace(0, count - 1, _MOST_POINTS // 2)
    rarer = np.geomspace(1, count, _MOST_POINTS // 2) - 1
    return np.unique(np.concatenate([even, rarer]).round().astype(np.int64))
