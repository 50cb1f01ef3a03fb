"""A sweep as it goes: a table of the cells and a progress bar."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from statistics import fmean
from types import TracebackType
from typing import Self

import pandas as pd
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from sims.statistics import summarize
from sims.sweeps.plan import Plan
from sims.sweeps.sweep import CELL, Run, Watch
from sims.sweeps.tables import Record

ROWS = 30
"""Cells shown at most: the last ones that a run ended in."""


class Display(Watch):
    """Shows a sweep in a terminal; elsewhere it prints its end."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            MofNCompleteColumn(),
            BarColumn(bar_width=32),
            TextColumn("{task.fields[counts]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._cells: dict[int, list[tuple[Run, Record]]] = {}
        self._expected: Counter[int] = Counter()
        self._counts: Counter[str] = Counter()
        self._live = Live(console=console, get_renderable=self._picture, refresh_per_second=4)

    def __enter__(self) -> Self:
        """Begin to show."""
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the last picture."""
        self._live.stop()

    def sweep_began(self, plan: Plan) -> None:
        """Know what tells its cells apart."""
        self._identity = plan.identity

    def phase_began(self, phase: str, runs: list[Run], ended: Mapping[str, Record]) -> None:
        """A bar and an empty table for the phase."""
        self._cells, self._counts = {}, Counter()
        self._expected = Counter(run.cell.number for run in runs)
        self._bar = self._progress.add_task(
            {"tune": "tuning", "report": "runs"}[phase], total=len(runs), counts=""
        )
        by_key = {run.key: run for run in runs}
        for key, record in ended.items():
            if key in by_key:
                self.run_ended(by_key[key], record)

    def run_ended(self, run: Run, record: Record) -> None:
        """Count it and show its cell."""
        self._cells[run.cell.number] = [*self._cells.pop(run.cell.number, []), (run, record)]
        self._counts[record["status"]] += 1
        counts = ", ".join(f"{count} {status}" for status, count in sorted(self._counts.items()))
        self._progress.update(self._bar, advance=1, counts=counts)

    def _picture(self) -> Group:
        shown = sorted(list(self._cells.items())[-ROWS:])
        if not shown:
            return Group(self._progress)
        table = Table(*self._identity, "ended", "diverged", "crashed", "loss", "accuracy", box=None)
        for number, runs in shown:
            records = [record for _, record in runs]
            status = Counter(record["status"] for record in records)
            table.add_row(
                *(_text(runs[0][0].cell.columns[name]) for name in self._identity),
                f"{len(runs)} of {self._expected[number]}",
                _bad(status["diverged"]),
                _bad(status["failed"] + status["killed"]),
                _mean(records, "final-loss"),
                _mean(records, "test-accuracy"),
            )
        return Group(table, self._progress)


def _text(value: object) -> Text:
    return Text("-" if pd.isna(value) else str(value))


def _bad(count: int) -> Text:
    return Text(str(count) if count else "", "red")


def _mean(records: list[Record], name: str) -> str:
    """Of the runs that completed."""
    values = [r.get(name) for r in records if r["status"] == "completed"]
    known = [value for value in values if value is not None]
    return f"{fmean(known):.4g}" if known else "-"


def summary_table(results: pd.DataFrame) -> Table:
    """Mean and 95 % t interval of each cell over its completed runs."""
    by = results.attrs[CELL]
    results = results.astype(dict.fromkeys(by, object))
    metric = "test-accuracy" if results["test-accuracy"].notna().any() else "final-loss"
    table = Table(title=f"{metric}: mean, 95 % t interval", title_justify="left", box=None)
    for column in (*by, "n", "mean", "interval", "diverged", "crashed"):
        table.add_column(column, no_wrap=column == "interval")
    for _, row in summarize(results, by, metric).iterrows():
        cell = [_text(row[name]) for name in by]
        found = [
            f"{row['n']} of {row['runs']}",
            f"{row['mean']:.4g}",
            "-" if pd.isna(row["low"]) else f"[{row['low']:.3g}, {row['high']:.3g}]",
            str(row["diverged"] or ""),
            str(row["crashed"] or ""),
        ]
        table.add_row(*cell, *map(Text, found))
    return table
