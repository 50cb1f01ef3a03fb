"""Files that are whole or not there: written aside, flushed, renamed, checked when read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedef.errors import ConfigError
from fedef.state import Arrays

_MAGIC = b"FDFSTATE"
_DIGEST_BYTES = 16


def write_atomically(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Replace `path` by `data`: temporary file beside it, fsync, rename, fsync of the folder.

    `mode`: of the file, less the process's umask, from its first byte on.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        aside.touch(mode=mode)
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(path.parent)


def make_folder(path: Path, *, mode: int = 0o777) -> None:
    """Make a folder and the parents that it lacks, each name on the disk when this returns.

    Raises
    ------
    OSError
        If one cannot be made.
    """
    if path.is_dir():
        return
    if not path.parent.exists():
        make_folder(path.parent, mode=mode)
    path.mkdir(mode=mode, exist_ok=True)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Have the names in a folder on the disk itself."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def discard_leftovers(path: Path) -> None:
    """Remove what killed processes left beside `path` while they were writing it."""
    for aside in path.parent.glob(f".{path.name}.*.part"):
        aside.unlink(missing_ok=True)


def serialized(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return the bytes of a safetensors file of these arrays.

    In C order first: safetensors writes the memory of a strided view as it lies.
    """
    return save({name: np.asarray(array, order="C") for name, array in arrays.items()})


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], *, mode: int = 0o666) -> None:
    """Write named arrays with a checksum over all of them; `mode` as in `write_atomically`."""
    body = serialized(arrays)
    write_atomically(path, _MAGIC + _digest(body) + body, mode=mode)


def read_arrays(path: Path) -> Arrays:
    """Inverse of `write_arrays`. Runs no code of the file's.

    Raises
    ------
    ConfigError
        If the file is missing, cut off or changed; the message names it.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"state file {str(path)!r}: {error.strerror}; check the path") from None
    start = len(_MAGIC) + _DIGEST_BYTES
    head, body = data[:start], data[start:]
    if head != _MAGIC + _digest(body):
        raise ConfigError(
            f"state file {str(path)!r} is corrupt: its checksum does not match; "
            "restore it from a backup or start the run again"
        )
    try:
        return load(body)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ConfigError(f"state file {str(path)!r} is not fedef's: {error}") from None


def _digest(body: bytes) -> bytes:
    return blake2b(body, digest_size=_DIGEST_BYTES).digest()
