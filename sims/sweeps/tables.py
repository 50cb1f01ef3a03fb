"""A sweep's tables, made of its runs' folders alone; see `sims.sweeps` for the columns."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from fedef.durable import write_atomically
from fedef.run_folder import RunFolder
from sims.sweeps.one_run import FAILURE, TIMING

Record = dict[str, Any]

RESULTS, CURVES, TIMES = "results.parquet", "curves.parquet", "timing.parquet"
_KNOWN = {
    "chosen": "boolean",
    "edge": "boolean",
    "rounds": "Int64",
    "uplink-bytes": "Int64",
    "downlink-bytes": "Int64",
    "final-loss": "Float64",
    "final-grad-norm": "Float64",
    "test-accuracy": "Float64",
    "error": "string",
    "stopped-by": "string",
}
"""Types of columns that may be all null."""
_APART = {"seconds", "engine", "method", "problem", "seed"}
"""Of summary.json: the times, and what the configuration says."""


def read_record(folder: Path) -> Record:
    """What is known of a run that ended: its status, its error and its summary's numbers."""
    failure = folder / FAILURE
    if failure.exists():
        return {"stopped-by": None, **json.loads(failure.read_text(encoding="utf-8"))}
    summary = json.loads(RunFolder(folder).summary_path.read_text(encoding="utf-8"))
    return {
        "status": summary.pop("status"),
        "error": None,
        "stopped-by": summary.pop("stopped-by"),
        **{key: _flat(value) for key, value in summary.items() if key not in _APART},
    }


def results_table(rows: Iterable[Mapping[str, Any]], columns: Iterable[str]) -> pd.DataFrame:
    """One row per run; `columns` are there even where no run has them."""
    table = pd.DataFrame.from_records(list(rows))
    for column in {**dict.fromkeys(columns), **_KNOWN}:
        if column not in table:
            table[column] = None
    return _typed(table.astype(_KNOWN))


def curves_table(folders: Iterable[Path]) -> pd.DataFrame:
    """One row per run and round."""
    parts = []
    for folder in folders:
        lines = [
            {key: value for key, value in line.items() if not _left_out(key, value)}
            for line in RunFolder(folder).rounds()
        ]
        part = pd.DataFrame.from_records(lines)
        if len(part):
            part.insert(0, "run", folder.name)
            for way in ("uplink-bytes", "downlink-bytes"):
                part[f"total-{way}"] = part[way].cumsum()
            parts.append(part.astype("object"))
    empty = pd.DataFrame({"run": [], "round": []})
    return _typed(pd.concat(parts, ignore_index=True) if parts else empty)


def timing_table(folders: Iterable[Path]) -> pd.DataFrame:
    """Seconds of each run."""
    rows = []
    for folder in folders:
        seconds = sum(line["seconds"] for line in RunFolder(folder).rounds())
        timing = json.loads((folder / TIMING).read_text(encoding="utf-8"))
        rows.append({"run": folder.name, "seconds": round(seconds, 6), **timing})
    return pd.DataFrame.from_records(rows, columns=["run", "seconds", "wall-seconds"])


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a parquet file, whole or not at all."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    write_atomically(path, buffer.getvalue())


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    """Types that can say null; a column of nulls alone is one of numbers."""
    unknown = [name for name in table if table[name].isna().all() and table[name].dtype == object]
    return table.astype(dict.fromkeys(unknown, "Float64")).infer_objects().convert_dtypes()


def _left_out(key: str, value: Any) -> bool:
    return key == "seconds" or isinstance(value, list | dict)


def _flat(value: Any) -> Any:
    return json.dumps(value, sort_keys=True) if isinstance(value, list | dict) else value
