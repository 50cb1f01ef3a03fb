"""The page's tables as plain cells: no HTML here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedef.config import Config
from sims.report.groups import Cell, Groups
from sims.report.runs import Material, Run
from sims.statistics import t_interval


@dataclass(frozen=True)
class Table:
    """A heading, rows, and what they are."""

    caption: str
    heading: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    series: tuple[int | None, ...] = ()
    """For each row the series that its first cell names; empty: none."""


def results(groups: Groups, condition: int) -> Table:
    """Final metrics of each series."""
    cells = groups.of_condition(condition)
    rows = [
        (
            groups.series[cell.series].label,
            f"{len(cell.compared)} of {len(cell.runs)}",
            _mean(cell, "test-accuracy", 1.0, ".3f"),
            _mean(cell, "final-loss", 1.0, ".3g"),
            _mean(cell, "final-grad-norm", 1.0, ".3g"),
            _mean(cell, "uplink-bytes", 1e-6, ".3g", interval=False),
            _mean(cell, "rounds", 1.0, "g", interval=False),
            _steps(cell),
        )
        for cell in cells
    ]
    return Table(
        "After the last round: mean ± half of the 95 % t interval over the seeds that "
        "completed (first column); the mean alone for one seed or equal "
        "values. Uplink: mean over seeds, of all clients together, measured.",
        (
            *("method", "n of runs", "test accuracy", "training loss", "gradient norm"),
            *("uplink, MB", "rounds", "step size"),
        ),
        tuple(rows),
        tuple(cell.series for cell in cells),
    )


def lost_runs(material: Material, groups: Groups) -> Table | None:
    """Every run that did not end with numbers; None where all did."""
    rows, series = [], []
    for what, cells in (("report", groups.cells), ("tuning", groups.tuning)):
        for cell in cells:
            for run in cell.runs:
                if run.status == "completed":
                    continue
                rows.append(
                    (
                        groups.series[cell.series].label,
                        groups.conditions[cell.condition] or "-",
                        f"{run.seed}",
                        f"{run.config['step-size']:g}",
                        what,
                        run.status,
                        f"{run.numbers.get('rounds', 0):g}",
                        run.error or "-",
                        run.name,
                    )
                )
                series.append(cell.series)
    if not rows:
        return None
    return Table(
        "Runs that diverged, failed or did not end. They count in every “n of runs”; their numbers "
        "are in no mean, what they did is drawn thin.",
        (
            *("method", "condition", "seed", "step size", "for", "status", "rounds"),
            *("error", "folder"),
        ),
        tuple(rows),
        tuple(series),
    )


def heterogeneity(groups: Groups) -> Table:
    """What was measured of the clients under each condition."""
    rows = []
    for condition, label in enumerate(groups.conditions):
        runs = [run for cell in groups.of_condition(condition) for run in cell.runs]
        rows.append(
            (
                label or "all runs",
                _range(runs, "clients", "g"),
                _range(runs, "client-examples-smallest", "g"),
                _range(runs, "client-examples-median", "g"),
                _range(runs, "client-examples-largest", "g"),
                _range(runs, "label-distance", ".3f"),
                _range(runs, "zeta2-start", ".3g"),
                _range(runs, "zeta2-end", ".3g"),
            )
        )
    return Table(
        "Measured heterogeneity, least to largest over runs. Label distance: Σ wᵢ TV(pᵢ, p), total "
        "variation between a client's classes and those of all examples, weighted as the objective "
        "is. ζ² = Σ wᵢ ‖∇fᵢ − ∇f‖², where heterogeneity-every asked for it and the engine sees the "
        "clients' gradients (Flower's server does not).",
        (
            *("condition", "clients", "smallest", "median", "largest", "label distance"),
            *("ζ² at the start", "ζ² at the end"),
        ),
        tuple(rows),
    )


def configurations(material: Material) -> tuple[Table, Table]:
    """Keys that differ between runs, and those that all share but are not the defaults."""
    runs = material.runs
    defaults = Config.from_flat({}).to_flat()
    values = {
        key: list(dict.fromkeys(_shown(run.config.get(key, "")) for run in runs))
        for key in runs[0].config
    }
    varying = tuple((key, ", ".join(found)) for key, found in values.items() if len(found) > 1)
    common = tuple(
        (key, found[0], _shown(defaults.get(key, "")))
        for key, found in values.items()
        if len(found) == 1 and found[0] != _shown(defaults.get(key, ""))
    )
    return (
        Table(
            "Keys that differ between the runs, with all their values.", ("key", "values"), varying
        ),
        Table(
            "Keys that all runs share and that are not the defaults.",
            ("key", "value", "default"),
            common,
        ),
    )


def environments(material: Material) -> Table:
    """Versions and machines."""
    rows = []
    for number, environment in enumerate(material.environments, start=1):
        for key, value in environment.items():
            if isinstance(value, dict):
                value = ", ".join(f"{name} {version or 'none'}" for name, version in value.items())
            what = f"{key} ({number})" if len(material.environments) > 1 else str(key)
            rows.append((what, str(value)))
    return Table("As the runs' folders say it.", ("what", "value"), tuple(rows))


def _mean(cell: Cell, name: str, scale: float, form: str, *, interval: bool = True) -> str:
    values = scale * cell.values(name)
    if len(values) == 0:
        return "-"
    mean, low, _ = t_interval(values)
    if not interval or not np.isfinite(low):
        return format(float(mean), form)
    return f"{float(mean):{form}} ± {float(mean - low):.2g}"


def _steps(cell: Cell) -> str:
    steps = ", ".join(dict.fromkeys(_shown(run.config["step-size"]) for run in cell.runs))
    return steps + " (an end of its grid)" * any(run.edge for run in cell.runs)


def _range(runs: Sequence[Run], name: str, form: str) -> str:
    values = [run.numbers[name] for run in runs if np.isfinite(run.numbers.get(name, np.nan))]
    if not values:
        return "-"
    ends = dict.fromkeys(format(value, form) for value in (min(values), max(values)))
    return " to ".join(ends)


def _shown(value: object) -> str:
    if value == "":
        return "not set"
    return f"{value:g}" if isinstance(value, float) else str(value)
