"""A sweep from its plan to its tables. What ended is on disk; of that, only failures run again."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from fedef.config import Config, read_toml
from fedef.durable import write_atomically
from fedef.errors import ConfigError
from sims.sweeps.one_run import run_into
from sims.sweeps.plan import Cell, Group, Plan, Settings, config_of, make_plan
from sims.sweeps.pool import Pool, Work, open_pool
from sims.sweeps.run_key import code_version, run_key
from sims.sweeps.tables import (
    CURVES,
    RESULTS,
    TIMES,
    Record,
    curves_table,
    read_record,
    results_table,
    timing_table,
    write_table,
)
from sims.sweeps.tuning import Choice, choose

ABOUT = "sweep.json"
FOLDER, CELL = "folder", "cell"
"""Attributes of the results: where the sweep's files are; the columns that tell cells apart."""


@dataclass(frozen=True)
class Run:
    """A cell with a seed and, if something is tuned, values."""

    phase: str
    """tune or report."""
    cell: Cell
    seed: int
    point: int
    """Index of the tuning grid; 0 where nothing is tuned."""
    tuned: Settings
    config: Config
    key: str


class Watch:
    """Told how a sweep goes; this one does nothing."""

    def sweep_began(self, plan: Plan) -> None:
        """A sweep begins."""

    def phase_began(self, phase: str, runs: list[Run], ended: Mapping[str, Record]) -> None:
        """A phase of these runs begins; the records of those that ended before, by key."""

    def run_ended(self, run: Run, record: Record) -> None:
        """A run ended."""


@dataclass
class Sweep:
    """The state of a sweep in its folder."""

    plan: Plan
    out: Path
    watch: Watch = field(default_factory=Watch)
    records: dict[str, Record] = field(default_factory=dict)
    """Of every run that ended, by key; of those that were lost too, which have no folder."""

    def folder(self, key: str) -> Path:
        """Of a run."""
        return self.out / "runs" / key

    def carry_out(self, pool: Pool, runs: list[Run], phase: str) -> None:
        """Run what has not ended yet, and what failed: its cause may have been the machine's."""
        by_key = {run.key: run for run in runs}
        there = {key: read_record(self.folder(key)) for key in by_key if self.folder(key).is_dir()}
        self.records |= there
        ended = {key: record for key, record in there.items() if record["status"] != "failed"}
        self.watch.phase_began(phase, runs, ended)
        missing = [run for key, run in by_key.items() if key not in ended]
        jobs = ((run.config.to_flat(), self.folder(run.key)) for run in missing)
        for folder, lost in pool(jobs):
            if lost is None and not folder.is_dir():
                raise ConfigError(
                    f"out: a run ended, but its folder {str(folder)!r} is not on this machine; for "
                    "workers on other machines (RAY_ADDRESS) choose a folder that all of them share"
                )
            record = read_record(folder) if lost is None else {"status": "killed", "error": lost}
            self.records[folder.name] = record
            self.watch.run_ended(by_key[folder.name], record)

    def choose(self, runs: Iterable[Run]) -> dict[Group, Choice]:
        """Choices by group; nothing tuned: none."""
        tuning = self.plan.tuning
        if tuning is None:
            return {}
        groups: dict[Group, list[list[Record]]] = {}
        for run in runs:
            points = groups.setdefault(self.plan.group(run.cell), [[] for _ in tuning.grid])
            points[run.point].append(self.records[run.key])
        return choose(tuning, groups)

    def write(self, runs: list[Run], choices: Mapping[Group, Choice]) -> pd.DataFrame:
        """Write the tables and sweep.json, and return the results.

        Tables of the same plan that hold more runs stay: what ended in those is still to come here.
        """
        known = [run for run in runs if run.key in self.records]
        folders = [self.folder(key) for key in dict.fromkeys(run.key for run in known)]
        folders = [folder for folder in folders if folder.is_dir()]
        results = results_table((self._row(run, choices) for run in known), self.plan.columns)
        if len(known) >= self._written():
            write_table(self.out / RESULTS, results)
            write_table(self.out / CURVES, curves_table(folders))
            write_table(self.out / TIMES, timing_table(folders))
            self._write_about(known, choices)
        return results

    def _written(self) -> int:
        """Runs of this plan in the tables that are there."""
        try:
            about = json.loads((self.out / ABOUT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return 0
        return int(about["complete"]) if about.get("plan") == self.plan.digest else 0

    def _row(self, run: Run, choices: Mapping[Group, Choice]) -> Record:
        record, tuning = self.records[run.key], self.plan.tuning
        choice = choices.get(self.plan.group(run.cell)) if run.phase == "tune" else None
        return {
            "run": run.key,
            "phase": run.phase,
            "cell": run.cell.number,
            **run.cell.columns,
            **run.tuned,
            "seed": run.seed,
            "status": record["status"],
            "error": record["error"],
            "stopped-by": record.get("stopped-by"),
            "chosen": run.point == choice.point if choice else None,
            "edge": tuning.ends[run.point] if tuning else None,
            **{key: value for key, value in record.items() if key not in run.cell.columns},
            "config": json.dumps(run.config.to_flat(), sort_keys=True),
        }

    def _write_about(self, runs: list[Run], choices: Mapping[Group, Choice]) -> None:
        plan, tuning = self.plan, self.plan.tuning
        about = {
            "name": plan.name,
            "axes": plan.axes,
            "columns": plan.columns,
            "identity": plan.identity,
            "seeds": plan.seeds,
            "tune": tuning
            and {
                "grid": tuning.grid,
                "seeds": tuning.seeds,
                "per": tuning.per,
                "metric": tuning.metric,
                "choices": [
                    {
                        "group": dict(zip(tuning.per, group, strict=True)),
                        "values": choice.values,
                        "edge": choice.edge,
                        "scores": choice.scores,
                    }
                    for group, choice in choices.items()
                ],
            },
            "plan": self.plan.digest,
            "code": code_version(),
            "planned": self.plan.num_runs,
            "complete": len(runs),
            "counts": dict(Counter(str(self.records[run.key]["status"]) for run in runs)),
        }
        write_atomically(self.out / ABOUT, (json.dumps(about, indent=2) + "\n").encode())


def run_sweep(
    source: Mapping[str, Any] | str | Path,
    *,
    out: Path | str | None = None,
    workers: int | None = None,
    watch: Watch | None = None,
    work: Work = run_into,
) -> pd.DataFrame:
    """Carry out a sweep, or what is left of it, and return its results.

    Parameters
    ----------
    source
        A sweep's file, or its content; see `sims.sweeps`.
    out
        The sweep's folder. Runs that ended there are not run again, but those that failed are.
        Default: ``runs/NAME``.
    workers
        Ray tasks at a time, one core each; 0: none, all in this process. Default: all cores.
    watch
        Told what happens.
    work
        What carries out one run.

    Returns
    -------
    pandas.DataFrame
        As in ``results.parquet``; `attrs` hold the folder and the columns that tell cells apart.

    Raises
    ------
    ConfigError
        If the sweep or its folder cannot be used; nothing is run then.
    KeyboardInterrupt
        If it was interrupted; the tables then hold what has ended.
    """
    plan = _plan(source)
    folder = Path(out) if out is not None else Path("runs") / plan.name
    with _claimed(folder):
        sweep = Sweep(plan, folder.resolve(), watch or Watch())
        sweep.watch.sweep_began(plan)
        write_atomically(folder / "sweep.toml", plan.toml.encode())
        done: list[Run] = []
        choices: dict[Group, Choice] = {}
        count = os.cpu_count() or 1 if workers is None else workers
        try:
            with open_pool(count, work) as pool:
                if plan.tuning:
                    done += _tuning_runs(plan)
                    sweep.carry_out(pool, done, "tune")
                    choices = sweep.choose(done)
                reported = _reported_runs(plan, choices)
                done += reported
                sweep.carry_out(pool, reported, "report")
        finally:
            results = sweep.write(done, choices)
        results.attrs.update({FOLDER: str(folder), CELL: list(plan.identity)})
        return results


def _tuning_runs(plan: Plan) -> list[Run]:
    tuning = plan.tuning
    if tuning is None:
        return []
    return [
        _run("tune", cell, seed, point, values)
        for cell in plan.cells
        for point, values in enumerate(tuning.grid)
        for seed in tuning.seeds
    ]


def _reported_runs(plan: Plan, choices: Mapping[Group, Choice]) -> list[Run]:
    runs = []
    for cell in plan.cells:
        choice = choices.get(plan.group(cell))
        point, values = (choice.point, choice.values) if choice else (0, {})
        runs += [_run("report", cell, seed, point, values) for seed in plan.seeds]
    return runs


def _run(phase: str, cell: Cell, seed: int, point: int, tuned: Settings) -> Run:
    config = config_of(cell, seed, tuned)
    shown = {key: config.to_flat()[key] for key in tuned}
    return Run(phase, cell, seed, point, shown, config, run_key(config))


def _plan(source: Mapping[str, Any] | str | Path) -> Plan:
    if isinstance(source, Mapping):
        return make_plan(source)
    return make_plan(read_toml(source), name=Path(source).stem)


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """The folder for this process alone, without what a killed run left half done."""
    try:
        (folder / "runs").mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise ConfigError(
            f"out: cannot write to {str(folder)!r}: {error.strerror}; choose another folder"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"out: another sweep is at work in {str(folder)!r}; wait for it, or choose "
                "another folder"
            ) from None
        for part in (folder / "runs").glob(".*.part"):
            shutil.rmtree(part, ignore_errors=True)
        yield
