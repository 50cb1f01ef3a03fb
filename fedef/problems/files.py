"""Numbers from npz files: a problem's instance and its initial point."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedef.config import Config
from fedef.errors import ConfigError
from fedef.vectors import Vector, is_finite

# What zipfile, zlib and NumPy raise for damaged bytes; an encrypted member is a RuntimeError.
_UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def read_npz(
    key: str, path: str, required: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, NDArray[Any]]:
    """Numeric arrays of an npz file, never running code from it.

    Parameters
    ----------
    key
        The configuration key that named the file, for messages.
    path
        The file.
    required, optional
        Names of arrays; others in the file are refused.

    Raises
    ------
    ConfigError
        If the file is missing or corrupt, an array is missing or unknown, or a value is not a
        finite number.
    """
    try:
        with Path(path).open("rb") as stream, np.lib.npyio.NpzFile(stream) as file:
            arrays = {name: np.asarray(file[name]) for name in file.files}
    except FileNotFoundError:
        raise ConfigError(f"{key}: no file {path!r}; check the path") from None
    except _UNREADABLE as error:
        raise ConfigError(
            f"{key}: {path!r} is not a readable npz file ({error}); "
            "write it with numpy.savez from plain numeric arrays"
        ) from None
    allowed = [*required, *optional]
    wrong = sorted((set(required) - set(arrays)) | (set(arrays) - set(allowed)))
    if wrong:
        raise ConfigError(
            f"{key}: {path!r} holds arrays {sorted(arrays)}, "
            f"expected {list(required)}{f' and maybe {list(optional)}' if optional else ''}; "
            f"missing or unknown: {wrong}"
        )
    for name, array in arrays.items():
        if array.dtype.kind not in "fiu" or not is_finite(array):
            raise ConfigError(
                f"{key}: array {name!r} of {path!r} (dtype {array.dtype}) must hold finite numbers"
            )
    return arrays


def refuse_instance(config: Config) -> None:
    """Refuse an instance file, for problems that are made of data and a network.

    Raises
    ------
    ConfigError
        If one is given.
    """
    if config.instance is not None:
        raise ConfigError(
            f"instance: {config.problem} takes none, got {config.instance!r}; "
            "use problem=polynomial or problem=logistic"
        )


def read_initial_point(path: str) -> Vector:
    """Array ``x0`` of an npz file.

    Raises
    ------
    ConfigError
        As `read_npz`.
    """
    return np.asarray(read_npz("initial-point", path, ["x0"])["x0"], dtype=np.float64)


def starting_point(given: Vector | None, drawn: Vector) -> Vector:
    """`given` in the type of `drawn`, which stands in where nothing is given.

    Raises
    ------
    ConfigError
        If `given` has another shape, or is not finite in that type.
    """
    if given is None:
        return drawn
    if given.shape != drawn.shape:
        raise ConfigError(
            f"initial-point: x0 must have shape {drawn.shape} for this problem, got {given.shape}"
        )
    with np.errstate(over="ignore"):
        start = given.astype(drawn.dtype)
    if not is_finite(start):
        raise ConfigError(
            f"initial-point: x0 does not fit {drawn.dtype}, its largest magnitude is "
            f"{np.abs(given).max():g}; scale it down"
        )
    return start
