"""IAN-SGD and its rivals, compared fairly: tuned alike on some seeds, reported on others.

The published comparison gives the baselines another beta, does not tune their thresholds, shows one
seed and drops the curves that diverge. Here every method

* may choose among as many settings: the same grid of beta, and of steps and
  thresholds or whatever else it has; delta = 0;
* is chosen, on each instance, by its worst seed of 100 to 119;
* is reported on 20 other seeds of the same instance, to the same number of gradient evaluations (a
  SPIDER difference costs two), with its divergences and its worst transient.

Controls take IAN-SGD's constants and its number of steps and change the norm alone: that of the
same batch, and that of the full gradient (an oracle, whose evaluations are shown and not charged).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from scipy.stats import binomtest, quantile_test

from fedef.errors import ConfigError
from sims.ian_loop import Arena, Settings, Trajectory, run

TUNING_SEEDS = range(100, 120)
REPORTED_SEEDS = range(20)
INSTANCES = {"phase-retrieval": (2024, 1, 2), "dro": (2024, 7, 8)}
"""The paper's (for DRO that of its main figure) and two fresh ones."""
BETAS = (1.0, 2 / 3)
STEPS = 12
"""Steps for each threshold, momentum or period; a method's grid has 12 times as many settings."""

_RATES = (-3.6, -1.4)
"""Decades of gamma/tau^beta, the plain step below the threshold, which is also SGD's gamma."""
_THRESHOLDS = {
    "phase-retrieval": (100.0, 316.0, 1000.0, 3160.0, 1e4, 3.16e4),
    "dro": (10.0, 40.0, 160.0, 640.0, 2560.0, 10240.0),
}
_LENGTHS = {
    ("phase-retrieval", 1.0): (-1.8, 0.4),
    ("phase-retrieval", 2 / 3): (-2.6, -0.4),
    ("dro", 1.0): (-2.8, -0.6),
    ("dro", 2 / 3): (-2.8, -0.6),
}
"""Decades of gamma where there is no threshold; at beta = 1 the length of every step."""


@dataclass(frozen=True)
class Row:
    """A method on an instance, over the reported seeds."""

    method: str
    settings: Settings
    where: Arena
    runs: tuple[Trajectory, ...]
    """One for each seed."""
    at_edge: bool = False
    """Whether the step or the threshold is the least or largest of the grid: beyond may be better;
    False where nothing was tuned."""

    @property
    def alive(self) -> tuple[bool, ...]:
        """Whether each run ends at or below what counts as divergence."""
        return tuple(r.final <= self.where.diverged_above for r in self.runs)

    @property
    def diverged(self) -> int:
        """Runs that end above it."""
        return self.alive.count(False)

    @property
    def finals(self) -> tuple[float, ...]:
        """The measure at the budget, inf where the run diverged."""
        ends = zip(self.runs, self.alive, strict=True)
        return tuple(r.final if ok else math.inf for r, ok in ends)

    @property
    def arrivals(self) -> tuple[float, ...]:
        """Gradient evaluations until the target; inf: never."""
        target = self.where.target
        return tuple(math.inf if target is None else r.evaluations_to(target) for r in self.runs)

    @property
    def scores(self) -> tuple[float, ...]:
        """What the comparison is about, lower is better: arrivals, or finals without a target."""
        return self.finals if self.where.target is None else self.arrivals

    @property
    def worst(self) -> float:
        """Largest measure on the way of any run."""
        return max(r.worst for r in self.runs)

    @property
    def computed(self) -> int:
        """Gradients of single rows that a run computes, an oracle's included."""
        return self.runs[0].computed


# --- grids ---


def grids(problem: str, *, steps: int = STEPS) -> dict[str, tuple[Settings, ...]]:
    """Settings that each method may choose from on `phase-retrieval` or `dro`; 12 `steps` each."""
    half = {"phase-retrieval": 32, "dro": 64}[problem]
    ian: dict[str, Any] = {"norm": "independent", "amplification": 2.0}
    memory: dict[str, Any] = {"norm": "previous", "amplification": 2.0, "cap": 2.0}
    rates = _decades(*_RATES, 12 * steps)
    momenta = [
        _normalized(problem, steps, momentum=theta) for theta in (0.2, 0.4, 0.6, 0.8, 0.9, 0.95)
    ]
    spiders = [
        _normalized(problem, steps, spider_period=period) for period in (5, 10, 20, 40, 80, 160)
    ]
    return {
        "SGD": tuple(Settings(rate) for rate in rates),
        "NSGD": _normalized(problem, 6 * steps),
        "NSGDm": tuple(s for some in momenta for s in some),
        "Clip SGD": _thresholded(problem, steps),
        "SPIDER": tuple(s for some in spiders for s in some),
        "IAN-SGD": _thresholded(problem, steps, **ian),
        "IAN-SGD, B = B'": _thresholded(problem, steps, **ian, batch=half, independent_batch=half),
        "IAN-SGD, capped (ours)": _thresholded(problem, steps, **ian, cap=2.0),
        "memory, capped (ours)": _thresholded(problem, steps, **memory),
    }


def _decades(low: float, high: float, count: int) -> tuple[float, ...]:
    return tuple(np.logspace(low, high, count).tolist())


def _thresholded(problem: str, steps: int, **rest: Any) -> tuple[Settings, ...]:
    return tuple(
        Settings(rate * tau**beta, beta, tau, **rest)
        for beta, tau, rate in product(BETAS, _THRESHOLDS[problem], _decades(*_RATES, steps))
    )


def _normalized(problem: str, steps: int, **rest: Any) -> tuple[Settings, ...]:
    return tuple(
        Settings(gamma, beta, **rest)
        for beta in BETAS
        for gamma in _decades(*_LENGTHS[problem, beta], steps)
    )


def published(problem: str) -> Settings:
    """IAN-SGD as published: the repository's constants, and on DRO the step of the main figure."""
    constants = {"phase-retrieval": (0.3, 2025.0, 15.0), "dro": (0.16, 1225.0, 25.0)}[problem]
    gamma, tau, delta = constants
    return Settings(gamma, 2 / 3, tau, delta, norm="independent", amplification=2.0)


def controls(ian: Settings, where: Arena) -> dict[str, Settings]:
    """IAN-SGD's settings with another norm, and as many steps."""
    idle = ian.rows(where)[1]
    return {
        "norm of the same batch": replace(ian, norm="own", idle_rows=idle),
        "norm of the full gradient": replace(ian, norm="full", idle_rows=idle),
    }


# --- the protocol ---


def tune(
    grid: Sequence[Settings], where: Arena, *, seeds: Sequence[int] = TUNING_SEEDS
) -> Settings:
    """Return the settings whose worst seed is best: earliest at the target, then lowest at the end.

    A run that diverged is the worst possible. Of equals the first of the grid is taken.
    """
    quiet = where if where.target is not None else replace(where, log_every=0)
    rows = [Row("", s, quiet, runs) for s, runs in zip(grid, run(grid, quiet, seeds), strict=True)]
    return min(rows, key=_worst_seed).settings


def _worst_seed(row: Row) -> tuple[float, float]:
    return max(zip(row.scores, row.finals, strict=True))


def report(
    settings: dict[str, Settings],
    where: Arena,
    *,
    tuned_on: dict[str, tuple[Settings, ...]] | None = None,
    seeds: Sequence[int] = REPORTED_SEEDS,
) -> list[Row]:
    """Run named settings on an instance, from every seed.

    Parameters
    ----------
    tuned_on
        The grids that they were chosen from.

    Raises
    ------
    ConfigError
        If a seed was used for tuning.
    """
    if set(seeds) & set(TUNING_SEEDS):
        raise ConfigError(
            f"fair protocol: seeds {TUNING_SEEDS.start} to {TUNING_SEEDS.stop - 1} tune the "
            f"methods, got {list(seeds)}; report others"
        )
    every = run(list(settings.values()), where, seeds)
    return [
        Row(method, s, where, runs, at_edge(s, (tuned_on or {}).get(method, ())))
        for (method, s), runs in zip(settings.items(), every, strict=True)
    ]


def at_edge(settings: Settings, grid: Sequence[Settings]) -> bool:
    """Whether its step or threshold is an end of the grid, among those that differ in it alone."""
    rates = [_rate(s) for s in grid if replace(s, step_size=settings.step_size) == settings]
    taus = [
        s.tau
        for s in grid
        if replace(s, step_size=settings.step_size, tau=settings.tau) == settings
    ]
    ends = [(settings.tau, set(taus)), (_rate(settings), set(rates))]
    return any(len(all_) > 1 and value in (min(all_), max(all_)) for value, all_ in ends)


def _rate(settings: Settings) -> float:
    """gamma/tau^beta, rounded so that equal ones are; gamma without a threshold."""
    return float(f"{settings.step_size / (settings.tau or 1.0) ** settings.beta:.6g}")


# --- numbers ---


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(median, low, high): order statistics that cover the median with at least 95 %.

    Of 20 values the 6th and the 15th (95.9 %); below 6 values none do, and it is the range. A run
    that diverged or never arrived is inf.
    """
    ordered = sorted(values)
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    found = quantile_test(ordered, q=0.0, p=0.5).confidence_interval(confidence_level=0.95)
    low, high = float(found.low), float(found.high)
    return (
        middle,
        ordered[0] if math.isnan(low) else low,
        ordered[-1] if math.isnan(high) else high,
    )


def sign_test(ours: Row, other: Row) -> tuple[int, int, float]:
    """(seeds where ours is lower, where the other is, two-sided p); equal seeds are left out."""
    pairs = list(zip(ours.scores, other.scores, strict=True))
    lower = sum(a < b for a, b in pairs)
    higher = sum(a > b for a, b in pairs)
    if lower + higher == 0:
        return 0, 0, 1.0
    return lower, higher, float(binomtest(lower, lower + higher).pvalue)
