"""A panel as SVG that follows the page's colours, and as PNG."""

from __future__ import annotations

import io
import re
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from sims.reproduce.study import Panel

LIGHT = ("#0072b2", "#d55e00", "#00855f", "#a03f8c", "#a06c00", "#5a5a5a")
"""Okabe and Ito's colours, the light ones darkened for a white page."""
DARK = ("#56b4e9", "#ff8f4d", "#35d0a0", "#e694cf", "#e8bf45", "#bdbdbd")
DASHES = ("-", "-", (0, (5, 1.5)), (0, (1, 1)), (0, (3, 1, 1, 1)), (0, (7, 2)))
_INK = "#010203"


def svg(panel: Panel) -> str:
    """An ``<svg>`` element: text and axes in currentColor, lines in the variables --c0 ... --c5."""
    buffer = io.StringIO()
    with mpl.rc_context(_style(_INK, salt=panel.name)):
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        _draw(panel, _INK).savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r'(id=")([^"]+)', rf"\g<1>{panel.name}-\2", text)
    text = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{panel.name}-", text)
    text = text.replace(_INK, "currentColor")
    for index, color in enumerate(LIGHT):
        text = text.replace(color, f"var(--c{index})")
    label = f'<svg role="img" aria-label="{escape(panel.title)}"'
    return text.replace("<svg", label, 1).strip()


def png(panel: Panel) -> bytes:
    """The same on white."""
    buffer = io.BytesIO()
    with mpl.rc_context(_style("#222222", salt="")):
        _draw(panel, "#222222").savefig(buffer, format="png", dpi=160, facecolor="white")
    return buffer.getvalue()


def _style(ink: str, *, salt: str) -> Any:
    inked = ("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color")
    return {
        "font.size": 10.5,
        "font.family": "sans-serif",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.7,
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        **dict.fromkeys(inked, ink),
    }


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
