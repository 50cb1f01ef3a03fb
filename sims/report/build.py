"""From folders to the page with its figures."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fedef.config import Config
from fedef.errors import ConfigError, FedefError
from fedef.experiment import Experiment
from sims.page.drawing import png, svg
from sims.partition_picture import Dealt, picture
from sims.report import comparisons, tables
from sims.report.charts import Chart, drawing
from sims.report.figures import convergence, dissimilarity, over_heterogeneity, sensitivity
from sims.report.groups import Groups, group, said
from sims.report.page import Figure, Section, render
from sims.report.runs import Material, read


@dataclass(frozen=True)
class Wishes:
    """What may be chosen about a page."""

    title: str = ""
    """Empty: the names of the sweeps or folders."""
    partitions: bool = True
    """Whether to deal the data again and draw it; needs the data."""
    target: float | None = None
    """Of the main metric (test accuracy, else loss); None: from the best method."""
    reference: str = ""
    """Label of the method that the others are compared with; empty: all pairs, if not too many."""


def build(folders: list[Path], out: Path, wishes: Wishes | None = None) -> Path:
    """Write ``index.html`` and ``figures/*.png`` and ``*.csv`` into `out`; return the page.

    Parameters
    ----------
    folders
        Of runs and sweeps.

    Raises
    ------
    ConfigError
        If a folder holds neither a run nor a sweep, no method is called as the reference, or `out`
        cannot be written.
    """
    wishes = wishes or Wishes()
    material = read(folders)
    groups = group(material)
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
        sections = _sections(material, groups, out / "figures", wishes)
        page = out / "index.html"
        page.write_text(
            render(
                wishes.title or f"Report: {', '.join(material.sources)}",
                _lead(material, groups),
                _facts(material, groups),
                groups,
                sections,
            ),
            encoding="utf-8",
        )
    except OSError as error:
        raise ConfigError(
            f"out: cannot write to {str(out)!r}: {error.strerror}; choose another folder"
        ) from None
    return page


def _sections(material: Material, groups: Groups, files: Path, wishes: Wishes) -> list[Section]:
    conditions = range(len(groups.conditions))
    rounds = [
        _drawn(chart, files, condition=condition)
        for condition in conditions
        for chart in convergence(groups, condition)
    ]
    along = [
        _drawn(chart, files, condition=condition)
        for condition in conditions
        for chart in dissimilarity(groups, condition)
    ]
    finals = [_drawn(chart, files, choice=chart.x_label) for chart in over_heterogeneity(groups)]
    tried = [
        _drawn(chart, files, condition=condition)
        for condition in conditions
        for chart in sensitivity(groups, condition, material.tuned)
    ]
    lost = tables.lost_runs(material, groups)
    varying, common = tables.configurations(material)
    return [
        Section(
            "convergence",
            "Convergence",
            "Each metric against rounds and against the bytes that the clients really sent.",
            tuple(rounds),
        ),
        Section(
            "results",
            "Final results",
            "What each method reached, and what it cost.",
            tables=tuple((tables.results(groups, c), c) for c in conditions),
        ),
        _comparisons(groups, wishes),
        Section(
            "heterogeneity",
            "Heterogeneity",
            "How different the clients were, configured and measured, and what that did to the "
            "final results.",
            (*finals, *along),
            ((tables.heterogeneity(groups), None),),
        ),
        Section(
            "sensitivity",
            "Sensitivity",
            "How the final results of the tuning runs depend on the value tried.",
            tuple(tried),
        ),
        Section(
            "partitions",
            "Partitions",
            "Who holds what, dealt again from the configuration of the first seed.",
            tuple(_partitions(groups, files)) if wishes.partitions else (),
        ),
        Section(
            "lost",
            "Runs that did not end well",
            "Counted and shown, never dropped.",
            tables=() if lost is None else ((lost, None),),
        ),
        Section(
            "configuration",
            "Configuration",
            "What a reader needs to run it again; each run's folder holds its own, complete.",
            tables=tuple((table, None) for table in (varying, common) if table.rows),
        ),
        Section(
            "environment",
            "Environment",
            "Where it ran.",
            tables=((tables.environments(material), None),),
        ),
    ]


def _comparisons(groups: Groups, wishes: Wishes) -> Section:
    """Statistics, and what they cannot say."""
    about = "Intervals, differences on the same seeds, and what it takes to reach a target."
    paired: dict[int, tables.Table] = {}
    if len(groups.series) > 1:
        try:
            paired = comparisons.differences(groups, wishes.reference)
        except ConfigError as error:
            if wishes.reference:
                raise
            about += f" Runs are not paired: {error}."
    found: list[tuple[tables.Table, int | None]] = []
    for condition in range(len(groups.conditions)):
        if not groups.of_condition(condition):
            continue
        try:
            found.append((comparisons.intervals(groups, condition), condition))
            cost = comparisons.costs(groups, condition, wishes.target)
        except ConfigError as error:
            about += f" No intervals ({groups.conditions[condition] or 'all runs'}): {error}."
            continue
        if condition in paired:
            found.append((paired[condition], condition))
        if cost is not None:
            found.append((cost, condition))
    return Section("comparisons", "Comparisons", about, tables=tuple(found))


def _drawn(chart: Chart, files: Path, *, condition: int | None = None, choice: str = "") -> Figure:
    (files / f"{chart.name}.png").write_bytes(png(drawing(chart, legend=True)))
    _write_csv(files / f"{chart.name}.csv", chart.rows())
    shown = svg(drawing(chart, legend=False), name=chart.name, label=chart.alt)
    return Figure(chart.name, shown, chart.caption, condition, choice)


def _partitions(groups: Groups, files: Path) -> Iterator[Figure]:
    for condition in range(len(groups.conditions)):
        run = groups.of_condition(condition)[0].runs[0] if groups.of_condition(condition) else None
        if run is None:
            continue
        name = f"c{condition}-partition"
        try:
            dealt = Dealt.of(Experiment.build(Config.from_flat(run.config)))
        except FedefError as error:
            yield Figure(name, "", f"Not drawn: {error}", condition)
            continue
        draw = picture(dealt)
        (files / f"{name}.png").write_bytes(png(draw))
        _write_csv(files / f"{name}.csv", dealt.rows())
        label = f"Partition of {dealt.name}: {dealt.summary}"
        yield Figure(name, svg(draw, name=name, label=label), f"{dealt.summary}.", condition)


def _write_csv(path: Path, rows: Iterable[list[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def _lead(material: Material, groups: Groups) -> str:
    problems = dict.fromkeys(
        f"{run.config['problem']} ({said(run, 'num-clients')})" for run in material.runs
    )
    seeds = dict.fromkeys(run.seed for run in material.runs)
    text = (
        f"{len(groups.series)} method{'s' * (len(groups.series) > 1)} on {', '.join(problems)}, "
        f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, sorted(seeds)))}"
    )
    if len(groups.conditions) > 1:
        text += f", under {len(groups.conditions)} conditions"
    if material.tuned:
        text += f"; {', '.join(material.tuned)} tuned on seeds of their own, on one grid for all"
    return " ".join(
        [f"{text}.", *material.notes, "Methods and conditions are switched on and off below."]
    )


def _facts(material: Material, groups: Groups) -> list[tuple[str, str, bool]]:
    runs = material.runs
    diverged = sum(run.status == "diverged" for run in runs)
    failed = sum(run.status in ("failed", "killed") for run in runs)
    seeds = sorted({len(cell.runs) for cell in groups.cells})
    uplink = sum(run.numbers.get("uplink-bytes", 0) for run in runs)
    size = f"{uplink / 1e9:.3g} GB" if uplink >= 1e9 else f"{uplink / 1e6:.3g} MB"
    return [
        (str(len(runs)), "runs reported", False),
        (str(len(groups.cells)), "methods × conditions", False),
        (" to ".join(dict.fromkeys([str(seeds[0]), str(seeds[-1])])), "seeds each", False),
        (str(diverged), "diverged", diverged > 0),
        (str(failed), "failed", failed > 0),
        (str(len(material.tuning)), "tuning runs", False),
        (size, "uplink in all", False),
        *([(str(material.missing), "runs missing", True)] if material.missing else []),
    ]
