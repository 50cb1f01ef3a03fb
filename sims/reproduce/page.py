"""The studies as one HTML page that loads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from sims.page.shell import document
from sims.reproduce.figures import svg
from sims.reproduce.study import IAN, UNIT, Comparison, Panel, Study
from sims.reproduce.verdict import Check

_STYLE = """
#verdicts h3{font-size:1.1rem;margin-top:1.8rem}
h4{font-size:1rem;margin:1.1rem 0 .2rem}h4 .soft{font-weight:400;margin-left:.4rem}
ul.findings{list-style:none;margin:.3rem 0 0;padding:0;max-width:90ch}
ul.findings li{padding:.35rem 0 .35rem 9.6rem;position:relative}
ul.findings .verdict{position:absolute;left:0;width:9.4rem}
td.why{color:var(--soft);max-width:34ch}
@media (max-width:640px){
ul.findings li{padding-left:0}ul.findings .verdict{position:static;display:block}
thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
table,caption,tbody,tr{display:block;width:auto}
tr{border:1px solid var(--line);border-radius:8px;background:var(--card);margin:.6rem 0;
padding:.45rem .7rem}
td{border:0;padding:.1rem 0;overflow-wrap:anywhere;display:grid;
grid-template-columns:6.8rem minmax(0,1fr);gap:.4rem}
td.why{max-width:none}
td::before{content:attr(data-label);color:var(--soft)}
td:first-child{display:block;font-weight:600}td:first-child::before{content:none}
td:has(div:empty){display:none}
}
"""
_HEADS = ("what", "source", "printed", "ours", "agrees", "why not")


def render(
    studies: Sequence[Study],
    *,
    quick: bool,
    not_run: Mapping[str, str],
    seconds: Mapping[str, float],
    cpu_seconds: Mapping[str, float],
    environment: Mapping[str, str],
) -> str:
    """The page.

    Parameters
    ----------
    not_run
        Why a study was not run, by its name.
    seconds
        What each study took, by the clock.
    cpu_seconds
        The same, of processor.
    environment
        Versions and machine.
    """
    body = "\n".join(
        [
            _head(studies, quick),
            _verdicts(studies, not_run),
            *(_section(study, seconds.get(study.name)) for study in studies),
            _setting(environment, seconds, cpu_seconds, quick),
        ]
    )
    return document("fedef: reproduction", body, style=_STYLE)


def balance(studies: Sequence[Study]) -> str:
    """Count the statements that hold, that do not, and that were not judged."""
    verdicts = [finding.holds for study in studies for finding in study.findings]
    text = (
        f"Of {len(verdicts)} statements {verdicts.count(True)} hold and "
        f"{verdicts.count(False)} do not"
    )
    open_ = verdicts.count(None)
    return text + (f"; {open_} could not be judged." if open_ else ".")


def tally(checks: Sequence[Check]) -> str:
    """``12 of 14 printed numbers agree``; those that are only shown are not counted."""
    judged = [check for check in checks if check.agrees is not None]
    if not judged:
        return "nothing printed to compare with"
    agreeing = sum(check.agrees is True for check in judged)
    return f"{agreeing} of {len(judged)} printed numbers agree"


def _head(studies: Sequence[Study], quick: bool) -> str:
    links = "".join(f'<a href="#{study.name}">{escape(study.title)}</a>' for study in studies)
    mode = (
        "Quick run (--quick): fewer seeds and shorter grids than the full one."
        if quick
        else "Full run."
    )
    return (
        "<header><h1>What the papers print, run again</h1>"
        "<p>Error feedback with normalized steps (‖EF21‖, arXiv:2410.16871) and independent "
        "normalization (IAN-SGD, arXiv:2410.14054): every method here is run by fedef from the "
        "published settings, and each number that a paper prints, or that this project's "
        "specification measured before this code existed, stands beside ours. A fair protocol "
        "follows: all methods tuned alike, on other seeds.</p>"
        f'<p class="soft">{mode} “Agrees” follows the rule in the caption of its table. Diverged '
        "runs are counted and shown, never dropped.</p>"
        f'<nav><a href="#verdicts">What holds</a>{links}</nav></header>'
    )


def _verdicts(studies: Sequence[Study], not_run: Mapping[str, str]) -> str:
    parts = ['<section id="verdicts"><h2>What holds and what does not</h2>']
    for paper in sorted({study.paper for study in studies}, key=_order):
        mine = [study for study in studies if study.paper == paper]
        parts.append(f"<h3>{escape(paper or 'Estimates of this project')}</h3>")
        parts.append(f"<p>{escape(balance(mine))}</p>")
        for study in mine:
            items = "".join(
                f"<li>{_mark(f.holds, 'holds', 'does not hold')} {escape(f.text)}</li>"
                for f in study.findings
            )
            parts.append(
                f'<h4><a href="#{study.name}">{escape(study.title)}</a> '
                f'<span class="soft">{escape(tally(study.checks))}</span></h4>'
                f'<ul class="findings">{items}</ul>'
            )
    for name, reason in not_run.items():
        parts.append(f"<h3>{escape(name)}</h3><p>Not run: {escape(reason)}</p>")
    return "".join(parts) + "</section>"


def _order(paper: str) -> int:
    return (UNIT, IAN, "").index(paper)


def _section(study: Study, seconds: float | None) -> str:
    figures = "".join(_figure(panel) for panel in study.panels)
    tables = "".join(_table(comparison) for comparison in study.comparisons)
    notes = "".join(f"<li>{escape(note)}</li>" for note in study.notes)
    settings = "".join(f"<li>{escape(line)}</li>" for line in study.settings)
    took = "" if seconds is None else f" This study took {_duration(seconds)}."
    return (
        f'<section id="{study.name}"><h2>{escape(study.title)}</h2><p>{escape(study.about)}</p>'
        f'<div class="figures">{figures}</div>{tables}'
        + (f"<h3>Known reasons and limits</h3><ul>{notes}</ul>" if notes else "")
        + f"<details open><summary>Settings.{took}</summary><ul>{settings}</ul></details></section>"
    )


def _figure(panel: Panel) -> str:
    return f"<figure>{svg(panel)}<figcaption>{escape(panel.caption)}</figcaption></figure>"


def _table(comparison: Comparison) -> str:
    if any(check.part for check in comparison.checks):
        return _matrix(comparison)
    heads = "".join(f"<th>{head}</th>" for head in _HEADS)
    rows = "".join(_row(check) for check in comparison.checks)
    return (
        f"<table><caption>{escape(comparison.caption)}</caption>"
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _matrix(comparison: Comparison) -> str:
    """One row for each `what`, one column for each `part`: ours over what is printed."""
    parts = list(dict.fromkeys(check.part for check in comparison.checks))
    cells = {(check.what, check.part): check for check in comparison.checks}
    rows = ""
    for what in dict.fromkeys(check.what for check in comparison.checks):
        rows += f'<tr><td data-label=""><div>{escape(what)}</div></td>'
        for part in parts:
            content = _cell(cells[what, part]) if (what, part) in cells else ""
            rows += f'<td data-label="{escape(part)}"><div>{content}</div></td>'
        rows += "</tr>"
    heads = "".join(f"<th>{escape(part)}</th>" for part in ["", *parts])
    reasons = "".join(
        f"<li>{escape(check.what)}, {escape(check.part)}: {escape(check.why)}</li>"
        for check in comparison.checks
        if check.agrees is False
    )
    return (
        f"<table><caption>{escape(comparison.caption)}</caption>"
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
        + (f"<p>Where it does not agree:</p><ul>{reasons}</ul>" if reasons else "")
    )


def _cell(check: Check) -> str:
    symbol, kind = {True: ("✓", "yes"), False: ("✗", "no"), None: ("", "none")}[check.agrees]
    word = {True: "agrees", False: "does not agree", None: "not judged"}[check.agrees]
    printed = f'<br><span class="soft">printed {escape(check.printed)}</span>'
    return f'<span class="verdict {kind}" title="{word}">{symbol}</span> {escape(check.ours)}' + (
        printed if check.printed else ""
    )


def _row(check: Check) -> str:
    cells = [
        ("", escape(check.what)),
        ("", escape(check.source)),
        ("", escape(check.printed)),
        ("", escape(check.ours)),
        ("", _mark(check.agrees, "yes", "no")),
        ("why", escape(check.why)),
    ]
    return (
        "<tr>"
        + "".join(
            f'<td{f" class={kind!r}" if kind else ""} data-label="{head}"><div>{cell}</div></td>'
            for head, (kind, cell) in zip(_HEADS, cells, strict=True)
        )
        + "</tr>"
    )


def _mark(agrees: bool | None, yes: str, no: str) -> str:
    if agrees is None:
        return '<span class="verdict none">not judged</span>'
    if agrees:
        return f'<span class="verdict yes">✓ {yes}</span>'
    return f'<span class="verdict no">✗ {no}</span>'


def _setting(
    environment: Mapping[str, str],
    seconds: Mapping[str, float],
    cpu_seconds: Mapping[str, float],
    quick: bool,
) -> str:
    times = ", ".join(
        f"{name} {_duration(taken)} ({_duration(cpu_seconds.get(name, taken))})"
        for name, taken in seconds.items()
    )
    whole = f"{_duration(sum(cpu_seconds.values()))} of processor in all, one thread each"
    rows = {
        **environment,
        "mode": "quick" if quick else "full",
        "time": f"by the clock (of processor): {times}; {whole}",
    }
    items = "".join(
        f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in rows.items()
    )
    return (
        f'<section id="environment"><h2>Environment</h2><dl>{items}</dl>'
        '<p class="soft">The same numbers are in results.json, the figures as PNG in figures/. '
        "Rebuild: fedef reproduce all.</p></section>"
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
