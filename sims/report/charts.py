"""A chart of series: what is drawn, its numbers, and how it is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from sims.page.drawing import LIGHT, Draw
from sims.report.groups import Series
from sims.report.runs import Values

_SOLID = (0.0, ())
DASHES: tuple[tuple[float, tuple[float, ...]], ...] = (
    _SOLID,
    (0, (4.5, 1.6)),
    (0, (1.1, 1.1)),
    (0, (5, 1.4, 1.1, 1.4)),
    (0, (8, 2)),
    (0, (5, 1.2, 1.1, 1.2, 1.1, 1.2)),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_MARKS_PER_CURVE = 6
_LEGEND_ROW_INCHES = 0.21


@dataclass(frozen=True, eq=False)
class Line:
    """A series in a chart."""

    series: Series
    x: Values
    y: Values
    low: Values
    high: Values
    n: Values
    """Seeds of each point."""
    lost: tuple[tuple[Values, Values], ...] = ()
    """Points of runs that did not complete: drawn thin, a cross at the end, no part of the mean."""
    pinned: tuple[float, ...] = ()
    """x of runs that did not complete and have no y: crosses at the upper edge."""


@dataclass(frozen=True)
class Chart:
    """A figure of the page."""

    name: str
    """Of its files."""
    title: str
    x_label: str
    lines: tuple[Line, ...]
    caption: str
    log_x: bool = False
    log_y: bool = False
    share: bool = False
    """y is a share: the axis ends at 0 and 1, also where an interval goes on."""
    small: bool = False
    """For three in a row on the page instead of two."""
    points: bool = False
    """Few points with error bars instead of a curve with a band."""

    @property
    def alt(self) -> str:
        """What the chart shows, in words."""
        ends = "; ".join(
            f"{line.series.label} {_number(line.y[-1])} at {_number(line.x[-1])}"
            for line in self.lines
            if len(line.y)
        )
        return f"{self.title} against {self.x_label}. Last values: {ends}."

    def rows(self) -> Iterator[list[str]]:
        """A heading and one row for each point; a run that did not complete has no n."""
        yield ["series", "x", "y", "low", "high", "n"]
        for line in self.lines:
            for point in zip(line.x, line.y, line.low, line.high, line.n, strict=True):
                yield [line.series.label, *(_cell(value) for value in point)]
            for x, y in line.lost:
                for pair in zip(x, y, strict=True):
                    yield [f"{line.series.label} (not completed)", *map(_cell, pair), "", "", ""]
            for place in line.pinned:
                yield [f"{line.series.label} (not completed)", _cell(place), "", "", "", ""]


def drawing(chart: Chart, *, legend: bool) -> Draw:
    """Return what draws the chart; ids of a series' marks begin with its number: ``s3-``."""
    return partial(_draw, chart, legend)


def _draw(chart: Chart, legend: bool, ink: str) -> Figure:
    labels = [line.series.label for line in chart.lines]
    columns = 1 if max(map(len, labels), default=0) > 26 else 2
    width, height = (3.7, 3.1) if chart.small else (4.6, 3.7)
    if legend:
        height += _LEGEND_ROW_INCHES * ceil(len(labels) / columns)
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.set(
        xlabel=chart.x_label,
        xscale="log" if chart.log_x else "linear",
        yscale="log" if chart.log_y else "linear",
    )
    for line in chart.lines:
        _line(axes, chart, line)
    low, high = _limits(chart)
    axes.set_ylim(low, high)
    for line in chart.lines:
        for number, place in enumerate(line.pinned):
            axes.plot(
                [place],
                [0.985],
                "x",
                transform=axes.get_xaxis_transform(),
                color=LIGHT[line.series.color],
                markersize=7,
                markeredgewidth=1.8,
                gid=f"s{line.series.index}-pinned{number}",
            )
    if not chart.log_x:
        axes.locator_params(axis="x", nbins=6)
    for axis in [axes.xaxis] * chart.log_x + [axes.yaxis] * chart.log_y:
        _plain_numbers(axis)
    # Long conditions go below the metric's name.
    title = chart.title if len(chart.title) < 46 else chart.title.replace(" · ", "\n", 1)
    wrapped = "\n".join(fill(part, 50) for part in title.split("\n"))
    axes.set_title(wrapped, loc="left", fontsize=11 if wrapped == chart.title else 10)
    axes.grid(alpha=0.2, color=ink, linewidth=0.5)
    if legend:
        figure.legend(
            loc="outside lower center",
            ncols=columns,
            frameon=False,
            fontsize=9,
            handlelength=2.8,
        )
    return figure


def _plain_numbers(axis: Axis) -> None:
    """0.01, 0.1, 1 instead of powers of ten; 2 and 5 between them where that leaves few ticks."""
    low, high = sorted(axis.get_view_interval())
    decades = np.log10(high / low)
    if not 1e-5 <= low < high <= 1e7 or decades > 6:
        return
    axis.set_major_formatter("{x:g}")
    if decades > 2.2:
        axis.set_minor_formatter(NullFormatter())
        return
    axis.set_minor_locator(LogLocator(subs=(2.0, 5.0) if decades > 0.7 else tuple(range(2, 10))))
    axis.set_minor_formatter("{x:g}")


def _line(axes: Axes, chart: Chart, line: Line) -> None:
    look = line.series
    color, mark = LIGHT[look.color], f"s{look.index}"
    shown: dict[str, Any] = {
        "color": color,
        "linestyle": "-" if DASHES[look.dash] == _SOLID else DASHES[look.dash],
        "marker": MARKERS[look.marker],
        "label": look.label,
    }
    if chart.points:
        places = _beside(chart, line)
        axes.plot(places, line.y, linewidth=1.3, markersize=5, gid=f"{mark}-mean", **shown)
        for number, (x, low, high) in enumerate(zip(places, line.low, line.high, strict=True)):
            if np.isfinite(low):
                axes.plot([x, x], [low, high], color=color, lw=1.3, gid=f"{mark}-bar{number}")
    else:
        every = max(1, len(line.x) // _MARKS_PER_CURVE)
        # Markers of series start at different points, so that they do not hide each other.
        first = (2 * look.index) % every if every > 1 else 0
        axes.plot(
            line.x,
            line.y,
            linewidth=1.8,
            markersize=4.5,
            markevery=(first, every),
            gid=f"{mark}-mean",
            **shown,
        )
        if np.isfinite(line.low).any():
            axes.fill_between(
                line.x, line.low, line.high, color=color, alpha=0.16, lw=0, gid=f"{mark}-band"
            )
    for number, (x, y) in enumerate(line.lost):
        axes.plot(x, y, color=color, linewidth=0.8, alpha=0.7, gid=f"{mark}-lost{number}")
        axes.plot(x[-1:], y[-1:], "x", color=color, markersize=7, gid=f"{mark}-end{number}")


def _beside(chart: Chart, line: Line) -> Values:
    """X moved by up to 2 % of the axis, so that equal x do not hide each other's intervals."""
    every = np.concatenate([other.x for other in chart.lines])
    if len(every) == 0:
        return line.x
    share = 0.04 * (chart.lines.index(line) / max(1, len(chart.lines) - 1) - 0.5)
    if chart.log_x:
        return np.asarray(line.x * (every.max() / every.min()) ** share)
    return np.asarray(line.x + np.ptp(every) * share)


def _limits(chart: Chart) -> tuple[float | None, float | None]:
    """From the means and, as far as they leave the picture readable, the intervals."""
    means = [line.y for line in chart.lines if len(line.y)]
    if not means:
        return None, None
    every = np.concatenate(means)
    every = every[np.isfinite(every) & ((every > 0) | (not chart.log_y))]
    if len(every) == 0:
        return None, None
    low, high = float(every.min()), float(every.max())
    ends = np.concatenate([np.concatenate([line.low, line.high]) for line in chart.lines])
    ends = ends[np.isfinite(ends)]
    if chart.log_y:
        near = ends[(ends > low / 3) & (ends < high * 3)]
        low, high = min([low, *near]), max([high, *near])
        margin = (high / low) ** 0.05 if high > low else 1.5
        return low / margin, high * margin
    reach = high - low or abs(high) or 1.0
    near = ends[(ends > low - reach / 2) & (ends < high + reach / 2)]
    low, high = min([low, *near]), max([high, *near])
    margin = 0.05 * (high - low) or 0.05 * reach
    if chart.share:
        return max(low - margin, -0.02), min(high + margin, 1.02)
    return low - margin, high + margin


def swatch(series: Series) -> str:
    """The series' line and marker as a small ``<svg>`` for labels outside of figures."""
    pattern = " ".join(f"{1.8 * part:g}" for part in DASHES[series.dash][1])
    color = f"var(--c{series.color})"
    return (
        '<svg class="swatch" viewBox="0 0 34 12" aria-hidden="true">'
        f'<path d="M1 6H33" stroke="{color}" stroke-width="2.2" stroke-dasharray="{pattern}"/>'
        f'<path d="{_SHAPES[series.marker]}" fill="{color}"/></svg>'
    )


_SHAPES = (
    "M13 6a4 4 0 1 0 8 0a4 4 0 1 0 -8 0",
    "M13.5 2.5h7v7h-7z",
    "M17 1.5l4.5 8h-9z",
    "M17 1l5 5l-5 5l-5 -5z",
    "M17 10.5l4.5 -8h-9z",
    "M15.5 1.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
    "M13 1l4 3.5l4 -3.5l1 1l-3.5 4l3.5 4l-1 1l-4 -3.5l-4 3.5l-1 -1l3.5 -4l-3.5 -4z",
    "M17 1l1.5 3.5h3.5l-2.8 2.3l1 3.7l-3.2 -2.2l-3.2 2.2l1 -3.7l-2.8 -2.3h3.5z",
)


def _number(value: float) -> str:
    return f"{value:.3g}"


def _cell(value: float) -> str:
    return f"{value:.8g}" if np.isfinite(value) else ""


def usable(lines: Sequence[Line | None]) -> tuple[Line, ...]:
    """Those with something to draw."""
    return tuple(
        line for line in lines if line is not None and (len(line.x) or line.lost or line.pinned)
    )
