"""A node's small file system, to be filled and emptied."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOSPC
from pathlib import Path

from fedef.errors import FedefError

SIZE_KB = 256
"""A client's state of the default problem takes some 10 kB, and twice that while it is written."""
_BLOCK = 4096


class SmallDisk:
    """A file system of `SIZE_KB` in memory, mounted at a folder.

    Raises
    ------
    FedefError
        If this process may not mount.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._filler = folder, folder / "filler"
        folder.mkdir(parents=True, exist_ok=True)
        options = f"size={SIZE_KB}k,mode=700"
        _run("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder))

    def fill(self) -> None:
        """Leave no free block; what others free is taken at the next call."""
        with self._filler.open("ab", buffering=0) as filler:
            try:
                while True:
                    filler.write(bytes(_BLOCK))
            except OSError as error:
                if error.errno != ENOSPC:
                    raise

    def free(self) -> None:
        """Take away what `fill` wrote."""
        self._filler.unlink(missing_ok=True)

    def unmount(self) -> None:
        """Take the file system away with all that is in it, at once even if it is in use."""
        _run("umount", "--lazy", str(self.folder))


@contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk]:
    """A small file system that is unmounted when the block ends, in every case."""
    disk = SmallDisk(folder)
    try:
        yield disk
    finally:
        disk.unmount()


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own command line, no shell # nosec B603
    except OSError as error:
        raise FedefError(f"full-disks: {command[0]}: {error.strerror}; leave it at 0") from None
    if done.returncode != 0:
        raise FedefError(
            f"full-disks: {command[0]} failed: {done.stderr.strip()}; it needs root, who may "
            "mount; leave it at 0 otherwise"
        )
