"""Flat vectors: the layout of named arrays, and norms whose bits do not depend on threads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedef.errors import ConfigError

Vector = NDArray[np.floating[Any]]
IntVector = NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """Order, names and shapes of the arrays that make up one flat vector.

    0-d arrays take one place, empty arrays none. Only floating-point arrays have a place in a
    flat vector; leave integer buffers (``num_batches_tracked``) out of the layout.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> Layout:
        """Layout of `arrays` in their own order.

        Raises
        ------
        ConfigError
            If an array is not of a floating-point type.
        """
        for name, array in arrays.items():
            if not np.issubdtype(array.dtype, np.floating):
                raise ConfigError(
                    f"layout: array {name!r} has dtype {array.dtype}; only floating-point arrays "
                    "are part of a vector, keep integer buffers beside it"
                )
        return cls(tuple(arrays), tuple(tuple(map(int, a.shape)) for a in arrays.values()))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of entries of each array."""
        return tuple(prod(shape) for shape in self.shapes)

    @cached_property
    def dimension(self) -> int:
        """d: length of the flat vector."""
        return sum(self.sizes)

    def flatten(self, arrays: Mapping[str, NDArray[Any]], dtype: Any = None) -> Vector:
        """One new (d,) vector of `arrays`, in the layout's order (C order within an array).

        Raises
        ------
        ConfigError
            If names or shapes differ from the layout's.
        """
        if tuple(arrays) != self.names and set(arrays) != set(self.names):
            raise ConfigError(
                f"layout: expected arrays {list(self.names)}, got {list(arrays)}; "
                "pass exactly the arrays that the layout was made from"
            )
        for name, shape in zip(self.names, self.shapes, strict=True):
            if tuple(arrays[name].shape) != shape:
                raise ConfigError(
                    f"layout: array {name!r} must have shape {shape}, got {arrays[name].shape}"
                )
        chosen = dtype or np.result_type(*arrays.values()) if arrays else dtype or np.float32
        flat = np.empty(self.dimension, dtype=chosen)
        for (start, stop), name in zip(self.bounds, self.names, strict=True):
            flat[start:stop] = arrays[name].reshape(-1)
        return flat

    def unflatten(self, flat: Vector) -> dict[str, Vector]:
        """Views into `flat`, by name, in their own shapes.

        Raises
        ------
        ConfigError
            If `flat` is not of shape (d,).
        """
        if flat.shape != (self.dimension,):
            raise ConfigError(
                f"layout: vector must have shape ({self.dimension},), got {flat.shape}"
            )
        return {
            name: flat[start:stop].reshape(shape)
            for (start, stop), name, shape in zip(self.bounds, self.names, self.shapes, strict=True)
        }

    @cached_property
    def bounds(self) -> list[tuple[int, int]]:
        """Where each array starts and stops in the flat vector."""
        ends = np.cumsum((0, *self.sizes)).tolist()
        return list(pairwise(ends))


def norm(vector: Vector) -> float:
    """Euclidean norm in float64, the same bits for any number of threads.

    NumPy's pairwise sum instead of BLAS: a threaded dot product splits by the thread count. The
    vector is scaled by its largest magnitude where squares would overflow or vanish, so the norm
    of a finite vector is zero only if the vector is, and infinite only if the norm is.
    """
    wide = vector.astype(np.float64, copy=False)
    with np.errstate(over="ignore"):
        squared = float(np.add.reduce(np.square(wide)))
    if 1e-280 < squared < np.inf:
        return float(np.sqrt(squared))
    largest = float(np.max(np.abs(wide), initial=0.0))
    if largest == 0.0 or not np.isfinite(largest):
        return largest
    return largest * float(np.sqrt(np.add.reduce(np.square(wide / largest))))


def is_finite(vector: Vector) -> bool:
    """Whether every entry is neither infinite nor NaN."""
    return bool(np.isfinite(vector).all())
