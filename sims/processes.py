"""A temporary home for a family of processes that ends with it, in every case.

Daemons leave the process tree, so the family is known by what all of its members inherit: an
environment variable that names the home. Needs Linux's ``/proc``.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from fedef.errors import FedefError

HOME_VARIABLE = "FLWR_HOME"
"""Environment variable that every process of a home must be given, with the home as its value."""

GRACE_SECONDS = 3.0
PATIENCE_SECONDS = 30.0


@contextmanager
def temporary_home() -> Iterator[Path]:
    """A temporary home; at the end its processes are stopped and it is removed, come what may."""
    base = tempfile.gettempdir()
    if len(base) > 24:  # Ray puts sockets below it, whose paths may have 107 characters
        base = "/tmp"  # noqa: S108 # nosec B108
    home = Path(tempfile.mkdtemp(prefix="fedef-", dir=base))
    try:
        with _signals(_raise_exit, signal.SIGTERM, signal.SIGHUP):
            for name in ("work", "ray"):
                (home / name).mkdir()
            yield home
    finally:
        with _signals(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            _stop(home)
            shutil.rmtree(home, ignore_errors=True)


@contextmanager
def _signals(
    handler: Callable[[int, FrameType | None], None] | signal.Handlers, *numbers: signal.Signals
) -> Iterator[None]:
    """Another handler for a while; Python allows it in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def _raise_exit(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _stop(home: Path) -> None:
    """Ask every process of this home to end, then end it; new ones may appear meanwhile."""
    start = time.monotonic()
    asked: set[int] = set()
    while processes := processes_of(home):
        elapsed = time.monotonic() - start
        if elapsed > PATIENCE_SECONDS:
            raise FedefError(f"processes {sorted(processes)} of {home} do not end; kill them")
        for process in processes:
            if elapsed > GRACE_SECONDS:
                _signal(process, signal.SIGKILL)
            elif process not in asked:
                _signal(process, signal.SIGTERM)
        asked |= processes
        time.sleep(0.05)
    for process in asked:
        _reap(process)


def processes_of(home: Path) -> set[int]:
    """IDs of the living processes that were started with this home or a folder in it."""
    marker = os.fsencode(f"{HOME_VARIABLE}={home}")
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
            if any(v == marker or v.startswith(marker + b"/") for v in variables):
                found.add(int(entry.name))
        except OSError:  # ended meanwhile, or somebody else's
            continue
    return found


def _signal(process: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, number)


def _reap(process: int) -> None:
    """Take a dead child out of the process table; the grandchildren are not ours to take."""
    with suppress(ChildProcessError):
        os.waitpid(process, os.WNOHANG)
