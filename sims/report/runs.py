"""What a report is about: runs, read from their folders and from sweeps."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedef.config import Config
from fedef.errors import ConfigError
from fedef.run_folder import RunFolder
from sims.sweeps.one_run import FAILURE

Values = NDArray[np.float64]
NO_BITS = frozenset({"data-dir", "eval-every", "heterogeneity-every"})
"""Keys that do not change what a run does, only where it reads and what it measures."""
_SWEEP, _RESULTS, _CURVES = "sweep.json", "results.parquet", "curves.parquet"
_CURVE_COLUMNS = ("round", "loss", "train-loss", "grad-norm", "test-accuracy", "zeta2")


@dataclass(frozen=True)
class Run:
    """One run."""

    name: str
    """Its folder's name."""
    config: Mapping[str, Any]
    """All keys, flat."""
    status: str
    """completed, diverged, interrupted, unfinished, failed or killed."""
    numbers: Mapping[str, float]
    """The numbers of its summary."""
    curves: Mapping[str, Values]
    """Columns of its rounds, NaN where not measured; total-uplink-bytes, total-downlink-bytes."""
    error: str = ""
    axes: Mapping[str, str] = field(default_factory=dict)
    """Names of a sweep's combinations by their axis."""
    tuning: bool = False
    """Whether it only helped to choose a step size."""
    edge: bool = False
    """Whether the step size in use is at an end of the grid that was tried."""

    @property
    def seed(self) -> int:
        """Of the run."""
        return int(self.config["seed"])

    @property
    def ended_well(self) -> bool:
        """Whether it did all that was asked, so that its numbers can be compared."""
        return self.status == "completed"


@dataclass(frozen=True)
class Material:
    """All that a page is made of."""

    runs: tuple[Run, ...]
    """Those to report."""
    tuning: tuple[Run, ...]
    tuned: tuple[str, ...]
    """Keys that a sweep chose."""
    environments: tuple[Mapping[str, Any], ...]
    """Different ones, in the order in which they are met."""
    sources: tuple[str, ...]
    """Names of the sweeps, else of the folders."""
    missing: int = 0
    """Runs that sweeps planned and that have not ended."""
    notes: tuple[str, ...] = ()
    """Sentences on what a reader must know about these runs."""


def read(folders: Sequence[Path]) -> Material:
    """Read folders of runs and of sweeps, and folders that hold such folders.

    Raises
    ------
    ConfigError
        If one of them holds neither, or a file in it is damaged.

    Notes
    -----
    Runs that are equal but for `NO_BITS` and the engine count once: the first that completed.
    """
    runs: list[Run] = []
    tuned: list[str] = []
    names: list[str] = []
    places: list[Path] = []
    notes: list[str] = []
    missing = 0
    for folder in folders:
        for place in _places(folder):
            if (place / _SWEEP).is_file():
                of_sweep, keys, name, planned = _read_sweep(place)
                names.append(name)
                if len(of_sweep) < planned:
                    missing += planned - len(of_sweep)
                    notes.append(
                        f"The sweep {name} is not finished: {len(of_sweep)} of {planned} runs."
                    )
                runs += of_sweep
                tuned += keys
                places += [place / "runs" / run.name for run in of_sweep]
            else:
                runs.append(_read_run(place))
                places.append(place)
    once = _once(runs)
    if len(once) < len(runs):
        notes.append(f"{len(runs) - len(once)} of the runs given equal others and are left out.")
    reported = tuple(run for run in once if not run.tuning)
    if not reported:
        raise ConfigError(
            f"report: {', '.join(map(str, folders))} hold only tuning runs; finish the sweep first"
        )
    return Material(
        reported,
        tuple(run for run in once if run.tuning),
        tuple(dict.fromkeys(tuned)),
        _environments(places),
        tuple(dict.fromkeys(names)) or tuple(folder.resolve().name for folder in folders),
        missing,
        tuple(notes),
    )


def _once(runs: Iterable[Run]) -> list[Run]:
    """Equal runs once, the first that completed, else the first."""
    found: dict[str, Run] = {}
    for run in runs:
        config = {key: value for key, value in run.config.items() if key not in NO_BITS}
        what = json.dumps([config, dict(run.axes), run.tuning], sort_keys=True)
        if what not in found or (run.ended_well and not found[what].ended_well):
            found[what] = run
    return list(found.values())


def _places(folder: Path) -> list[Path]:
    """The folder itself, or those directly in it."""
    if _is_one(folder):
        return [folder]
    inside = sorted(item for item in folder.glob("*") if _is_one(item)) if folder.is_dir() else []
    if not inside:
        raise ConfigError(
            f"report: {str(folder)!r} holds no run and no sweep (no config.toml, no sweep.json); "
            "give a folder that 'fedef run' or 'fedef sweep' wrote"
        )
    return inside


def _is_one(folder: Path) -> bool:
    return (folder / "config.toml").is_file() or (folder / _SWEEP).is_file()


def _read_run(path: Path) -> Run:
    folder, config = RunFolder.open(path)
    lines = pd.DataFrame.from_records(list(folder.rounds()))
    summary: dict[str, Any] = {"status": "unfinished"}
    if folder.summary_path.is_file():
        summary = _json(folder.summary_path)
    elif (path / FAILURE).is_file():
        summary = _json(path / FAILURE)
    elif len(lines):
        # Killed: what its last line says of the model is what there is.
        summary |= {
            "rounds": lines["round"].iloc[-1],
            "final-loss": lines["loss"].iloc[-1],
            "final-grad-norm": lines["grad-norm"].iloc[-1],
            "test-accuracy": lines["test-accuracy"].iloc[-1],
            "uplink-bytes": lines["uplink-bytes"].sum(),
            "downlink-bytes": lines["downlink-bytes"].sum(),
        }
    for way in ("uplink-bytes", "downlink-bytes"):
        if way in lines:
            lines[f"total-{way}"] = lines[way].cumsum()
    return Run(
        path.name,
        config.to_flat(),
        str(summary["status"]),
        _numbers(summary),
        _curves(lines),
        error=str(summary.get("error", "")),
    )


def _read_sweep(path: Path) -> tuple[list[Run], list[str], str, int]:
    """Its runs, the keys it tuned, its name, and how many runs it is to have."""
    about = _json(path / _SWEEP)
    try:
        results = pd.read_parquet(path / _RESULTS)
        curves = pd.read_parquet(path / _CURVES)
        of_run = dict(iter(curves.groupby("run", sort=False)))
        rows = results.to_dict("records")
        runs = [_row(row, about["axes"], of_run.get(row["run"], curves.iloc[:0])) for row in rows]
        grid = about["tune"]["grid"] if about["tune"] else []
        tuned = {key: value for point in grid for key, value in point.items()}
        Config.from_flat(tuned)  # the names of files and of figures' parts are made of these
        return runs, list(tuned), str(about["name"]), int(about.get("planned", len(runs)))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"report: the tables of the sweep {str(path)!r} cannot be read: {error}; "
            "call 'fedef sweep' again to finish it"
        ) from None


def _row(row: Mapping[Any, Any], axes: Mapping[str, Any], curves: pd.DataFrame) -> Run:
    """A row of a sweep's results."""
    config = Config.from_flat(json.loads(row["config"])).to_flat()
    return Run(
        str(row["run"]),
        config,
        str(row["status"]),
        _numbers(row),
        _curves(curves),
        error="" if pd.isna(row["error"]) else str(row["error"]),
        axes={axis: str(row[axis]) for axis in axes if row[axis] != config.get(axis)},
        tuning=row["phase"] == "tune",
        edge=row["edge"] is True,
    )


def _curves(lines: pd.DataFrame) -> dict[str, Values]:
    wanted = (*_CURVE_COLUMNS, "total-uplink-bytes", "total-downlink-bytes")
    return {
        name: pd.to_numeric(lines[name], errors="coerce").to_numpy(np.float64, na_value=np.nan)
        if name in lines
        else np.full(len(lines), np.nan)
        for name in wanted
    }


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in row.items()
        if isinstance(value, int | float | np.number) and not isinstance(value, bool)
    }


def _environments(places: Iterable[Path]) -> tuple[Mapping[str, Any], ...]:
    different: dict[str, Mapping[str, Any]] = {}
    for place in places:
        file = place / "environment.json"
        if file.is_file():
            environment = _json(file)
            different.setdefault(json.dumps(environment, sort_keys=True), environment)
    return tuple(different.values())


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"report: {str(path)!r} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"report: {str(path)!r} must hold an object, got {type(content)}")
    return content
