"""Top-k with specified ties: larger magnitude first, then the lower index."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedef.compressors.base import NonFiniteVector, require_k, require_shape
from fedef.updates import Update
from fedef.vectors import IntVector, Vector


@dataclass(frozen=True)
class TopK:
    """The k entries of largest magnitude; alpha = k/d, tight for entries of equal magnitude."""

    k: int
    dimension: int

    def __post_init__(self) -> None:
        require_k(self.name, self.k, self.dimension)

    @property
    def name(self) -> str:
        """The configuration's name."""
        return "top-k"

    @property
    def max_entries(self) -> int:
        """k; fewer are sent where fewer than k entries differ from zero."""
        return self.k

    @property
    def kind(self) -> str:
        """The codec's kind of its updates."""
        return "sparse"

    @property
    def alpha(self) -> float:
        """Contraction constant k/d."""
        return self.k / self.dimension

    def compress(self, vector: Vector, *, seed: int = 0) -> Update:
        """C(vector); `seed` is not used."""
        require_shape(self.name, vector, self.dimension)
        indices = top_k_indices(vector, self.k)
        return Update(self.dimension, vector[indices], indices)


def top_k_indices(vector: Vector, k: int) -> IntVector:
    """Positions of the k largest magnitudes in increasing order, never of a zero entry.

    Ties go to the lower index. O(d): one selection over the bit patterns, which order as the
    magnitudes do. A NaN or an infinity has a larger pattern than any finite number, so it would
    be among the selected, and only those need a look.

    Raises
    ------
    NonFiniteVector
        If an entry is NaN or infinite.
    """
    magnitudes, infinity = _magnitude_patterns(vector)
    threshold = magnitudes.dtype.type(1)
    if k < magnitudes.size:
        kth_largest = np.partition(magnitudes, magnitudes.size - k)[magnitudes.size - k]
        threshold = max(kth_largest, threshold)
    indices = np.flatnonzero(magnitudes >= threshold)
    chosen = magnitudes[indices]
    if chosen.size and chosen.max() >= infinity:
        raise NonFiniteVector("top-k: the vector has entries that are NaN or infinite")
    surplus = indices.size - k
    if surplus > 0:
        tied = np.flatnonzero(chosen == threshold)
        indices = np.delete(indices, tied[tied.size - surplus :])
    return indices


def _magnitude_patterns(vector: Vector) -> tuple[NDArray[Any], int]:
    """Bit patterns without the sign, as unsigned integers, and the pattern of infinity."""
    unsigned = np.dtype(f"u{vector.dtype.itemsize}")
    mask = np.array(2 ** (8 * unsigned.itemsize - 1) - 1, dtype=unsigned)
    infinity = np.array([np.inf], dtype=vector.dtype).view(unsigned)[0]
    return np.ascontiguousarray(vector).view(unsigned) & mask, int(infinity)
