"""Labelled examples in memory: what every reader of classification data returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedef.errors import ConfigError
from fedef.randomness import stream
from fedef.vectors import IntVector, is_finite

Features = NDArray[Any]
"""Bytes from 0 to 255, or float32 numbers."""

_MOST_CHANNELS = 4


@dataclass(frozen=True)
class ClassData:
    """A training and a test set. The arrays are read-only."""

    train_images: Features
    """(N, C, H, W) images, or (N, d) vectors."""
    train_labels: IntVector
    """(N,) in 0..num_classes - 1."""
    test_images: Features
    """(M, ...) of the same shape and type; M = 0: there is no test set."""
    test_labels: IntVector
    """(M,)."""
    num_classes: int = 10
    owners: IntVector | None = None
    """(N,) the natural client of each training example, from 0; None: the data know none."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) or (d,)."""
        return self.train_images.shape[1:]


def class_data(
    source: str,
    train: tuple[NDArray[Any], NDArray[Any]],
    test: tuple[NDArray[Any], NDArray[Any]] | None,
    *,
    num_classes: int | None = None,
    owners: NDArray[Any] | None = None,
) -> ClassData:
    """Data of one's own, checked.

    Parameters
    ----------
    source
        Where they come from, for messages.
    train, test
        Features and labels. Features are (N, d), (N, H, W) or, channels last, (N, H, W, C); uint8
        stay bytes, all other numbers become float32. Labels are integers from 0.
    num_classes
        None: one more than the largest label.
    owners
        (N,) whatever names a natural client; they are numbered in ascending order.

    Raises
    ------
    ConfigError
        If shapes or values do not fit.
    """
    images, labels = _checked(source, "train", *train)
    held_out = _checked(source, "test", *test) if test else (images[:0], labels[:0])
    if held_out[0].shape[1:] != images.shape[1:] or held_out[0].dtype != images.dtype:
        raise ConfigError(
            f"data: {source} has {images.dtype} {images.shape[1:]} for train and "
            f"{held_out[0].dtype} {held_out[0].shape[1:]} for test; both need the same"
        )
    largest = max(int(part.max(initial=0)) for part in (labels, held_out[1]))
    classes = num_classes or largest + 1
    if not largest < classes or classes < 2 or (num_classes is None and classes > len(labels)):
        raise ConfigError(
            f"data: {source} has labels up to {largest} for {len(labels)} training examples and "
            f"{classes} classes; labels must be 0 to classes - 1, for at least two classes"
        )
    numbers = None
    if owners is not None:
        if owners.shape != labels.shape:
            raise ConfigError(
                f"data: {source} names the clients of {owners.shape} examples, there are "
                f"{labels.shape}; each training example needs one"
            )
        numbers = frozen(np.unique(owners, return_inverse=True)[1].astype(np.int64))
    x_test, y_test = held_out
    return ClassData(
        frozen(images), frozen(labels), frozen(x_test), frozen(y_test), classes, numbers
    )


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    """The same array, read-only."""
    array.flags.writeable = False
    return array


def drawn_part(available: int, size: int, seed: int, part: str, name: str) -> IntVector | slice:
    """Rows of a part of `size`, in the order drawn from the stream of `part`; 0: all.

    Raises
    ------
    ConfigError
        If there are fewer.
    """
    if size > available:
        raise ConfigError(
            f"{part}-examples: {name} has {available}, got {size}; use at most {available}, or 0 "
            "for all"
        )
    if size == 0:
        return slice(None)
    return stream(seed, f"{part}-examples").permutation(available)[:size]


def _checked(
    source: str, part: str, images: NDArray[Any], labels: NDArray[Any]
) -> tuple[Features, IntVector]:
    channels = images.shape[3] if images.ndim == 4 else 1
    if images.ndim not in (2, 3, 4) or 0 in images.shape or channels > _MOST_CHANNELS:
        raise ConfigError(
            f"data: {source} has features of shape {images.shape} for {part}, expected vectors "
            f"(N, d) or images (N, H, W) or (N, H, W, C), channels last, with C <= {_MOST_CHANNELS}"
        )
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise ConfigError(
            f"data: {source} has labels of type {labels.dtype} and shape {labels.shape} for "
            f"{len(images)} features for {part}, from {labels.min(initial=0)}; expected "
            "one integer from 0 each"
        )
    if images.dtype != np.uint8:
        with np.errstate(over="ignore"):
            images = images.astype(np.float32)
        if not is_finite(images):
            raise ConfigError(f"data: {source} has NaN or infinite features for {part}; clean them")
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4:
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return images, labels.astype(np.int64)
