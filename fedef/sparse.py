"""A vector that is mostly zero, kept small: a client's estimate until it has filled up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedef.updates import Update
from fedef.vectors import IntVector, Vector

Positions = NDArray[np.uint32]


@dataclass(frozen=True, eq=False)
class SparseVector:
    """A (d,) vector that is +0.0 outside its entries."""

    dimension: int
    """d, below 2^32."""
    indices: Positions
    """(m,) strictly increasing."""
    values: Vector
    """(m,)."""

    def dense(self) -> Vector:
        """Return the (d,) vector, new."""
        vector = np.zeros(self.dimension, dtype=self.values.dtype)
        vector[self.indices] = self.values
        return vector

    def overwritten(self, update: Update) -> SparseVector | Vector:
        """Return the vector that has the entries of `update`: dense once that is no larger."""
        if update.indices is None:
            return np.array(update.values)
        new = update.indices.astype(np.uint32)
        places = np.searchsorted(self.indices, new)
        known = np.zeros(new.size, dtype=bool)
        inside = places < self.indices.size
        known[inside] = self.indices[places[inside]] == new[inside]
        values = self.values.copy()
        values[places[known]] = update.values[known]
        merged = SparseVector(
            self.dimension,
            np.insert(self.indices, places[~known], new[~known]),
            np.insert(values, places[~known], update.values[~known]),
        )
        smaller = is_smaller(merged.indices.size, self.dimension, values.dtype)
        return merged if smaller else merged.dense()


def entry_bytes(dtype: np.dtype[np.floating]) -> int:
    """Bytes of a sparse vector's entry: its value and its position."""
    return dtype.itemsize + np.dtype(np.uint32).itemsize


def is_smaller(entries: float, dimension: int, dtype: np.dtype[np.floating]) -> bool:
    """Whether a (d,) vector of so many entries is smaller sparse than dense."""
    return entries * entry_bytes(dtype) < dimension * dtype.itemsize


def empty_sparse(dimension: int, dtype: np.dtype[np.floating]) -> SparseVector:
    """Return the zero vector."""
    return SparseVector(dimension, np.empty(0, dtype=np.uint32), np.empty(0, dtype=dtype))


def smallest_form(vector: SparseVector | Vector) -> SparseVector | Vector:
    """Return the form that depends on the vector alone: sparse where that is smaller.

    Entries are those whose bits are not all zero, so that -0.0 stays what it is.
    """
    if isinstance(vector, SparseVector):
        entries = _set_bits(vector.values)
        if not is_smaller(entries.size, vector.dimension, vector.values.dtype):
            return vector.dense()
        return SparseVector(vector.dimension, vector.indices[entries], vector.values[entries])
    entries = _set_bits(vector)
    if not is_smaller(entries.size, vector.size, vector.dtype):
        return vector
    return SparseVector(vector.size, entries.astype(np.uint32), vector[entries])


def _set_bits(values: Vector) -> IntVector:
    return np.flatnonzero(np.ascontiguousarray(values).view(f"u{values.itemsize}"))
