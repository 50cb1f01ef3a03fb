"""Statistics of a sweep's results: intervals, paired differences, cost to a target.

All take the tables of `sims.sweeps` and look at the reported runs alone. Runs that did not complete
are counted in every row and never enter a mean; `complete` says whether there was none.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import inf, nan, sqrt

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from statsmodels.duration.survfunc import SurvfuncRight
from statsmodels.stats.multitest import multipletests

from fedef.errors import ConfigError
from fedef.vectors import Vector

Values = NDArray[np.float64]
CONFIDENCE = 0.95
RESAMPLES = 9999
_ROUNDING = 1e-12
"""Of the largest value: values that differ by no more are the same one."""
_LOST = ("diverged", "failed", "killed")
"""Never reach a target; runs that were interrupted might have."""
_LARGEST_IS_BEST = frozenset({"test-accuracy"})


@dataclass(frozen=True)
class Estimate:
    """A mean with two 95 % intervals."""

    n: int
    mean: float
    low: float
    """As `t_interval`."""
    high: float
    bootstrap_low: float
    """BCa bootstrap of the mean; NaN where the other one is."""
    bootstrap_high: float


def t_interval(values: Values) -> tuple[Values, Values, Values]:
    """Mean and ends of the 95 % t interval along the first axis.

    mean -+ t_{0.975, n-1} s / sqrt(n) (Student 1908). The ends are NaN for n < 2, and where all
    values are the same one other than 0: no spread was seen, which does not say that there is none.
    """
    n = len(values)
    mean = values.mean(axis=0)
    if n < 2:
        return mean, np.full_like(mean, nan), np.full_like(mean, nan)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * values.std(axis=0, ddof=1) / sqrt(n)
    half = np.where(_without_spread(values) & values.any(axis=0), nan, half)
    return mean, mean - half, mean + half


def _without_spread(values: Vector | Values) -> NDArray[np.bool_]:
    """Whether values along the first axis are the same up to rounding."""
    same: NDArray[np.bool_] = np.ptp(values, axis=0) <= _ROUNDING * np.abs(values).max(axis=0)
    return same


def estimate(values: ArrayLike, *, seed: int = 0) -> Estimate:
    """Mean of independent values with its intervals; `seed` is of the bootstrap's resamples."""
    sample = np.asarray(values, dtype=np.float64)
    n = len(sample)
    if n < 2:
        return Estimate(n, float(sample[0]) if n else nan, nan, nan, nan, nan)
    mean, low, high = map(float, t_interval(sample))
    if _without_spread(sample):  # BCa divides by the spread
        return Estimate(n, mean, low, high, low, high)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # the interval is then NaN
        resampled = stats.bootstrap(
            (sample,),
            np.mean,
            confidence_level=CONFIDENCE,
            n_resamples=RESAMPLES,
            method="BCa",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return Estimate(n, mean, low, high, float(resampled.low), float(resampled.high))


def summarize(
    results: pd.DataFrame, by: Sequence[str], metric: str = "test-accuracy"
) -> pd.DataFrame:
    """Mean and intervals of a metric over the seeds.

    Parameters
    ----------
    results
        As in ``results.parquet``.
    by
        Columns whose values make a row.
    metric
        A column of numbers.

    Returns
    -------
    pandas.DataFrame
        `by`, runs, n (completed, with a value), diverged, crashed, unfinished, complete, mean, low,
        high, bootstrap-low, bootstrap-high.

    Raises
    ------
    ConfigError
        If a column is missing, or a seed is there twice in a row.
    """
    reported = _reported(results, [*by, metric])
    rows = []
    for key, runs in _groups(reported, by):
        _require_once(runs, ["seed"], by)
        found = estimate(_values(runs, metric))
        rows.append(
            {
                **key,
                **_ends(runs),
                "n": found.n,
                "complete": found.n == len(runs),
                "mean": found.mean,
                "low": found.low,
                "high": found.high,
                "bootstrap-low": found.bootstrap_low,
                "bootstrap-high": found.bootstrap_high,
            }
        )
    return pd.DataFrame.from_records(rows)


def paired_differences(
    results: pd.DataFrame,
    between: str = "method",
    *,
    within: Sequence[str] = (),
    metric: str = "test-accuracy",
    reference: Hashable | None = None,
) -> pd.DataFrame:
    """Differences between methods on the same seeds, paired t tests, Holm's correction over all.

    Parameters
    ----------
    results
        As in ``results.parquet``.
    between
        Column of what is compared.
    within
        Columns whose values make a comparison of their own, for example dirichlet-alpha.
    metric
        A column of numbers.
    reference
        Value of `between` that every other one is compared with; None: all pairs.

    Returns
    -------
    pandas.DataFrame
        `within`, first, second, pairs (seeds of both), n (of them both completed), complete,
        difference (mean of first - second), low, high (95 % t interval), p, p-holm (over the known
        p). p and the interval are NaN where the difference is the same on every seed, but not 0.

    Raises
    ------
    ConfigError
        If a column is missing, a seed is there twice in a group, or the reference is nowhere.
    """
    reported = _reported(results, [between, *within, metric])
    if reference is not None and reference not in set(reported[between]):
        raise ConfigError(
            f"statistics: no {between} is {reference!r}; one of {_distinct(reported[between])}"
        )
    rows = []
    for key, runs in _groups(reported, within):
        _require_once(runs, [between, "seed"], within)
        values = runs.assign(value=_known(runs, metric)).pivot(
            index="seed", columns=between, values="value"
        )
        there = runs.pivot(index="seed", columns=between, values="status").notna()
        for first, second in _pairs(_distinct(runs[between]), reference):
            shared = there[first] & there[second]
            both = values.loc[shared, [first, second]].dropna()
            difference = both[first].to_numpy() - both[second].to_numpy()
            found = estimate(difference)
            rows.append(
                {
                    **key,
                    "first": first,
                    "second": second,
                    "pairs": int(shared.sum()),
                    "n": found.n,
                    "complete": found.n == shared.sum(),
                    "difference": found.mean,
                    "low": found.low,
                    "high": found.high,
                    "p": _p_value(difference),
                }
            )
    table = pd.DataFrame.from_records(rows)
    return table.assign(**{"p-holm": _holm(table["p"])}) if rows else table


def cost_to_target(
    results: pd.DataFrame,
    curves: pd.DataFrame,
    by: Sequence[str],
    *,
    target: float,
    metric: str = "test-accuracy",
    cost: str = "total-uplink-bytes",
) -> pd.DataFrame:
    """What it takes to reach a target, censored runs included (Kaplan-Meier).

    Parameters
    ----------
    results, curves
        As in ``results.parquet`` and ``curves.parquet``.
    by
        Columns whose values make a row.
    target
        Reached in the first evaluated round with a metric no worse.
    metric
        Column of `curves`: test-accuracy (from below), or loss or grad-norm (from above).
    cost
        Column of `curves` that grows: round, total-uplink-bytes, total-downlink-bytes.

    Returns
    -------
    pandas.DataFrame
        `by`, runs, reached, censored (ended without reaching it), diverged, crashed, unfinished,
        median: the least cost by which half of the runs have reached it, NaN where that is not
        known; text.

    Notes
    -----
    A run that did not reach the target is censored at its last cost, whether it completed or is
    unfinished. One that diverged or crashed before never reaches it: it stays at risk to the end.

    Raises
    ------
    ConfigError
        If a column is missing, or a seed is there twice in a row.
    """
    reported = _reported(results, list(by))
    _require(curves, ["run", metric, cost])
    sign = 1 if metric in _LARGEST_IS_BEST else -1
    known = curves[curves[metric].notna()]
    hits = known[sign * known[metric].astype(float) >= sign * target]
    first = hits.groupby("run")[cost].min().astype(float)
    last = curves.groupby("run")[cost].max().astype(float)
    rows = []
    for key, runs in _groups(reported, by):
        _require_once(runs, ["seed"], by)
        reached = runs["run"].isin(first.index).to_numpy()
        lost = runs["status"].isin(_LOST).to_numpy(dtype=bool)
        ends = runs["run"].map(last).fillna(0.0).mask(lost, inf)
        costs = runs["run"].map(first).where(reached, ends).to_numpy(dtype=np.float64)
        median = _median(costs, reached)
        shown = "median beyond what was run" if np.isnan(median) else f"median {median:.6g}"
        rows.append(
            {
                **key,
                **_ends(runs),
                "reached": int(reached.sum()),
                "censored": int((~lost & ~reached).sum()),
                "median": median,
                "text": f"{reached.sum()} of {len(runs)} reached; {shown}",
            }
        )
    return pd.DataFrame.from_records(rows)


def _median(costs: Vector, reached: NDArray[np.bool_]) -> float:
    """Kaplan-Meier median; NaN where fewer than half are known to reach it. inf: never does."""
    if not reached.any():
        return nan
    beyond = 2 * costs[np.isfinite(costs)].max()
    times = np.where(np.isfinite(costs), costs, beyond)
    survival = SurvfuncRight(times, reached.astype(int))
    halved = survival.surv_times[survival.surv_prob <= 0.5 + 1e-12]
    return float(halved[0]) if len(halved) else nan


def _p_value(difference: Vector) -> float:
    """Two-sided, that the mean difference is 0; 0 on every seed: 1, another one on every: NaN."""
    if len(difference) < 2:
        return nan
    if _without_spread(difference):
        return nan if difference.any() else 1.0
    return float(stats.ttest_1samp(difference, 0.0).pvalue)


def _holm(p: pd.Series) -> Vector:
    values = p.to_numpy(dtype=np.float64)
    corrected = np.full(len(values), nan)
    known = ~np.isnan(values)
    if known.any():
        corrected[known] = multipletests(values[known], method="holm")[1]
    return corrected


def _pairs(names: list[Hashable], reference: Hashable | None) -> list[tuple[Hashable, Hashable]]:
    if reference is None:
        return list(combinations(names, 2))
    return [(name, reference) for name in names if name != reference and reference in names]


def _reported(results: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    _require(results, ["run", "phase", "seed", "status", *columns])
    return results[results["phase"] == "report"]


def _require(table: pd.DataFrame, columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in table]
    if missing:
        raise ConfigError(f"statistics: no column {missing[0]!r}; there are {', '.join(table)}")


def _require_once(runs: pd.DataFrame, columns: list[str], within: Sequence[str]) -> None:
    if runs.duplicated(columns).any():
        of_one = f" of one {columns[0]}" if len(columns) > 1 else ""
        raise ConfigError(
            f"statistics: several runs{of_one} share a seed within {list(within)}; tell them apart "
            "by more columns"
        )


def _groups(
    table: pd.DataFrame, by: Sequence[str]
) -> list[tuple[dict[str, Hashable], pd.DataFrame]]:
    """Groups in the order of the table; a null is a value like any other."""
    if not by:
        return [({}, table)] if len(table) else []
    return [
        (
            {name: None if pd.isna(value) else value for name, value in zip(by, key, strict=True)},
            part,
        )
        for key, part in table.groupby(list(by), sort=False, dropna=False)
    ]


def _ends(runs: pd.DataFrame) -> dict[str, int]:
    status = runs["status"]
    return {
        "runs": len(runs),
        "diverged": int((status == "diverged").sum()),
        "crashed": int(status.isin(["failed", "killed"]).sum()),
        "unfinished": int((~status.isin(["completed", *_LOST])).sum()),
    }


def _known(runs: pd.DataFrame, metric: str) -> pd.Series:
    return runs[metric].where(runs["status"] == "completed").astype("Float64")


def _values(runs: pd.DataFrame, metric: str) -> Vector:
    values: Vector = _known(runs, metric).dropna().to_numpy(dtype=np.float64)
    return values


def _distinct(column: pd.Series) -> list[Hashable]:
    return list(column.dropna().unique())
