"""What a sweep costs beside its runs: ``python -m sims.sweep_bench``."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pandas as pd

from fedef.config import Config
from sims.sweeps.one_run import run_into
from sims.sweeps.sweep import run_sweep

ASKED = 1.15
_BASE = {"problem": "digits-mlp", "method": "norm-ef21", "num-clients": 4, "eval-every": 0}


@dataclass(frozen=True)
class Overhead:
    """One sweep, measured."""

    runs: int
    cores: int
    wall_seconds: float
    """Of the whole sweep: Ray's start, imports in every worker, the tables and Ray's end."""
    run_seconds: float
    """Median of a run, its data and files included: a worker's first run, which imports torch, does
    not count as longer than the others."""

    @property
    def ratio(self) -> float:
        """Wall time x cores over the runs' own times."""
        return self.wall_seconds * self.cores / (self.runs * self.run_seconds)


def measure(*, runs: int, seconds: float, workers: int) -> Overhead:
    """Sweep `runs` runs of about `seconds` seconds each; 0 workers: in this process."""
    with tempfile.TemporaryDirectory() as folder:
        rounds = _rounds(Path(folder), seconds)
        source = {"seeds": runs, "base": {**_BASE, "num-rounds": rounds}}
        began = time.perf_counter()
        run_sweep(source, out=Path(folder) / "sweep", workers=workers)
        wall = time.perf_counter() - began
        timing = pd.read_parquet(Path(folder) / "sweep" / "timing.parquet")
    return Overhead(runs, max(1, workers), wall, median(timing["wall-seconds"]))


def _rounds(folder: Path, seconds: float, *, trial: int = 1000) -> int:
    """Rounds that take so long, from a second trial: the first one imports."""
    flat = Config.from_flat({**_BASE, "num-rounds": trial}).to_flat()
    run_into(flat, folder / "first")
    began = time.perf_counter()
    run_into(flat, folder / "second")
    return max(1, round(trial * seconds / (time.perf_counter() - began)))


def main() -> None:
    """Print the ratio."""
    parser = argparse.ArgumentParser(prog="python -m sims.sweep_bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0, help="of a run")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    found = measure(runs=options.runs, seconds=options.seconds, workers=options.workers)
    print(
        f"{found.runs} runs of {found.run_seconds:.2f} s on {found.cores} cores: "
        f"{found.wall_seconds:.1f} s, overhead {found.ratio:.3f} (asked: <= {ASKED})"
    )


if __name__ == "__main__":
    main()
