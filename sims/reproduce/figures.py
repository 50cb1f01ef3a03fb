"""A panel as SVG that follows the page's colours, and as PNG."""

from __future__ import annotations

from functools import partial

import numpy as np
from matplotlib.figure import Figure

from sims.page import drawing
from sims.page.drawing import DASHES, LIGHT
from sims.reproduce.study import Panel


def svg(panel: Panel) -> str:
    """An ``<svg>`` element that follows the page's colours."""
    return drawing.svg(partial(_draw, panel), name=panel.name, label=panel.title)


def png(panel: Panel) -> bytes:
    """The same on white."""
    return drawing.png(partial(_draw, panel))


def _draw(panel: Panel, ink: str) -> Figure:
    figure = Figure(figsize=(4.6, 4.0), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    for curve in sorted(panel.curves, key=lambda curve: not curve.faint):
        shown = np.where(np.isfinite(curve.y), curve.y, np.nan)
        if panel.top is not None:
            # Just outside: the line leaves through the top instead of ending in the middle.
            shown = np.where(curve.y > panel.top, 3 * panel.top, curve.y)
        axes.plot(
            curve.x,
            shown,
            color=LIGHT[curve.color],
            linestyle="-" if curve.faint else DASHES[curve.color],
            linewidth=0.6 if curve.faint else 1.8,
            alpha=0.3 if curve.faint else 1.0,
            label=curve.label or "_",
        )
    for x, y, color in panel.dots:
        axes.plot(x, y, "o", color=LIGHT[color], markersize=4.5)
    if panel.level is not None:
        axes.axhline(panel.level, color=ink, linestyle=(0, (2, 3)), linewidth=1.1)
    if panel.mark is not None:
        axes.axvline(panel.mark, color=ink, linestyle=(0, (2, 3)), linewidth=1.1)
    axes.set(xlabel=panel.x_label, yscale="linear" if panel.linear else "log")
    if panel.top is not None and panel.bottom is not None and panel.top < 10 * panel.bottom:
        # Less than a decade: plain numbers instead of powers of ten.
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    axes.set_title(f"{panel.title}\n{panel.y_label}", loc="left", fontsize=10.5)
    axes.set_ylim(bottom=panel.bottom, top=panel.top)
    axes.locator_params(axis="x", nbins=6)
    axes.grid(alpha=0.2, color=ink, linewidth=0.5)
    labels = [curve.label for curve in panel.curves if curve.label]
    if labels:
        figure.legend(
            loc="outside lower center",
            ncols=_columns(labels),
            frameon=False,
            fontsize=9.5,
            handlelength=2.4,
        )
    return figure


def _columns(labels: list[str]) -> int:
    """Columns of the legend: as many as fit the panel's width."""
    longest = max(map(len, labels))
    if longest > 26:
        return 1
    return 2 if longest > 14 or len(labels) in (2, 4) else 3
