"""Many rounds of sessions whose states live on disk: memory, open files and folder stay flat.

::

    python -m sims.soak --rounds 20000
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from fedef.config import Config
from fedef.errors import FedefError
from fedef.experiment import Experiment
from sims.durable_federation import DurableFederation

SETTINGS = {
    "problem": "logistic",
    "data": "synthetic",
    "num-clients": 3,
    "partitioner": "iid",
    "method": "norm-ef21-sgdm",
    "compressor": "top-k",
    "k": 2,
    "participation": 0.7,
}
SLACK_BYTES = 8_000_000
"""Memory that the interpreter may take more at the end than after the first twentieth."""


@dataclass(frozen=True)
class Sample:
    """What the process and its folder take after a round."""

    round: int
    memory_bytes: int
    """Resident."""
    open_files: int
    folder_bytes: int


def soak(rounds: int, folder: Path) -> tuple[Sample, Sample, Sample]:
    """Run that many rounds; what they take after a twentieth, the middle and the end.

    Raises
    ------
    FedefError
        If an update was lost or applied twice.
    """
    experiment = Experiment.build(Config.from_flat({**SETTINGS, "num-rounds": rounds}))
    federation = DurableFederation(experiment, folder)
    samples = {}
    while federation.server.round < rounds:
        federation.round()
        if federation.server.round in marks(rounds):
            samples[federation.server.round] = _sample(federation.server.round, folder)
    scale = max(1.0, float(abs(federation.server.state.total).max()))
    if federation.drift() > 1e-9 * scale:
        raise FedefError(f"after {rounds} rounds g is off by {federation.drift():.1e}")
    start, middle, end = (samples[round] for round in marks(rounds))
    return start, middle, end


def marks(rounds: int) -> tuple[int, int, int]:
    """Rounds after which to look: a twentieth, the middle and the end."""
    return max(1, rounds // 20), max(1, rounds // 2), rounds


def growth(start: Sample, end: Sample, *, connections: int = 0) -> list[str]:
    """What grew on the way, in words; empty: nothing.

    `connections`: open files that a server may have more, since its connections come and go.
    """
    grew = []
    if end.memory_bytes > start.memory_bytes + SLACK_BYTES:
        grew.append(f"memory by {(end.memory_bytes - start.memory_bytes) / 1e6:.1f} MB")
    if end.open_files > start.open_files + connections:
        grew.append(f"open files from {start.open_files} to {end.open_files}")
    if end.folder_bytes > 2 * start.folder_bytes:
        grew.append(f"the folder from {start.folder_bytes} to {end.folder_bytes} bytes")
    return grew


def _sample(round: int, folder: Path) -> Sample:
    process = psutil.Process()
    return Sample(round, process.memory_info().rss, process.num_fds(), folder_bytes(folder))


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below it, though some may be renamed meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def main() -> None:
    """Print the three samples; exit status 1 if anything grew."""
    parser = argparse.ArgumentParser(description=__doc__, usage="python -m sims.soak [--rounds N]")
    parser.add_argument("--rounds", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, default=None, help="default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        samples = soak(options.rounds, Path(folder))
    print(f"{'round':>8} {'memory MB':>10} {'open files':>10} {'folder kB':>10}")
    for sample in samples:
        memory, size = sample.memory_bytes / 1e6, sample.folder_bytes / 1e3
        print(f"{sample.round:>8} {memory:>10.1f} {sample.open_files:>10} {size:>10.1f}")
    if grew := growth(samples[0], samples[-1]):
        sys.exit(f"grew: {', '.join(grew)}")


if __name__ == "__main__":
    main()
