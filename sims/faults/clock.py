"""A wrong clock for the Python code of one process.

Shifted are ``time.time``, ``time.time_ns`` and `flwr.supercore.date.now`, from which all of
Flower has its time of day: when messages were made, how long they live, what nodes sign. Not
shifted are ``datetime.now`` elsewhere (compiled modules refuse another class in its place), the
clocks that measure durations (``time.monotonic``), which a wrong date leaves alone on a real
machine too, and code that is not Python: file times, and the validity of certificates, which gRPC
checks by the machine's own clock.

A node gets it from a ``sitecustomize`` in a folder that is first in its PYTHONPATH: Python imports
that module before all else.
"""

from __future__ import annotations

import datetime
import os
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

from flwr.supercore import date

OFFSET_FILE = "FEDEF_FAULTS_CLOCK"
"""Environment variable: the file that holds the seconds by which the clock is ahead."""
_SITECUSTOMIZE = "from sims.faults.clock import install\n\ninstall()\n"
_KEPT_SECONDS = 0.1

_time, _time_ns = time.time, time.time_ns


def variables(folder: Path, offset_file: Path, python_path: str) -> dict[str, str]:
    """Environment of a process with its own clock; `folder` is made for it."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE, encoding="utf-8")
    return {
        "PYTHONPATH": f"{folder}{os.pathsep}{python_path}",
        OFFSET_FILE: str(offset_file),
    }


def set_ahead(offset_file: Path, seconds: float) -> None:
    """Move the clock of the processes that look into the file; negative: back."""
    aside = offset_file.with_name(f"{offset_file.name}.part")
    aside.write_text(str(seconds), encoding="utf-8")
    aside.replace(offset_file)


class _Offset:
    """The seconds in a file, read again every `_KEPT_SECONDS`; 0 while there is none."""

    def __init__(self, path: Path) -> None:
        self._path, self._seconds, self._read_at = path, 0.0, float("-inf")

    def __call__(self) -> float:
        if time.monotonic() > self._read_at + _KEPT_SECONDS:
            self._read_at = time.monotonic()
            with suppress(OSError):
                self._seconds = float(self._path.read_text(encoding="utf-8"))
        return self._seconds


def install() -> None:
    """Shift this process's clock by what the file in its environment says, from now on."""
    offset = _Offset(Path(os.environ[OFFSET_FILE]))

    class Datetime:
        @staticmethod
        def now(tz: datetime.tzinfo) -> datetime.datetime:
            return datetime.datetime.now(tz) + datetime.timedelta(seconds=offset())

    # Others have imported the function already: what it looks up is changed, not the function.
    vars(date)["datetime"] = SimpleNamespace(datetime=Datetime, UTC=datetime.UTC)
    time.time = lambda: _time() + offset()
    time.time_ns = lambda: _time_ns() + int(offset() * 1e9)
