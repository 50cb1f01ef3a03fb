"""When our number agrees with a printed one: the rules, each a function of numbers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, log10
from statistics import median

from scipy.stats import fisher_exact

MEASURED = "specification (measured)"
"""Who prints it, of numbers that the specification measured itself."""
CONVERGED = 1e-8
"""Two squared gradient norms below this agree: what is left is how long each has converged."""


@dataclass(frozen=True)
class Check:
    """One printed number beside ours."""

    what: str
    source: str
    """Who prints it: the paper, its figure, or the specification's own measurement."""
    printed: str
    ours: str
    agrees: bool | None
    """None: shown, but there is nothing to judge."""
    why: str = ""
    """Why not, where it does not agree."""
    part: str = ""
    """Its column, where `what` is a row of several numbers."""


def same_digits(ours: float, printed: str) -> bool:
    """Whether `ours`, rounded to as many decimals as `printed` shows, is `printed`."""
    mantissa = printed.lower().partition("e")[0]
    decimals = len(mantissa.partition(".")[2])
    if "e" in printed.lower():
        return float(f"{ours:.{decimals}e}") == float(printed)
    return round(ours, decimals) == float(printed)


def within_relative(ours: float, printed: float, tolerance: float) -> bool:
    """|ours - printed| <= tolerance |printed|."""
    return abs(ours - printed) <= tolerance * abs(printed)


def within_deviations(ours: float, mean: float, deviation: float, count: float = 3) -> bool:
    """|ours - mean| <= count deviations; a mean that is not finite never agrees."""
    return isfinite(ours) and abs(ours - mean) <= count * deviation


def inside(printed: float, ours: Sequence[float], widened: float) -> bool:
    """Whether `printed` lies between our least and largest value, each moved out by `widened`."""
    low, high = float(min(ours)), float(max(ours))
    return low - widened * abs(low) <= printed <= high + widened * abs(high)


def all_inside(ours: Sequence[float], low: float, high: float, widened: float) -> bool:
    """Whether all of ours lie in the printed range, widened on both sides by that fraction."""
    return all(low * (1 - widened) <= value <= high * (1 + widened) for value in ours)


def same_magnitude(ours: Sequence[float], printed: float, factor: float = 10) -> bool:
    """Within `factor` of our median, inside our range, or both converged (`CONVERGED`)."""
    middle = median(ours)
    if middle < CONVERGED and printed < CONVERGED:
        return True
    if min(ours) <= printed <= max(ours):
        return True
    return middle > 0 and isfinite(middle) and abs(log10(middle / printed)) <= log10(factor)


def same_winner(ours: tuple[float, float], printed: tuple[float, float]) -> bool:
    """Whether the smaller number is on the same side."""
    return (ours[0] < ours[1]) == (printed[0] < printed[1])


def same_rate(ours: int, of_ours: int, printed: int, of_printed: int, level: float = 0.05) -> bool:
    """Whether Fisher's exact test, two-sided, keeps the two counts compatible at `level`."""
    table = [[ours, of_ours - ours], [printed, of_printed - printed]]
    return float(fisher_exact(table)[1]) >= level
