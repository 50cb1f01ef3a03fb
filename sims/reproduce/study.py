"""What a study hands to the page: findings, figures, comparisons. No I/O and no HTML here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sims.reproduce.verdict import Check

Tell = Callable[[str, float], None]
"""(what is running, fraction of the study that is done)."""


@dataclass(frozen=True)
class Settings:
    """What a study is asked for."""

    quick: bool
    data_dir: Path | None = None
    tell: Tell = lambda text, fraction: None

    @property
    def data_folder(self) -> str:
        """Value of the key data-dir; '' is not set."""
        return "" if self.data_dir is None else str(self.data_dir)


@dataclass(frozen=True)
class Curve:
    """One line of a figure."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    color: int
    """Index of the palette."""
    label: str = ""
    """In the legend; '' for a line that only accompanies another."""
    faint: bool = False
    """A single seed, behind the bold median."""


@dataclass(frozen=True)
class Panel:
    """One figure."""

    name: str
    """Of its PNG, without the ending."""
    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    caption: str
    """What is shown, with n and what the bold line and the faint ones are."""
    top: float | None = None
    """Largest y shown; lines that leave there have diverged."""
    bottom: float | None = None
    """Least y shown."""
    level: float | None = None
    """A dotted horizontal line: the target."""
    mark: float | None = None
    """A dotted vertical line: the budget."""
    dots: tuple[tuple[float, float, int], ...] = ()
    """(x, y, color) of single points."""
    linear: bool = False
    """A linear y axis instead of a logarithmic one."""


@dataclass(frozen=True)
class Comparison:
    """A table of checks."""

    caption: str
    """What is compared, with n, the interval's kind and the rule of agreement."""
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Finding:
    """One sentence for the page's first section."""

    holds: bool | None
    """None: not judged."""
    text: str


@dataclass(frozen=True)
class Study:
    """The result of one study."""

    name: str
    title: str
    about: str
    """Two or three sentences: what is minimized, with what, where it comes from."""
    findings: tuple[Finding, ...]
    panels: tuple[Panel, ...]
    comparisons: tuple[Comparison, ...]
    settings: tuple[str, ...]
    """What a reader needs to run it again."""
    notes: tuple[str, ...] = field(default=())
    paper: str = ""
    """Whose claims the findings judge; '' for none."""

    @property
    def checks(self) -> tuple[Check, ...]:
        """Of all comparisons."""
        return tuple(check for comparison in self.comparisons for check in comparison.checks)


UNIT = "Error feedback with normalized steps, ‖EF21‖ (arXiv:2410.16871)"
IAN = "Independent normalization, IAN-SGD (arXiv:2410.14054)"


def spread(values: Sequence[float], digits: int = 3, *, scientific: bool = False) -> str:
    """``median [least, largest]``, or the one value; `scientific` as 1.2e-4."""
    array = np.asarray(values, dtype=np.float64)
    shown = [
        _scientific(value) if scientific else f"{value:.{digits}g}"
        for value in (np.median(array), array.min(), array.max())
    ]
    return shown[0] if len(array) == 1 else f"{shown[0]} [{shown[1]}, {shown[2]}]"


def _scientific(value: float) -> str:
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def with_median(
    x: NDArray[np.float64], runs: NDArray[np.float64], color: int, label: str
) -> list[Curve]:
    """Each of the runs (n, points), faint, and their median."""
    faint = [Curve(x, run, color, faint=True) for run in runs]
    return [*faint, Curve(x, np.median(runs, axis=0), color, label)]


def of(count: int, total: int) -> str:
    """``3 of 20``."""
    return f"{count} of {total}"


def numerus(count: int, one: str, many: str) -> str:
    """``1 seed``, ``2 seeds``."""
    return f"{count} {one if count == 1 else many}"
