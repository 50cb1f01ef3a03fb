"""Classification data of one's own from an npz file."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from fedef.class_data import ClassData, class_data
from fedef.errors import ConfigError
from fedef.problems.files import read_npz


# Time and size of the file are part of the key, so that a file that changed is read anew.
@lru_cache(maxsize=2)
def read_npz_data(path: Path, modified: int, size: int) -> ClassData:
    """``x_train``, ``y_train`` and maybe ``x_test``, ``y_test``, ``client_train``; `class_data`.

    Raises
    ------
    ConfigError
        If the file is unusable.
    """
    optional = ["x_test", "y_test", "client_train"]
    arrays = read_npz("data", str(path), ["x_train", "y_train"], optional)
    if ("x_test" in arrays) != ("y_test" in arrays):
        raise ConfigError(f"data: {str(path)!r} has only one of x_test and y_test; give both")
    test = (arrays["x_test"], arrays["y_test"]) if "x_test" in arrays else None
    train = (arrays["x_train"], arrays["y_train"])
    return class_data(repr(str(path)), train, test, owners=arrays.get("client_train"))
