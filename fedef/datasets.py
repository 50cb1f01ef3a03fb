"""Data sets: scikit-learn's embedded ones and LIBSVM text files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedef.errors import ConfigError
from fedef.randomness import stream
from fedef.vectors import IntVector, is_finite


@dataclass(frozen=True)
class BinaryData:
    """Rows of a binary classification problem."""

    features: NDArray[np.float64]
    """(N, d)."""
    labels: NDArray[np.float64]
    """(N,), each -1 or +1."""


@dataclass(frozen=True)
class DigitsData:
    """scikit-learn's digits: 8x8 images, ten classes, split in two."""

    train_images: NDArray[np.float32]
    """(1438, 64) in [0, 1]."""
    train_labels: IntVector
    """(1438,) in 0..9."""
    test_images: NDArray[np.float32]
    """(359, 64) in [0, 1]."""
    test_labels: IntVector
    """(359,) in 0..9."""


def digits(seed: int) -> DigitsData:
    """The 1797 digits, pixels over 16; one fifth, drawn by `seed`, is held out for the test."""
    from sklearn import datasets  # here: half a second that other data can do without

    pixels, labels = datasets.load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32)
    classes = labels.astype(np.int64)
    order = stream(seed, "test-split").permutation(len(classes))
    held_out = len(classes) // 5
    test, train = np.sort(order[:held_out]), np.sort(order[held_out:])
    return DigitsData(images[train], classes[train], images[test], classes[test])


def breast_cancer() -> BinaryData:
    """scikit-learn's WDBC, 569x30, each column scaled to [-1, 1]; benign is +1, malignant -1.

    Not the papers' "Breast Cancer", which is LIBSVM's breast-cancer_scale (683x10).
    """
    from sklearn import datasets

    raw, target = datasets.load_breast_cancer(return_X_y=True)
    low, high = raw.min(axis=0), raw.max(axis=0)
    return BinaryData(2 * (raw - low) / (high - low) - 1, np.where(target == 1, 1.0, -1.0))


def synthetic(seed: int) -> BinaryData:
    """20x10 features from N(0, 1) and fair labels (arXiv:2410.16871, App. G), drawn by `seed`."""
    draws = stream(seed, "synthetic-data")
    features = draws.standard_normal((20, 10))
    return BinaryData(features, draws.choice([-1.0, 1.0], size=20))


def libsvm(path: Path) -> BinaryData:
    """Dense rows of a LIBSVM text file, plain or ``.bz2``; the larger label becomes +1.

    d is the largest index that the file uses: a1a has 119 columns, its family 123.

    Raises
    ------
    ConfigError
        If the file is not LIBSVM text, holds a value that is not finite, or has other than two
        labels.
    """
    from sklearn import datasets

    try:
        sparse, target = datasets.load_svmlight_file(os.fspath(path))
    except (ValueError, OSError, EOFError) as error:
        raise ConfigError(
            f"data: {str(path)!r} is not a LIBSVM text file ({error}); "
            "expected lines 'label index:value ...', plain or .bz2"
        ) from None
    features: NDArray[np.float64] = sparse.toarray()
    if not (is_finite(features) and is_finite(target)):
        raise ConfigError(f"data: {str(path)!r} holds NaN or infinite values; remove those rows")
    return BinaryData(features, _signs(target, path))


def find_file(name: str, data_dir: str | None) -> Path:
    """The file `name`: a path, or a file of the data folder, with or without ``.bz2``.

    The data folder is `data_dir`, else the environment variable FEDEF_DATA.

    Raises
    ------
    ConfigError
        If there is no such file; the message lists the paths tried.
    """
    folder = data_dir or os.environ.get("FEDEF_DATA")
    candidates = [Path(name)]
    if folder:
        candidates += [Path(folder) / name, Path(folder) / f"{name}.bz2"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    tried = ", ".join(repr(str(candidate)) for candidate in candidates)
    raise ConfigError(
        f"data: no file for {name!r}, tried {tried}; give its path, or its folder by data-dir= "
        "or the environment variable FEDEF_DATA; logistic on breast_cancer or synthetic and the "
        "digits-* problems need no file"
    )


def binary_data(name: str, *, data_dir: str | None, seed: int) -> BinaryData:
    """The data set called `name`: breast_cancer, synthetic, or a LIBSVM file.

    Raises
    ------
    ConfigError
        If the file is missing or unusable; see `find_file` and `libsvm`.
    """
    if name == "breast_cancer":
        return breast_cancer()
    if name == "synthetic":
        return synthetic(seed)
    return libsvm(find_file(name, data_dir))


def _signs(target: NDArray[Any], path: Path) -> NDArray[np.float64]:
    found = np.unique(target)
    if len(found) != 2:
        raise ConfigError(
            f"data: {str(path)!r} has {len(found)} distinct labels, starting {found[:5].tolist()}; "
            "the logistic problem needs exactly two"
        )
    return np.where(target == found[1], 1.0, -1.0)
