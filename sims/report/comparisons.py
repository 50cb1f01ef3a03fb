"""Methods against each other: paired differences, and what a target costs."""

from __future__ import annotations

import numpy as np
import pandas as pd

from fedef.errors import ConfigError
from sims.report.groups import Groups
from sims.report.tables import Table
from sims.statistics import cost_to_target, paired_differences, summarize

_ALL_PAIRS = 5
"""Series: of more than that, each is compared with the first alone."""
_WORDS = {"test-accuracy": "test accuracy", "final-loss": "training loss"}
_DASH = "A dash: fewer than two seeds, or the same value on all of them, which shows no spread."
_SHARE_OF_BEST, _TIMES_BEST = 0.95, 2.0


def main_metric(groups: Groups) -> str:
    """What the methods are judged by: the test accuracy, or the loss where there is none."""
    known = any(len(cell.values("test-accuracy")) for cell in groups.cells)
    return "test-accuracy" if known else "final-loss"


def intervals(groups: Groups, condition: int) -> Table:
    """The main metric with both intervals."""
    metric = main_metric(groups)
    found = summarize(_results(groups, [condition]), ["series"], metric)
    return Table(
        f"{_WORDS[metric].capitalize()} after the last round: mean over the n seeds that "
        "completed, with the 95 % t interval and the 95 % BCa bootstrap interval of the mean "
        f"(9,999 resamples). {_DASH}",
        ("method", "n", "of runs", "diverged", "crashed", "mean", "95 % t", "95 % bootstrap"),
        tuple(
            (
                groups.series[int(row["series"])].label,
                str(row["n"]),
                str(row["runs"]),
                str(row["diverged"]),
                str(row["crashed"]),
                _number(row["mean"]),
                _interval(row["low"], row["high"]),
                _interval(row["bootstrap-low"], row["bootstrap-high"]),
            )
            for row in found.to_dict("records")
        ),
        tuple(int(index) for index in found["series"]),
    )


def differences(groups: Groups, reference: str = "") -> dict[int, Table]:
    """By condition: the paired differences of the main metric; empty for one method or one seed.

    Parameters
    ----------
    reference
        Label of the method that all others are compared with; empty: all pairs, or the first one
        where there are many.

    Raises
    ------
    ConfigError
        If no method has that label, or several runs of a method share a seed.
    """
    labels = [series.label for series in groups.series]
    if reference and reference not in labels:
        raise ConfigError(f"reference: no method is {reference!r}; one of {', '.join(labels)}")
    index = labels.index(reference) if reference else 0 if len(labels) > _ALL_PAIRS else None
    metric = main_metric(groups)
    found = paired_differences(
        _results(groups, range(len(groups.conditions))),
        "series",
        within=["condition"],
        metric=metric,
        reference=index,
    )
    if not len(found) or found["n"].max() < 2:
        return {}
    better = "more" if metric == "test-accuracy" else "less"
    compared = "all pairs" if index is None else f"each against {labels[index]}"
    caption = (
        f"Differences in {_WORDS[metric]} ({better} is better), {compared}, on the same seeds: "
        "mean over the n seeds on which both completed, of those on which both ran, with the 95 % "
        "t interval; paired t test, Holm's correction over the "
        f"{found['p'].notna().sum()} tests of the page. {_DASH}"
    )
    return {
        int(condition): Table(
            caption,
            ("first", "second", "n of pairs", "first − second", "95 % t", "p", "p (Holm)"),
            tuple(
                (
                    labels[int(row["first"])],
                    labels[int(row["second"])],
                    f"{row['n']} of {row['pairs']}",
                    _number(row["difference"]),
                    _interval(row["low"], row["high"]),
                    _p(row["p"]),
                    _p(row["p-holm"]),
                )
                for row in part.to_dict("records")
            ),
            tuple(int(first) for first in part["first"]),
        )
        for condition, part in found.groupby("condition", sort=False)
    }


def costs(groups: Groups, condition: int, target: float | None = None) -> Table | None:
    """Rounds and measured bytes to a target of the main metric; None where nothing ended well.

    Parameters
    ----------
    target
        None: from the best method of the condition, as the caption says.
    """
    metric = main_metric(groups)
    column = metric.removeprefix("final-")
    chosen = "as asked" if target is not None else ""
    if target is None:
        means = [
            float(values.mean())
            for cell in groups.of_condition(condition)
            if len(values := cell.values(metric))
        ]
        if not means:
            return None
        if metric == "test-accuracy":
            target = _SHARE_OF_BEST * max(means)
            chosen = "95 % of the best method's mean at the end"
        else:
            target = _TIMES_BEST * min(means)
            chosen = "twice the best method's mean at the end"
    results, curves = _results(groups, [condition]), _curves(groups, condition)
    rounds, uplink = (
        cost_to_target(results, curves, ["series"], target=target, metric=column, cost=cost)
        for cost in ("round", "total-uplink-bytes")
    )
    rows = []
    for row, median_bytes in zip(rounds.to_dict("records"), uplink["median"], strict=True):
        rows.append(
            (
                groups.series[int(row["series"])].label,
                f"{row['reached']} of {row['runs']}",
                str(row["censored"]),
                str(row["unfinished"]),
                str(row["diverged"] + row["crashed"]),
                _median(row["median"], 1.0),
                _median(median_bytes, 1e-6),
            )
        )
    return Table(
        f"To a {_WORDS[metric]} of {target:.4g} ({chosen}). Kaplan-Meier medians over the seeds: "
        "“censored” runs ended before they reached it and count up to there, unfinished ones among "
        "them; lost ones (diverged or crashed) never reach it. “> all”: half of the runs did not "
        "reach it.",
        (
            *("method", "reached", "censored", "unfinished", "lost"),
            *("rounds, median", "uplink MB, median"),
        ),
        tuple(rows),
        tuple(int(index) for index in rounds["series"]),
    )


def _results(groups: Groups, conditions: range | list[int]) -> pd.DataFrame:
    """The reported runs as `sims.statistics` takes them."""
    metrics = ("test-accuracy", "final-loss", "final-grad-norm")
    rows = [
        {
            "run": f"{cell.condition}/{cell.series}/{number}",
            "phase": "report",
            "condition": cell.condition,
            "series": cell.series,
            "seed": run.seed,
            # A run that was interrupted has numbers of another round than the others.
            "status": run.status,
            **{name: run.numbers.get(name, np.nan) for name in metrics},
        }
        for cell in groups.cells
        if cell.condition in conditions
        for number, run in enumerate(cell.runs)
    ]
    return pd.DataFrame.from_records(rows).astype(dict.fromkeys(metrics, "float64"))


def _curves(groups: Groups, condition: int) -> pd.DataFrame:
    return pd.concat(
        [
            pd.DataFrame({"run": f"{cell.condition}/{cell.series}/{number}", **run.curves})
            for cell in groups.of_condition(condition)
            for number, run in enumerate(cell.runs)
        ],
        ignore_index=True,
    )


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.4g}".replace("-", "−")


def _interval(low: float, high: float) -> str:
    return "-" if np.isnan(low) else f"{_number(low)} to {_number(high)}"


def _p(value: float) -> str:
    if np.isnan(value):
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _median(value: float, scale: float) -> str:
    return "> all" if np.isnan(value) else f"{scale * value:.4g}"
