"""Contenders of the benchmarks of whole rounds: each in a process of its own, one at a time.

A contender is a function that gets a `Turn`: it waits for its turn, does some rounds and tells how
long one took, until the other side hangs up. Its start-up and what it does between turns count for
nobody, nor does the first round of a turn, which finds the others' data in the processor's caches.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import torch

from fedef.errors import FedefError
from fedef.threads import single_threaded
from sims.processes import HOME_VARIABLE, temporary_home
from sims.ray_tuning import TUNED_ENVIRONMENT

PATIENCE_SECONDS = 10.0
ROUNDS_A_TURN = 5
"""Rounds in a row that are counted, as a run does them."""


@dataclass(frozen=True)
class Entry:
    """A contender's entry."""

    shown: str
    """Its name for people."""
    module: str
    function: str
    """What it does; imported in its own process."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What the engine's own runs set besides."""


CONTENDERS = {
    "inline": Entry("the inline engine", "sims.bench_rounds", "inline"),
    "ray": Entry("the Ray engine, 2 workers", "sims.bench_rounds", "ray_two_workers"),
    "flower-fedavg": Entry("Flower's FedAvg, simulated", "sims.bench_flower", "fedavg"),
    "flower-fedef": Entry("the Flower engine", "sims.bench_flower", "fedef", TUNED_ENVIRONMENT),
    "pfl-fedavg": Entry("pfl's FedAvg", "sims.bench_pfl", "fedavg"),
}


class Turn:
    """The contender's end of the line to the benchmark."""

    def __init__(self, answers: IO[str]) -> None:
        self._answers = answers
        self._rounds = 0
        self._began = 0.0

    def wait(self) -> None:
        """Before each round: return when it is this contender's turn."""
        if self._rounds == 0:
            self._say("ready")
            if not sys.stdin.readline():
                raise SystemExit

    def done(self) -> None:
        """After each round: at the end of a turn tell its seconds a round."""
        if self._rounds == 0:
            self._began = time.perf_counter()
        self._rounds += 1
        if self._rounds > ROUNDS_A_TURN:
            self._say(repr((time.perf_counter() - self._began) / ROUNDS_A_TURN))
            self._rounds = 0

    def rounds(self, call: Callable[[], object]) -> None:
        """Take turns for ever with one call as a round."""
        while True:
            self.wait()
            call()
            self.done()

    def _say(self, text: str) -> None:
        self._answers.write(text + "\n")
        self._answers.flush()


def inline(turn: Turn) -> None:
    """The inline engine."""
    from sims.bench_task import CONFIG, build
    from sims.engine import InlineEngine

    with single_threaded():
        turn.rounds(InlineEngine(build(CONFIG)).round)


def ray_two_workers(turn: Turn) -> None:
    """The Ray engine with two workers."""
    from sims.bench_task import CONFIG, build
    from sims.ray_engine import RaySettings

    with single_threaded(), RaySettings(workers=2, build=build).open(build(CONFIG), None) as engine:
        turn.rounds(engine.round)


def installed(contender: str) -> bool:
    """Whether the library that a contender shows is there."""
    return contender != "pfl-fedavg" or find_spec("pfl") is not None


def serve(contender: str) -> None:
    """Be a contender: turns come in by standard input, seconds go out by standard output."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not look like an answer
    torch.set_num_threads(1)
    entry = CONTENDERS[contender]
    getattr(import_module(entry.module), entry.function)(Turn(answers))


class Contender:
    """The benchmark's end of the line to one contender."""

    def __init__(self, name: str, home: Path) -> None:
        self._name, self._log = name, home / f"{name}.log"
        program = f"from sims.bench_rounds import serve; serve({name!r})"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own command line, no shell # nosec B603
                [sys.executable, "-c", program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**_environment(home), **CONTENDERS[name].environment},
            )

    def seconds(self) -> float:
        """A round, from one turn."""
        assert self._process.stdin is not None  # noqa: S101 - opened above
        self._hear()  # ready
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._hear())

    def close(self) -> None:
        """Hang up, and wait for what it has to clear away; what stays is stopped by its home."""
        assert self._process.stdin is not None  # noqa: S101 - opened above
        self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=PATIENCE_SECONDS)

    def _hear(self) -> str:
        assert self._process.stdout is not None  # noqa: S101 - opened above
        line = self._process.stdout.readline()
        if not line:
            tail = self._log.read_text(errors="replace").strip().splitlines()[-15:]
            raise FedefError("\n  ".join([f"benchmark: {self._name} failed; it said:", *tail]))
        return line.strip()


@contextmanager
def contenders(*names: str) -> Iterator[list[Contender]]:
    """Start contenders; at the end nothing of them stays."""
    with temporary_home() as home:
        processes = [Contender(name, home) for name in names]
        try:
            yield processes
        finally:
            for process in processes:
                process.close()


def _environment(home: Path) -> dict[str, str]:
    environment: dict[str, str] = dict(os.environ)
    environment.pop("RAY_ADDRESS", None)
    root = str(Path(__file__).resolve().parents[1])
    return environment | {
        HOME_VARIABLE: str(home),
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        "RAY_TMPDIR": str(home / "ray"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "OMP_NUM_THREADS": "1",
    }
