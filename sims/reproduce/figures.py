"""A panel as SVG that follows the page's colours, and as PNG."""

from __future__ import annotations

import io
import re

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from sims.reproduce.study import Panel

LIGHT = ("#0072b2", "#d55e00", "#00855f", "#a03f8c", "#a06c00", "#5a5a5a")
"""Okabe and Ito's colours, the light ones darkened for a white page."""
DARK = ("#56b4e9", "#ff8f4d", "#35d0a0", "#e694cf", "#e8bf45", "#bdbdbd")
DASHES = ("-", "-", (0, (5, 1.5)), (0, (1, 1)), (0, (3, 1, 1, 1)), (0, (7, 2)))
_INK = "#010203"
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def svg(panel: Panel) -> str:
    """An ``<svg>`` element: text and axes in currentColor, lines in the variables --c0 ... --c5."""
    buffer = io.StringIO()
    with mpl.rc_context({**_STYLE, "svg.hashsalt": panel.name}):
        figure = _draw(panel, ink=_INK)
        FigureCanvasSVG(figure).print_svg(
            buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r'(id=")([^"]+)', rf"\g<1>{panel.name}-\2", text)
    text = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{panel.name}-", text)
    text = text.replace(_INK, "currentColor")
    for index, color in enumerate(LIGHT):
        text = text.replace(color, f"var(--c{index})")
    label = f'<svg role="img" aria-label="{_attribute(panel.title)}"'
    return text.replace("<svg", label, 1).strip()


def png(panel: Panel) -> bytes:
    """The same on white."""
    buffer = io.BytesIO()
    with mpl.rc_context(_STYLE):
        figure = _draw(panel, ink="#222222")
        figure.set_facecolor("white")
        FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def _draw(panel: Panel, *, ink: str) -> Figure:
    with mpl.rc_context({key: ink for key, value in _STYLE.items() if value == _INK}):
        figure = Figure(figsize=(4.5, 3.7), dpi=160, layout="constrained")
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
    if panel.level is not None:
        axes.axhline(panel.level, color=ink, linestyle=":", linewidth=0.8)
    if panel.mark is not None:
        axes.axvline(panel.mark, color=ink, linestyle=":", linewidth=0.8)
    axes.set(xlabel=panel.x_label, yscale="log")
    axes.set_title(f"{panel.title}\n{panel.y_label}", loc="left", fontsize=9)
    axes.set_ylim(bottom=panel.bottom, top=panel.top)
    axes.grid(alpha=0.2, color=ink, linewidth=0.5)
    labels = [curve.label for curve in panel.curves if curve.label]
    if labels:
        figure.legend(
            loc="outside lower center",
            ncols=2 if len(labels) in (2, 4) or max(map(len, labels)) > 14 else 3,
            frameon=False,
            fontsize=8,
            handlelength=2.4,
        )
    return figure


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
