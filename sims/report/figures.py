"""From grouped runs to the page's charts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from sims.report.averages import Average, alone, over_bytes, over_rounds
from sims.report.charts import Chart, Line, usable
from sims.report.groups import Cell, Groups, Series
from sims.report.runs import Run, Values
from sims.statistics import t_interval

Averager = Callable[[Sequence[Run], str], Average | None]
Place = Callable[[Cell], float]

_MEGA = 1e6
_NONE = np.empty(0)


_AXES: tuple[tuple[str, str, Averager], ...] = (
    ("round", "round", over_rounds),
    ("total-uplink-bytes", "uplink of all clients, MB (measured)", over_bytes),
)


@dataclass(frozen=True)
class Metric:
    """What runs are compared by."""

    column: str
    """In rounds.jsonl."""
    final: str
    """In summary.json."""
    label: str
    log: bool


METRICS = (
    Metric("loss", "final-loss", "training loss", log=True),
    Metric("test-accuracy", "test-accuracy", "test accuracy", log=False),
    Metric("grad-norm", "final-grad-norm", "gradient norm", log=True),
)


def convergence(groups: Groups, condition: int) -> tuple[Chart, ...]:
    """Each metric against rounds and against measured bytes."""
    cells = groups.of_condition(condition)
    charts = []
    for metric in METRICS:
        for axis, label, average in _AXES:
            in_bytes = axis != "round"
            scale = 1 / _MEGA if in_bytes else 1.0
            lines = usable(
                [
                    _curve(groups.series[cell.series], cell, average, axis, metric.column, scale)
                    for cell in cells
                ]
            )
            if not lines:
                continue
            charts.append(
                Chart(
                    f"c{condition}-{metric.column}-{'bytes' if in_bytes else 'rounds'}",
                    _title(metric.label, groups, condition),
                    label,
                    lines,
                    f"{_seeds(lines)}." + _lost(cells),
                    log_x=in_bytes,
                    log_y=metric.log and _positive(lines),
                    share=metric.column == "test-accuracy",
                )
            )
    return tuple(charts)


def dissimilarity(groups: Groups, condition: int) -> tuple[Chart, ...]:
    """zeta^2 along the runs, where it was measured."""
    cells = groups.of_condition(condition)
    lines = usable(
        [_curve(groups.series[c.series], c, over_rounds, "round", "zeta2", 1.0) for c in cells]
    )
    if not lines:
        return ()
    return (
        Chart(
            f"c{condition}-zeta2-rounds",
            _title("gradient dissimilarity ζ²", groups, condition),
            "round",
            lines,
            f"{_seeds(lines)}." + _lost(cells),
            log_y=_positive(lines),
            small=True,
        ),
    )


def over_heterogeneity(groups: Groups) -> tuple[Chart, ...]:
    """The final metrics over the configured and the measured heterogeneity."""
    if len(groups.conditions) < 2:
        return ()
    axes: list[tuple[str, str, Place]] = []
    if len(groups.condition_keys) == 1:
        key = groups.condition_keys[0]
        if all(isinstance(c.runs[0].config[key], int | float) for c in groups.cells):
            axes.append((key, f"{key} (configured)", partial(_configured, key)))
    axes += [
        ("label-distance", "label distance (measured)", partial(_measured, "label-distance")),
        ("zeta2-start", "ζ² at the start (measured)", partial(_measured, "zeta2-start")),
    ]
    charts = []
    for metric in METRICS:
        for name, label, place in axes:
            lines = usable(
                [_points(groups.cells, series, place, metric) for series in groups.series]
            )
            if not lines or max(len(line.x) for line in lines) < 2:
                continue
            places = np.concatenate([line.x for line in lines])
            charts.append(
                Chart(
                    f"final-{metric.final}-over-{name}",
                    f"Final {metric.label}",
                    label,
                    lines,
                    f"After the last round. {_seeds(lines)}.",
                    log_x=bool(places.min() > 0 and places.max() > 20 * places.min()),
                    log_y=metric.log and _positive(lines),
                    share=metric.column == "test-accuracy",
                    points=True,
                    small=True,
                )
            )
    return tuple(charts)


def sensitivity(groups: Groups, condition: int, tuned: Sequence[str]) -> tuple[Chart, ...]:
    """The final metrics of the tuning runs over each value that was tried."""
    cells = [cell for cell in groups.tuning if cell.condition == condition]
    charts = []
    for key in tuned:
        if not all(isinstance(run.config[key], int | float) for c in cells for run in c.runs):
            continue
        for metric in METRICS:
            lines = usable(
                [_tried(groups.series[cell.series], cell, key, metric) for cell in cells]
            )
            if not lines:
                continue
            charts.append(
                Chart(
                    f"c{condition}-tuning-{key}-{metric.final}",
                    _title(f"final {metric.label}", groups, condition),
                    key,
                    lines,
                    f"Tuning runs, on seeds of their own. {_seeds(lines, 'range')}."
                    + _pinned(lines),
                    log_x=True,
                    log_y=metric.log and _positive(lines),
                    share=metric.column == "test-accuracy",
                    points=True,
                    small=True,
                )
            )
    return tuple(charts)


def _curve(
    series: Series, cell: Cell, average: Averager, axis: str, column: str, scale: float
) -> Line | None:
    found = average(cell.compared, column)
    lost = [alone(run, axis, column) for run in cell.runs if not run.ended_well]
    shown = tuple((scale * x, y) for x, y in lost if len(x))
    if found is None:
        return Line(series, _NONE, _NONE, _NONE, _NONE, _NONE, shown) if shown else None
    n = np.full(len(found.x), float(found.n))
    return Line(series, scale * found.x, found.mean, found.low, found.high, n, shown)


def _points(cells: Iterable[Cell], series: Series, place: Place, metric: Metric) -> Line | None:
    rows = []
    for cell in cells:
        values = cell.values(metric.final)
        if cell.series == series.index and len(values):
            rows.append((place(cell), *t_interval(values), len(values)))
    rows = sorted(row for row in rows if np.isfinite(row[0]))
    if not rows:
        return None
    x, y, low, high, n = np.array(rows, dtype=np.float64).T
    return Line(series, x, y, low, high, n)


def _tried(series: Series, cell: Cell, key: str, metric: Metric) -> Line | None:
    by_value: dict[float, list[Run]] = {}
    for run in cell.runs:
        by_value.setdefault(float(run.config[key]), []).append(run)
    rows, pinned = [], []
    for value, runs in sorted(by_value.items()):
        part = Cell(cell.condition, cell.series, tuple(runs))
        values = part.values(metric.final)
        if len(values):
            rows.append((value, values.mean(), values.min(), values.max(), len(values)))
        if len(part.compared) < len(runs):
            pinned.append(value)
    if not rows:
        return Line(series, _NONE, _NONE, _NONE, _NONE, _NONE, pinned=tuple(pinned))
    x, y, low, high, n = np.array(rows, dtype=np.float64).T
    return Line(series, x, y, low, high, n, pinned=tuple(pinned))


def _configured(key: str, cell: Cell) -> float:
    return float(cell.runs[0].config[key])


def _measured(name: str, cell: Cell) -> float:
    values = cell.values(name)
    return float(values.mean()) if len(values) else float("nan")


def _title(what: str, groups: Groups, condition: int) -> str:
    where = groups.conditions[condition]
    return f"{what[0].upper()}{what[1:]}" + (f" · {where}" if where else "")


def _positive(lines: Sequence[Line]) -> bool:
    values: Values = np.concatenate([line.y for line in lines])
    return bool(len(values) and (values > 0).all())


def _seeds(lines: Sequence[Line], kind: str = "95 % t interval") -> str:
    counts = sorted({int(n) for line in lines for n in line.n})
    if not counts:
        return "No run completed"
    if counts == [1]:
        return "One seed each, so no interval"
    shown = " to ".join(str(n) for n in dict.fromkeys([counts[0], counts[-1]]))
    return f"Mean and {kind} of n = {shown} paired seeds"


def _lost(cells: Iterable[Cell]) -> str:
    count = sum(not run.ended_well for cell in cells for run in cell.runs)
    if count == 0:
        return ""
    if count == 1:
        return " The run that did not complete is drawn thin up to its ×, apart from the mean."
    return f" The {count} runs that did not complete are drawn thin up to their ×, apart."


def _pinned(lines: Sequence[Line]) -> str:
    if not any(line.pinned for line in lines):
        return ""
    return " × at the upper edge: a run that did not complete."
