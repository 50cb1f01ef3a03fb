"""The published single-machine settings of arXiv:2410.14054, followed over seeds to a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedef.problems.base import Problem
from sims.reproduce.runs import Measure, experiment_on, follow, thinned
from sims.reproduce.study import Curve, of, with_median
from sims.reproduce.verdict import Check, inside, same_rate, within_deviations

SPEC = "specification (20 seeds)"
FIGURE = "paper's figure (1 seed)"


@dataclass(frozen=True)
class Loop:
    """One method with its settings."""

    label: str
    method: str
    batch: int
    settings: Mapping[str, Any]
    """Further keys; the step size among them."""
    color: int
    independent: int = 0
    """B': rows of the independent batch; 0: none."""
    period: int = 0
    """Updates between SPIDER's full gradients; 0: none."""

    def keys(self) -> dict[str, Any]:
        """The configuration's keys."""
        keys: dict[str, Any] = {
            "method": self.method,
            "local_batch_size": self.batch,
            **self.settings,
        }
        if self.independent:
            keys |= {"independent_batch_size": self.independent, "independent_summary": "norm"}
        if self.period:
            keys["spider_period"] = self.period
        return keys

    def samples(self, n: int, updates: int) -> NDArray[np.int64]:
        """(updates + 1,): samples used before each update, as the papers count them.

        SPIDER's difference counts its rows once, though it needs two gradients of each.
        """
        whole = [bool(self.period) and t % self.period == 0 for t in range(updates)]
        each = [(n if all_rows else self.batch) + self.independent for all_rows in whole]
        return np.cumsum([0, *each])

    def updates_within(self, n: int, budget: int) -> int:
        """Updates whose samples fit in the budget."""
        return int(np.searchsorted(self.samples(n, budget // self.batch), budget, "right")) - 1


@dataclass(frozen=True)
class Runs:
    """One loop over seeds."""

    loop: Loop
    samples: NDArray[np.int64]
    """(points,)."""
    values: NDArray[np.float64]
    """(seeds, points); inf where a run is no longer finite."""
    limit: float
    """A run whose last value is above has diverged."""

    @property
    def finals(self) -> NDArray[np.float64]:
        """(seeds,): at the budget."""
        return self.values[:, -1]

    @property
    def kept(self) -> NDArray[np.float64]:
        """The finals of the runs that have not diverged."""
        return self.finals[self.finals <= self.limit]

    @property
    def diverged(self) -> int:
        """How many have."""
        return len(self.finals) - len(self.kept)

    def summary(self) -> str:
        """``mean ± deviation (diverged ...)`` over the runs that have not diverged."""
        if not len(self.kept):
            return f"all {len(self.finals)} diverged"
        text = f"{self.kept.mean():.4g}"
        if len(self.kept) > 1:
            text += f" ± {self.kept.std(ddof=1):.2g}"
        return text + (f"; {of(self.diverged, len(self.finals))} diverged" if self.diverged else "")

    def curves(self) -> list[Curve]:
        """Every seed, and their median; a run that is no longer finite has left through the top."""
        at = thinned(len(self.samples), 110)
        x = self.samples[at].astype(np.float64)
        values = self.values[:, at]
        shown = np.where(np.isfinite(values), values, 1e300)
        return with_median(x, shown, self.loop.color, self.loop.label)


def over_seeds(
    problem: Problem,
    loop: Loop,
    measure: Measure,
    *,
    seeds: Sequence[int],
    budget: int,
    limit: float,
    points: int = 60,
    name: str,
) -> Runs:
    """Run `loop` from each seed to the budget through the inline engine.

    Parameters
    ----------
    limit
        A run above it at the budget counts as diverged.
    points
        Evaluations of a run, about.
    name
        The problem's name.
    """
    n = sum(problem.num_examples)
    updates = loop.updates_within(n, budget)
    step = max(1, ceil(updates / points))
    at = sorted({*range(0, updates, step), updates})
    values = [
        follow(
            experiment_on(
                problem,
                problem=name,
                num_clients=1,
                schedule="constant",
                seed=seed,
                num_rounds=updates,
                **loop.keys(),
            ),
            measure,
            at,
        )
        for seed in seeds
    ]
    return Runs(loop, loop.samples(n, updates)[at], np.array(values), limit)


def mean_check(runs: Runs, mean: float, deviation: float, diverging: int) -> Check:
    """Our mean within three of the specification's deviations, and as many divergences."""
    ours = float(runs.kept.mean()) if len(runs.kept) else float("inf")
    close = within_deviations(ours, mean, deviation)
    rate = same_rate(runs.diverged, len(runs.finals), diverging, 20)
    printed = f"{mean:g} ± {deviation:g}" + (f"; {diverging} of 20 diverged" if diverging else "")
    reasons = [] if close else ["mean further than 3 standard deviations away"]
    reasons += [] if rate else ["another share of diverging seeds"]
    return Check(runs.loop.label, SPEC, printed, runs.summary(), close and rate, "; ".join(reasons))


def figure_check(runs: Runs, value: float, *, widened: float, why: str, shown: str = "") -> Check:
    """Whether a value read off a figure (one seed) lies in our range over seeds."""
    finals = runs.kept
    agrees = bool(len(finals)) and inside(value, finals.tolist(), widened)
    ours = f"{np.median(finals):.4g} [{finals.min():.4g}, {finals.max():.4g}]"
    if runs.diverged:
        ours += f"; {of(runs.diverged, len(runs.finals))} diverged"
    return Check(
        runs.loop.label, FIGURE, shown or f"{value:g}", ours, agrees, "" if agrees else why
    )


def who_diverged(all_runs: Sequence[Runs]) -> str:
    """A sentence: how many seeds of which loops."""
    counts = [f"{runs.loop.label} {runs.diverged}" for runs in all_runs if runs.diverged]
    return f"Diverged: {', '.join(counts)}." if counts else "None diverged."


def settings_line(loops: Sequence[Loop]) -> str:
    """The loops' keys, for a reader."""
    lines = []
    for loop in loops:
        keys = " ".join(f"{k.replace('_', '-')}={_short(v)}" for k, v in loop.keys().items())
        lines.append(f"{loop.label}: {keys}")
    return "; ".join(lines)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
