"""A disk under which the process is thrown away at a chosen write boundary, or the power fails.

Every call that `fedef.durable` makes to change a file is a boundary, the middle of a write too.
Once dead, nothing is written any more: what `finally` would still do, a killed process does not.
After a failure of the power, what was not flushed is lost: renamed names and new folders without a
flush of their folder go back, and data without a flush of its file is torn.
"""

import io
import os
from pathlib import Path

import pytest

KINDS = ("kill", "power: names lost", "power: data torn")


class Killed(BaseException):
    """The process is gone."""


class DyingDisk:
    """Counts boundaries, and ends the process at the one asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._real = {name: getattr(os, name) for name in ("fsync", "replace", "unlink", "mkdir")}
        self._open = io.open
        self.revive()
        monkeypatch.setattr(io, "open", self._opened)
        for name in self._real:
            monkeypatch.setattr(os, name, getattr(self, f"_{name}"))

    def revive(self, die_at: int | None = None) -> None:
        """Start anew, on what the disk holds, to die at boundary `die_at`, from 0."""
        self.boundaries, self._die_at, self.dead = 0, die_at, False
        self._renamed: dict[str, bytes | None] = {}
        self._made: list[str] = []
        self._unflushed: set[str] = set()

    def fail_power(self, kind: str) -> None:
        """Lose what was not flushed, in one of the two ways that a file system may."""
        if kind == "power: names lost":
            for name, before in self._renamed.items():
                if before is None:
                    self._real["unlink"](name)
                else:
                    with self._open(name, "wb") as file:
                        file.write(before)
            for name in reversed(self._made):
                os.rename(name, f"{name}.lost")
        if kind == "power: data torn":
            for name in self._unflushed:
                if os.path.exists(name):
                    os.truncate(name, os.path.getsize(name) // 2)

    def boundary(self) -> None:
        if self.dead or self.boundaries == self._die_at:
            self.dead = True
            raise Killed
        self.boundaries += 1

    def _opened(self, path, mode="r", *args, **kwargs):
        if mode != "wb":
            return self._open(path, mode, *args, **kwargs)
        self.boundary()
        self._unflushed.add(str(path))
        return _File(self._open(path, mode, *args, **kwargs), self)

    def _fsync(self, descriptor):
        self.boundary()
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        self._unflushed.discard(name)
        self._renamed = {n: old for n, old in self._renamed.items() if os.path.dirname(n) != name}
        self._made = [n for n in self._made if os.path.dirname(n) != name]

    def _replace(self, source, target):
        self.boundary()
        source, target = str(source), str(target)
        before = Path(target).read_bytes() if os.path.exists(target) else None
        self._renamed.setdefault(target, before)
        if source in self._unflushed:
            self._unflushed.add(target)
        self._real["replace"](source, target)

    def _mkdir(self, path, *args, **kwargs):
        self.boundary()
        self._real["mkdir"](path, *args, **kwargs)
        self._made.append(str(path))

    def _unlink(self, path, **kwargs):
        self.boundary()
        self._real["unlink"](path, **kwargs)


class _File:
    def __init__(self, file, disk):
        self._file, self._disk = file, disk

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, data):
        self._disk.boundary()
        self._file.write(data[: len(data) // 2])
        self._file.flush()
        self._disk.boundary()
        return len(data) // 2 + self._file.write(data[len(data) // 2 :])
