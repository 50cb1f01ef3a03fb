"""A row of the benchmarks' table, and how two contenders are timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

WARM_UP = 3


@dataclass(frozen=True)
class Row:
    """One comparison."""

    what: str
    ours: str
    """Seconds or bytes of ours, as shown."""
    beside: str
    """The same of what it is compared with."""
    ratio: float
    asked: float
    """The ratio must not be larger."""

    @classmethod
    def of_seconds(cls, what: str, measured: tuple[float, float, float], *, asked: float) -> Row:
        """A row of what `compare` measured."""
        ours, beside, ratio = measured
        return cls(what, f"{ours * 1e3:.2f} ms", f"{beside * 1e3:.2f} ms", ratio, asked)


def compare(
    ours: Callable[[], object], beside: Callable[[], object], *, turns: int
) -> tuple[float, float, float]:
    """Median seconds of one call of each, and the median of the turns' ratios."""
    return compare_timed(lambda: _seconds(ours), lambda: _seconds(beside), turns=turns)


def compare_timed(
    ours: Callable[[], float], beside: Callable[[], float], *, turns: int
) -> tuple[float, float, float]:
    """As `compare`, of calls that tell their seconds themselves."""
    pairs = [(ours(), beside()) for _ in range(turns + WARM_UP)][WARM_UP:]
    return (
        median(pair[0] for pair in pairs),
        median(pair[1] for pair in pairs),
        median(pair[0] / pair[1] for pair in pairs),
    )


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
