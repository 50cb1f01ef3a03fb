"""A matplotlib figure as SVG that follows the page's colours, and as PNG on white."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.axis import Tick
from matplotlib.figure import Figure
from matplotlib.text import Text

LIGHT = ("#0072b2", "#d55e00", "#00855f", "#a03f8c", "#a06c00", "#5a5a5a")
"""Okabe and Ito's colours, the light ones darkened for a white page."""
DARK = ("#56b4e9", "#ff8f4d", "#35d0a0", "#e694cf", "#e8bf45", "#bdbdbd")
DASHES = ("-", "-", (0, (5, 1.5)), (0, (1, 1)), (0, (3, 1, 1, 1)), (0, (7, 2)))
_INK, _WHITE_INK = "#010203", "#222222"

Draw = Callable[[str], Figure]
"""From the colour of text and axes to the figure; lines take their colours from LIGHT."""


def svg(draw: Draw, *, name: str, label: str) -> str:
    """An ``<svg>`` element: text and axes in currentColor, lines in the variables --c0 ... --c5.

    Parameters
    ----------
    name
        Before every id of the element, so that a page can hold several; what is no letter, digit,
        dot, underscore or hyphen becomes a hyphen.
    label
        What the figure shows, for those who do not see it.
    """
    name = re.sub(r"[^\w.-]", "-", name)
    buffer = io.StringIO()
    with mpl.rc_context(_style(_INK, salt=name)):
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        _verbatim(draw(_INK)).savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r'id="|url\(#|href="#', lambda found: f"{found[0]}{name}-", text)
    text = re.sub(r' d="[^"]+"', _rounded, text)
    text = text.replace(_INK, "currentColor")
    for index, color in enumerate(LIGHT):
        text = text.replace(color, f"var(--c{index})")
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1).strip()


def png(draw: Draw) -> bytes:
    """The same on white."""
    buffer = io.BytesIO()
    with mpl.rc_context(_style(_WHITE_INK, salt="")):
        _verbatim(draw(_WHITE_INK)).savefig(buffer, format="png", dpi=160, facecolor="white")
    return buffer.getvalue()


def _verbatim(figure: Figure) -> Figure:
    """No name in the figure is read as a formula; the powers of ten of its log axes are."""
    axes = [axis for of in figure.axes for axis in (of.xaxis, of.yaxis)]
    ticks = [tick for axis in axes if axis.get_scale() == "log" for tick in axis.findobj(Tick)]
    powers = {text for tick in ticks for text in tick.findobj(Text)}
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text not in powers:
            text.set_parse_math(False)
    return figure


def _rounded(path: re.Match[str]) -> str:
    """A path to a hundredth of a point: what nobody sees is half of the page."""
    return re.sub(r"(\.\d\d)\d+", r"\1", path[0])


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
