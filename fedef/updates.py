"""An update: what a client adds to its estimate g_i, and the server to its mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedef.vectors import IntVector, Vector


@dataclass(frozen=True, eq=False)
class Update:
    """Entries of a (d,) vector that is zero elsewhere."""

    dimension: int
    """d."""
    values: Vector
    """(k,) the entries."""
    indices: IntVector | None = None
    """(k,) strictly increasing positions; None: values is the dense (d,) vector."""
    seed: int | None = None
    """64-bit stream that the indices were drawn from (rand-k); None: they carry information."""

    @property
    def where(self) -> IntVector | slice:
        """What to index a (d,) vector with to reach the entries."""
        return slice(None) if self.indices is None else self.indices

    def added_to(self, vector: Vector) -> Vector:
        """Return a new vector, `vector` plus this update, in the dtype of `vector`."""
        result = vector.copy()
        result[self.where] += self.values
        return result

    def add_scaled_to(self, accumulator: Vector, weight: float) -> None:
        """Add `weight` times this update into a float64 accumulator, in place, in O(k)."""
        accumulator[self.where] += weight * self.values.astype(np.float64)

    def dense(self) -> Vector:
        """Return the (d,) vector."""
        result = np.zeros(self.dimension, dtype=self.values.dtype)
        result[self.where] = self.values
        return result
