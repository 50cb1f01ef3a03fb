"""Rand-k whose positions both ends draw from a shared seed, so that no index is sent."""

from dataclasses import dataclass

import numpy as np

from fedef.compressors.base import require_finite, require_k, require_shape
from fedef.randomness import generator_from
from fedef.updates import Update
from fedef.vectors import IntVector, Vector


@dataclass(frozen=True)
class RandK:
    """k entries drawn uniformly without replacement, not scaled; alpha = k/d in expectation.

    The unbiased variant scales by d/k; it is not contractive, and k/d times it is this one.
    """

    k: int
    dimension: int

    def __post_init__(self) -> None:
        require_k(self.name, self.k, self.dimension)

    @property
    def name(self) -> str:
        """The configuration's name."""
        return "rand-k"

    @property
    def max_entries(self) -> int:
        """Exactly k entries are sent."""
        return self.k

    @property
    def kind(self) -> str:
        """The codec's kind of its updates."""
        return "seeded"

    @property
    def alpha(self) -> float:
        """Contraction constant k/d."""
        return self.k / self.dimension

    def compress(self, vector: Vector, *, seed: int) -> Update:
        """C(vector) at the positions that `seed` draws."""
        require_shape(self.name, vector, self.dimension)
        require_finite(self.name, vector)
        indices = drawn_indices(seed, self.k, self.dimension)
        return Update(self.dimension, vector[indices], indices, seed=seed)


def drawn_indices(seed: int, k: int, dimension: int) -> IntVector:
    """K of d positions, uniform without replacement, increasing; a pure function of `seed`."""
    drawn = generator_from(seed).choice(dimension, size=k, replace=False, shuffle=False)
    return np.sort(drawn)
