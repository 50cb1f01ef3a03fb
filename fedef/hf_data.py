"""Hugging Face data sets: by name from the Hub, or from a folder on disk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedef.class_data import ClassData, class_data
from fedef.errors import ConfigError

_FEATURES = ("image", "img", "features", "x")
_LABELS = ("label", "labels", "y")


@dataclass(frozen=True)
class Columns:
    """Which part of a data set is taken for what."""

    feature: str | None = None
    """None: the only column of images, else one of the usual names."""
    label: str | None = None
    """None: the only column of classes, else one of the usual names."""
    client: str | None = None
    """Column of natural clients; None: there are none."""
    train: str = "train"
    test: str = "test"
    """Splits; an empty test: none."""
    subset: str | None = None
    """Configuration of a data set on the Hub that has several."""


def hf_data(source: str, columns: Columns) -> ClassData:
    """The data set `source`; nothing of it is ever run as code.

    Parameters
    ----------
    source
        A folder that ``save_to_disk`` wrote or that holds parquet, arrow, csv, json or image files;
        else a name on the Hub, with ``@REVISION`` to pin one. The library's own switches hold:
        ``HF_DATASETS_OFFLINE=1`` takes what is in its cache, ``HF_HOME`` says where that is.
    columns
        Column and split names.

    Raises
    ------
    ConfigError
        If the data set cannot be reached or read, or a column or split is missing or unusable.
    """
    folder = Path(source)
    stamp: tuple[tuple[str, int, int], ...] = ()
    if folder.is_dir():
        files = [(str(path), path.stat()) for path in sorted(folder.rglob("*")) if path.is_file()]
        stamp = tuple((name, about.st_mtime_ns, about.st_size) for name, about in files)
    return _read(source, columns, stamp)


# The files' times and sizes are part of the key, so that a folder that changed is read anew.
@lru_cache(maxsize=2)
def _read(source: str, columns: Columns, stamp: tuple[tuple[str, int, int], ...]) -> ClassData:
    splits = _load(source, columns)
    train = _split(source, splits, "train-split", columns.train)
    feature = _column(source, train, "feature-column", columns.feature, "Image", _FEATURES)
    label = _column(source, train, "label-column", columns.label, "ClassLabel", _LABELS)
    test = _split(source, splits, "test-split", columns.test) if columns.test else None
    parts = [part for part in (train, test) if part is not None]
    for part in parts[1:]:
        for key, name in (("feature-column", feature), ("label-column", label)):
            _column(source, part, key, name, "", ())
    labels, num_classes = _labels(source, [part[label][:] for part in parts], train.features[label])
    pairs = [(_features(source, feature, part), y) for part, y in zip(parts, labels, strict=True)]
    owners = None
    if columns.client is not None:
        client = _column(source, train, "client-column", columns.client, "", ())
        owners = np.array(train[client][:])
    return class_data(
        repr(source),
        pairs[0],
        pairs[1] if test is not None else None,
        num_classes=num_classes,
        owners=owners,
    )


def _load(source: str, columns: Columns) -> dict[str, Any]:
    # Imported here: it takes two seconds, and only runs on such data need it.
    import datasets

    datasets.disable_progress_bars()
    folder = Path(source)
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            loaded = datasets.load_from_disk(source)
        elif folder.exists():
            loaded = datasets.load_dataset(source, columns.subset)  # nosec B615
        else:
            name, _, revision = source.partition("@")
            loaded = datasets.load_dataset(name, columns.subset, revision=revision or None)
    except Exception as error:  # the library and its transport raise kinds of their own
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ConfigError(
            f"data: cannot load the Hugging Face data set {source!r} ({reason}); check the name or "
            "folder and the network, or load it once where there is one and set "
            "HF_DATASETS_OFFLINE=1; data-subset= names a configuration where there are several"
        ) from error
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def _split(source: str, splits: dict[str, Any], key: str, name: str) -> Any:
    if name not in splits:
        none = "" if key == "train-split" else f", or to nothing ({key}=) for no test set"
        raise ConfigError(
            f"{key}: {source!r} has the splits {', '.join(splits)}, got {name!r}; set it to one of "
            f"them{none}"
        )
    return splits[name]


def _column(
    source: str, part: Any, key: str, wanted: str | None, kind: str, usual: tuple[str, ...]
) -> str:
    """The column `wanted`; without: the only one of a `kind`, else the first `usual` name."""
    of_kind = [name for name, feature in part.features.items() if type(feature).__name__ == kind]
    named = [name for name in usual if name in part.features]
    found = [wanted] if wanted else of_kind if len(of_kind) == 1 else named[:1]
    if not found or found[0] not in part.features:
        got = repr(wanted) if wanted else "none that is plain from its type or name"
        raise ConfigError(
            f"{key}: {source!r} has the columns {', '.join(part.features)}, got {got}; set {key}= "
            "to one of them"
        )
    return str(found[0])


def _features(source: str, column: str, part: Any) -> NDArray[Any]:
    """Pictures as bytes, numbers as float32, small unsigned numbers as bytes."""
    array = part.with_format("numpy")[column][:]
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        raise ConfigError(
            f"feature-column: {column!r} of {source!r} must hold pictures or arrays of numbers, "
            f"all of one shape and mode, got {part.features[column]}; resize or convert them first"
        )
    inner = part.features[column]
    while hasattr(inner, "feature"):
        inner = inner.feature
    if getattr(inner, "dtype", None) == "uint8":  # the library widens integers
        return array.astype(np.uint8)
    return array


def _labels(
    source: str, parts: list[list[Any]], feature: Any
) -> tuple[list[NDArray[Any]], int | None]:
    """Classes as integers; texts are numbered in alphabetical order."""
    arrays = [np.array(part) for part in parts]
    if all(array.dtype.kind == "U" for array in arrays):
        names = np.unique(np.concatenate(arrays))
        return [np.searchsorted(names, array) for array in arrays], len(names)
    numbers = [array.astype(np.int64) if array.dtype.kind == "b" else array for array in arrays]
    return numbers, getattr(feature, "num_classes", None)
