"""The report as HTML: every word from data is escaped, nothing is loaded, no script runs.

Toggles are check boxes and radio buttons that style sheets look at (``:has``), so they work by
mouse, touch and keyboard wherever a browser shows the file, under any content security policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from sims.page.shell import document
from sims.report.charts import swatch
from sims.report.groups import Groups
from sims.report.tables import Table

_STYLE = """
header.top{display:flex;flex-wrap:wrap;gap:.4rem 1.5rem;justify-content:space-between;
align-items:flex-start}
header.top>div{flex:1 1 24rem;min-width:0}
fieldset{border:0;margin:0;padding:0;min-width:0}
legend{float:left;padding:.28rem .8rem .28rem 0;color:var(--soft);font-size:.85rem;min-width:5.6rem}
.chips{display:flex;flex-wrap:wrap;gap:.35rem;min-width:0}
.chip{display:inline-flex;align-items:center;gap:.4rem;padding:.22rem .6rem;cursor:pointer;
border:1px solid var(--line);border-radius:999px;background:var(--card);font-size:.85rem;
white-space:nowrap}
.chip:has(:checked){border-color:var(--ink)}
.chip:not(:has(:checked)){color:var(--soft)}
.chip:not(:has(:checked)) .swatch{opacity:.25}
.chip:focus-within{outline:2px solid var(--accent);outline-offset:2px}
.chip input{margin:0;accent-color:var(--accent)}
.swatch{width:34px;height:12px;flex:none;fill:none;vertical-align:middle}
.controls{position:sticky;top:0;z-index:2;background:var(--page);padding:.55rem 0;
border-bottom:1px solid var(--line);display:grid;gap:.45rem;margin-top:1rem}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr));gap:10px;
margin:1.1rem 0 .4rem;padding:0;list-style:none}
.facts li{border:1px solid var(--line);border-radius:8px;background:var(--card);
padding:.5rem .8rem;color:var(--soft);font-size:.83rem;line-height:1.35}
.facts b{display:block;color:var(--ink);font-size:1.3rem;font-weight:600;line-height:1.3}
.facts .bad b{color:var(--no)}
.figures{grid-template-columns:repeat(auto-fill,minmax(min(440px,100%),1fr))}
.figures:has(figure:nth-child(3n)):is(#heterogeneity *,#sensitivity *){
grid-template-columns:repeat(auto-fill,minmax(min(330px,100%),1fr))}
section{scroll-margin-top:7rem}
.scroll{overflow-x:auto;max-width:100%}
.scroll:focus-visible{outline:2px solid var(--accent)}
.scroll td,.scroll th{white-space:nowrap}
.scroll td.text{white-space:normal;min-width:9rem;max-width:34rem;overflow-wrap:anywhere}
.scroll caption{white-space:normal;position:sticky;left:0;max-width:min(90ch,calc(100vw - 48px))}
td.number,th.number{text-align:right}
th[scope=row]{border-bottom:1px solid var(--line);font-weight:400}
figcaption a{white-space:nowrap}
.where{color:var(--soft)}
footer{margin-top:3rem;border-top:1px solid var(--line);padding-top:1rem}
@media (max-width:640px){
.controls legend{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
.facts{grid-template-columns:repeat(3,1fr);gap:7px}.facts li{padding:.35rem .55rem}
.facts b{font-size:1.1rem}
.controls .chips{flex-wrap:nowrap;overflow-x:auto;padding:3px}
.figures:has(figure:nth-child(3n)):is(#heterogeneity *,#sensitivity *){
grid-template-columns:repeat(auto-fill,minmax(min(330px,100%),1fr))}
section{scroll-margin-top:8rem}
.scroll caption{max-width:calc(100vw - 28px)}
.scroll th[scope=row]{white-space:normal;min-width:8.6rem}
}
@media print{.controls{position:static}}
"""


@dataclass(frozen=True)
class Figure:
    """A drawn figure."""

    name: str
    """Of its files in ``figures/``."""
    svg: str
    caption: str
    condition: int | None = None
    """The condition with which it is shown; None: always."""
    choice: str = ""
    """The x axis with which it is shown, among those of `over`; empty: always."""


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    name: str
    title: str
    about: str
    figures: tuple[Figure, ...] = ()
    tables: tuple[tuple[Table, int | None], ...] = ()
    """Each with the condition with which it is shown."""


def render(
    title: str,
    lead: str,
    facts: Sequence[tuple[str, str, bool]],
    groups: Groups,
    sections: Sequence[Section],
) -> str:
    """Return the page.

    Parameters
    ----------
    lead
        One paragraph: what was run.
    facts
        (number, what it counts, whether it is bad news).
    """
    shown = [section for section in sections if section.figures or section.tables]
    links = "".join(f'<a href="#{s.name}">{escape(s.title)}</a>' for s in shown)
    numbers = "".join(
        f"<li{' class=bad' * bad}><b>{escape(value)}</b>{escape(what)}</li>"
        for value, what, bad in facts
    )
    body = "\n".join(
        [
            '<header class="top"><div>'
            f"<h1>{escape(title)}</h1><p>{escape(lead)}</p></div>{_themes()}</header>",
            f'<ul class="facts">{numbers}</ul><nav aria-label="Sections">{links}</nav>',
            _controls(groups),
            *(_section(section, groups) for section in shown),
            '<footer class="soft">Written by fedef report. Every figure is beside this page as PNG '
            "and CSV, in figures/.</footer>",
        ]
    )
    return document(title, body, style=_STYLE + _rules(groups, shown))


def _themes() -> str:
    radios = "".join(
        f'<label class="chip"><input type="radio" name="theme" id="theme-{name}"'
        f"{' checked' * (name == 'system')}>{name}</label>"
        for name in ("system", "light", "dark")
    )
    return f'<fieldset><legend>Colours</legend><div class="chips">{radios}</div></fieldset>'


def _controls(groups: Groups) -> str:
    boxes = "".join(
        f'<label class="chip"><input type="checkbox" id="series-{series.index}" checked>'
        f"{swatch(series)}{escape(series.label)}</label>"
        for series in groups.series
    )
    text = (
        '<div class="controls" role="group" aria-label="What the figures show">'
        f'<fieldset><legend>Methods</legend><div class="chips">{boxes}</div></fieldset>'
    )
    if len(groups.conditions) > 1:
        radios = "".join(
            f'<label class="chip"><input type="radio" name="condition" id="condition-{index}"'
            f"{' checked' * (index == 0)}>{escape(label)}</label>"
            for index, label in enumerate(groups.conditions)
        )
        text += f'<fieldset><legend>Condition</legend><div class="chips">{radios}</div></fieldset>'
    return (
        f"{text}<fieldset><legend>Show</legend>"
        '<div class="chips"><label class="chip"><input type="checkbox" id="intervals" checked>'
        "intervals</label></div></fieldset></div>"
    )


def _rules(groups: Groups, sections: Sequence[Section]) -> str:
    """What the check boxes and radio buttons hide."""
    rules = [':root:has(#intervals:not(:checked)) g:is([id*="-band"],[id*="-bar"]){display:none}']
    rules += [
        f':root:has(#series-{s.index}:not(:checked)) g[id*="-s{s.index}-"],'
        f":root:has(#series-{s.index}:not(:checked)) tr.series-{s.index}{{display:none}}"
        for s in groups.series
    ]
    if len(groups.conditions) > 1:
        rules += [
            f":root:not(:has(#condition-{index}:checked)) .condition-{index}{{display:none}}"
            for index in range(len(groups.conditions))
        ]
    rules += [
        f":root:not(:has(#{_choice_id(section, choice)}:checked)) "
        f".{_choice_id(section, choice)}{{display:none}}"
        for section in sections
        for choice in _choices(section)
    ]
    return "\n".join(rules)


def _choices(section: Section) -> list[str]:
    return list(dict.fromkeys(figure.choice for figure in section.figures if figure.choice))


def _choice_id(section: Section, choice: str) -> str:
    return f"{section.name}-choice-{_choices(section).index(choice)}"


def _section(section: Section, groups: Groups) -> str:
    radios = "".join(
        f'<label class="chip"><input type="radio" name="{section.name}-choice" '
        f'id="{_choice_id(section, choice)}"{" checked" * (index == 0)}>{escape(choice)}</label>'
        for index, choice in enumerate(_choices(section))
    )
    if radios:
        radios = f'<fieldset><legend>Against</legend><div class="chips">{radios}</div></fieldset>'
    figures = "".join(_figure(section, figure) for figure in section.figures)
    tables = "".join(_table(table, condition, groups) for table, condition in section.tables)
    return (
        f'<section id="{section.name}"><h2>{escape(section.title)}</h2>'
        f"<p>{escape(section.about)}</p>{radios}"
        + (f'<div class="figures">{figures}</div>' if figures else "")
        + f"{tables}</section>"
    )


def _figure(section: Section, figure: Figure) -> str:
    classes = [] if figure.condition is None else [f"condition-{figure.condition}"]
    if figure.choice:
        classes.append(_choice_id(section, figure.choice))
    name = escape(figure.name)
    return (
        f'<figure class="{" ".join(classes)}">{figure.svg}<figcaption>{escape(figure.caption)} '
        f'<a href="figures/{name}.png">PNG</a> <a href="figures/{name}.csv">CSV</a></figcaption>'
        "</figure>"
    )


def _table(table: Table, condition: int | None, groups: Groups) -> str:
    numeric = [all(_is_number(row[i]) for row in table.rows) for i in range(len(table.heading))]
    heads = "".join(
        f'<th scope="col"{" class=number" * number}>{escape(head)}</th>'
        for head, number in zip(table.heading, numeric, strict=True)
    )
    rows = ""
    for index, row in enumerate(table.rows):
        series = table.series[index] if table.series else None
        mark = "" if series is None else swatch(groups.series[series]) + " "
        cells = f'<th scope="row">{mark}{escape(row[0])}</th>' + "".join(
            f"<td{_kind(cell, number)}>{escape(cell)}</td>"
            for cell, number in zip(row[1:], numeric[1:], strict=True)
        )
        rows += f"<tr{'' if series is None else f' class=series-{series}'}>{cells}</tr>"
    where = "" if condition is None else f" condition-{condition}"
    label = escape(table.caption[:80])
    return (
        f'<div class="scroll{where}" tabindex="0" role="region" aria-label="{label}">'
        f"<table><caption>{escape(table.caption)}</caption>"
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _is_number(text: str) -> bool:
    return text[:1].isdigit() or text[:1] in "-−<>" or text == ""


def _kind(cell: str, number: bool) -> str:
    if number:
        return " class=number"
    return " class=text" if len(cell) > 40 else ""
