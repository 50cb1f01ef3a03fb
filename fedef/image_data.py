"""Image sets: MNIST, Fashion-MNIST and CIFAR-10 from their files, or data of one's own."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedef.class_data import ClassData, drawn_part, frozen
from fedef.datasets import find_file
from fedef.errors import ConfigError
from fedef.hf_data import Columns, hf_data
from fedef.npz_data import read_npz_data
from fedef.problems.files import read_npz
from fedef.vectors import IntVector

IMAGE_SETS = {"mnist": (1, 28, 28), "fashion_mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
"""Name of each set, which is also its file's without ``.npz``: (channels, height, width)."""

NUM_CLASSES = 10
"""Of each of them."""

HUGGING_FACE = "hf:"
"""What the name of a Hugging Face data set begins with."""

Pixels = NDArray[np.uint8]


def image_data(
    name: str,
    *,
    data_dir: str | None,
    seed: int,
    train_examples: int = 0,
    test_examples: int = 0,
    columns: Columns = Columns(),  # noqa: B008 - frozen, so that calls can share it
) -> ClassData:
    """The set called `name`, or a part of it; a file is read once per process.

    Parameters
    ----------
    name
        mnist, fashion_mnist or cifar10; an npz file of one's own, ``FILE.npz`` (`read_npz_data`);
        or a Hugging Face data set, ``hf:NAME`` or ``hf:FOLDER`` (`hf_data`).
    data_dir
        Folder of NAME.npz; None: the environment variable FEDEF_DATA.
    seed
        Of the draw of a part. A smaller part is the beginning of a larger one.
    train_examples, test_examples
        Size of the part, drawn uniformly and kept in the order drawn; 0: all, in the file's order.
    columns
        Of a Hugging Face data set.

    Raises
    ------
    ConfigError
        If there is no such set, its file is missing or unusable, or it is smaller than the part.
    """
    whole = _whole(name, data_dir, columns)
    train = drawn_part(len(whole.train_labels), train_examples, seed, "train", name)
    test = drawn_part(len(whole.test_labels), test_examples, seed, "test", name)
    return replace(
        whole,
        train_images=frozen(whole.train_images[train]),
        train_labels=frozen(whole.train_labels[train]),
        test_images=frozen(whole.test_images[test]),
        test_labels=frozen(whole.test_labels[test]),
        owners=None if whole.owners is None else frozen(whole.owners[train]),
    )


def _whole(name: str, data_dir: str | None, columns: Columns) -> ClassData:
    if name.startswith(HUGGING_FACE):
        return hf_data(name.removeprefix(HUGGING_FACE), columns)
    if name.endswith(".npz"):
        path = find_file(name, data_dir)
        return read_npz_data(path, path.stat().st_mtime_ns, path.stat().st_size)
    if name not in IMAGE_SETS:
        raise ConfigError(
            f"data: no image set {name!r}; set data= to one of {', '.join(IMAGE_SETS)}, to an npz "
            f"file or to {HUGGING_FACE}NAME"
        )
    path = find_file(f"{name}.npz", data_dir)
    return _read(name, path, path.stat().st_mtime_ns, path.stat().st_size)


# Time and size of the file are part of the key, so that a file that changed is read anew. Two
# sets stay: 0.2 GB for CIFAR-10, 0.06 GB for each of the others.
@lru_cache(maxsize=2)
def _read(name: str, path: Path, modified: int, size: int) -> ClassData:
    pixels = "d" if name == "cifar10" else "x"
    names = [f"{kind}_{part}" for part in ("train", "test") for kind in (pixels, "y")]
    arrays = read_npz("data", str(path), names)
    train = _checked(name, path, "train", *(arrays.pop(key) for key in names[:2]))
    test = _checked(name, path, "test", *(arrays.pop(key) for key in names[2:]))
    return ClassData(*train, *test)


def _checked(
    name: str, path: Path, part: str, images: NDArray[Any], labels: NDArray[Any]
) -> tuple[Pixels, IntVector]:
    channels, *sides = IMAGE_SETS[name]
    stored = (channels, *sides) if name == "cifar10" else tuple(sides)
    fits = images.shape[1:] == stored and labels.shape == images.shape[:1] and labels.size > 0
    if not fits or images.dtype != np.uint8 or labels.dtype != np.uint8:
        raise ConfigError(
            f"data: {str(path)!r} must hold uint8 images (N, {', '.join(map(str, stored))}) and "
            f"uint8 labels (N,) for {part}, got {images.dtype} {images.shape} and "
            f"{labels.dtype} {labels.shape}; use the published {name}.npz"
        )
    if labels.max() >= NUM_CLASSES:
        raise ConfigError(
            f"data: {str(path)!r} has the label {labels.max()} in {part}, allowed are 0 to "
            f"{NUM_CLASSES - 1}; use the published {name}.npz"
        )
    whole = _undifferenced(images) if name == "cifar10" else images.reshape(-1, channels, *sides)
    return frozen(whole), frozen(labels.astype(np.int64))


def _undifferenced(differences: Pixels) -> Pixels:
    """Pixels from what the file holds: red and blue less green, then rows, then columns, mod 256.

    ``(N, 3, H, W)`` in both; along an axis the first entry is kept and each other one is its
    difference to the one before, which makes the file a third smaller.
    """
    pixels = np.cumsum(differences, axis=3, dtype=np.uint8)
    np.cumsum(pixels, axis=2, dtype=np.uint8, out=pixels)
    pixels[:, 0] += pixels[:, 1]
    pixels[:, 2] += pixels[:, 1]
    return pixels
