"""IAN-SGD as published beside ours: how often it diverges, where it ends, how often the cap acts.

``python -m sims.ian_robustness`` prints the table for 20 seeds, in about 40 s on one core; it needs
the Life Expectancy table in FEDEF_DATA or ``--data-dir``. ``--out`` also writes the numbers.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from fedef.threads import single_threaded
from sims.ian_loop import Settings, Trajectory, arena, run

PUBLISHED = Settings(0.16, 2 / 3, 1225, 25, norm="independent", amplification=2.0)
"""arXiv:2410.14054 on DRO, the step that fits its main figure; see `CASES` for the others."""
RULES: dict[str, dict[str, Any]] = {
    "published": {},
    "published, capped": {"cap": 2.0},
    "memory, no cap": {"norm": "previous"},
    "ours: memory, capped": {"norm": "previous", "cap": 2.0},
    "own norm, capped": {"norm": "own", "cap": 2.0},
    "no norm, capped": {"amplification": 0.0, "delta": 0.0, "norm": "own", "cap": 2.0},
}
"""What each rule changes of the published one. The last two are controls: without independence, and
without normalization (h = tau: SGD with a bounded step)."""


@dataclass(frozen=True)
class Case:
    """A problem at one setting."""

    problem: str
    instance_seed: int
    settings: Settings

    @property
    def name(self) -> str:
        """What the table calls it."""
        s = self.settings
        constants = f"gamma={s.step_size:g}, tau={s.tau:g}, delta={s.delta:g}"
        return f"{self.problem} {self.instance_seed}, {constants}"


CASES = (
    Case("dro", 2024, PUBLISHED),
    Case("dro", 2024, replace(PUBLISHED, step_size=0.13, tau=900)),
    Case("dro", 2024, replace(PUBLISHED, step_size=0.14)),
    Case("dro", 2024, replace(PUBLISHED, step_size=0.32)),
    Case("dro", 2024, replace(PUBLISHED, step_size=0.0225, tau=40, delta=0)),
    Case("dro", 1, replace(PUBLISHED, step_size=0.14)),
    Case("phase-retrieval", 2024, replace(PUBLISHED, step_size=0.3, tau=2025, delta=15)),
    Case("phase-retrieval", 2024, replace(PUBLISHED, step_size=0.52, tau=1000, delta=0)),
)
"""The figure's two fits, the repository's step, twice the figure's, a tuned one; the repository's
instance; phase retrieval as in the repository, and tuned."""


@dataclass(frozen=True)
class Row:
    """A rule at one setting, over the seeds."""

    case: Case
    rule: str
    runs: tuple[Trajectory, ...]
    """One per seed."""
    diverged_above: float

    @property
    def alive(self) -> tuple[bool, ...]:
        """Whether each seed's run ends at or below the bound."""
        return tuple(r.final <= self.diverged_above for r in self.runs)

    @property
    def diverged(self) -> int:
        """Runs that end above it."""
        return self.alive.count(False)

    @property
    def finals(self) -> tuple[float, ...]:
        """Where the runs that do not diverge end, from the lowest."""
        runs = zip(self.runs, self.alive, strict=True)
        return tuple(sorted(r.final for r, alive in runs if alive))

    @property
    def capped_share(self) -> float:
        """Steps that the cap shortened, over all steps of all runs."""
        return sum(r.capped_share for r in self.runs) / len(self.runs)

    @property
    def median_of_all(self) -> float:
        """Median of all runs, a diverged one counting as inf."""
        runs = zip(self.runs, self.alive, strict=True)
        return median(r.final if alive else math.inf for r, alive in runs)

    def median_where(self, alive: Sequence[bool]) -> float:
        """Median of the runs on the seeds marked, inf where one diverged; NaN without any."""
        marked = [
            r.final if own else math.inf
            for r, own, use in zip(self.runs, self.alive, alive, strict=True)
            if use
        ]
        return median(marked) if marked else math.nan

    def median_evaluations_to(self, target: float) -> float:
        """Median gradient evaluations to the target over all runs."""
        return median(r.evaluations_to(target) for r in self.runs)


def robustness(
    cases: Sequence[Case] = CASES,
    rules: Sequence[str] = tuple(RULES),
    *,
    seeds: Sequence[int],
    data_dir: str | None = None,
) -> list[Row]:
    """All rules on all cases, to the same number of gradient evaluations.

    Parameters
    ----------
    cases
        Problems and settings.
    rules
        Names in `RULES`.
    seeds
        Of the sampled rows. The rule was chosen on 100 to 399.
    data_dir
        Folder of the Life Expectancy table; None: FEDEF_DATA.

    Raises
    ------
    ConfigError
        If the table is missing.
    """
    rows = []
    with single_threaded():
        for case in cases:
            where = arena(case.problem, case.instance_seed, data_dir)
            settings = [replace(case.settings, **RULES[rule]) for rule in rules]
            for rule, runs in zip(rules, run(settings, where, seeds), strict=True):
                rows.append(Row(case, rule, runs, where.diverged_above))
    return rows


def robustness_table(rows: Sequence[Row]) -> Table:
    """The rows, grouped by case."""
    table = Table(title=f"IAN-SGD as published and ours, {len(rows[0].runs)} seeds")
    for name in ("case", "rule"):
        table.add_column(name)
    columns = ("diverged", "median", "min", "max", "of all", "where published", "worst", "capped %")
    for name in (*columns, "to f <= 10"):
        table.add_column(name, justify="right")
    table.caption = (
        "median, min, max: at the budget, of the runs that do not diverge; of all: a diverged run "
        "counts as inf; where published: on the seeds that the published rule survives; worst: on "
        "the way, any run; to f <= 10: median gradient evaluations"
    )
    published: tuple[bool, ...] = ()
    last = None
    for row in rows:
        if row.case != last:
            table.add_section()
        if row.rule == "published":
            published = row.alive
        finals = row.finals or (math.nan,)
        is_pr = row.case.problem == "phase-retrieval"
        table.add_row(
            row.case.name if row.case != last else "",
            row.rule,
            f"{row.diverged}/{len(row.runs)}",
            *(f"{value:.4f}" for value in (median(finals), finals[0], finals[-1])),
            f"{row.median_of_all:.4f}",
            f"{row.median_where(published):.4f}" if published else "",
            f"{max(r.worst for r in row.runs):.3g}",
            f"{100 * row.capped_share:.2f}",
            f"{row.median_evaluations_to(10.0):.0f}" if is_pr else "",
        )
        last = row.case
    return table


def as_data(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The table as plain values; a number that is not finite is a string, as JSON has none."""
    published: tuple[bool, ...] = ()
    data = []
    for row in rows:
        if row.rule == "published":
            published = row.alive
        numbers = {
            "median-of-all": row.median_of_all,
            "median-where-published": row.median_where(published) if published else math.nan,
            "worst": max(r.worst for r in row.runs),
            "capped-percent": 100 * row.capped_share,
        }
        plain = {k: v if math.isfinite(v) else str(v) for k, v in numbers.items()}
        counts = {"n": len(row.runs), "diverged": row.diverged}
        data.append({"case": row.case.name, "rule": row.rule, **counts, **plain})
    return data


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--out", type=Path, default=None, help="JSON file of the numbers")
    arguments = parser.parse_args()
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    rows = robustness(seeds=seeds, data_dir=arguments.data_dir)
    Console(width=180).print(robustness_table(rows))
    if arguments.out is not None:
        text = json.dumps({"seeds": list(seeds), "rows": as_data(rows)}, indent=1)
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
