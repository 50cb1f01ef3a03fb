"""The interface of a compressor and what all of them refuse."""

from __future__ import annotations

from typing import Protocol

from fedef.errors import ConfigError, FedefError
from fedef.updates import Update
from fedef.vectors import Vector, is_finite


class NonFiniteVector(FedefError, ValueError):  # noqa: N818 - names a condition
    """A vector with NaN or infinite entries was to be compressed; nothing was changed."""


class Compressor(Protocol):
    """C: R^d -> sparse vectors, E||C(v) - v||^2 <= (1 - alpha) ||v||^2."""

    @property
    def name(self) -> str:
        """The configuration's name."""

    @property
    def dimension(self) -> int:
        """D."""

    @property
    def max_entries(self) -> int:
        """The most entries that an update has."""

    @property
    def kind(self) -> str:
        """The codec's kind of its updates: dense, sparse or seeded."""

    @property
    def alpha(self) -> float:
        """Contraction constant in (0, 1]; 1 loses nothing."""

    def compress(self, vector: Vector, *, seed: int) -> Update:
        """C(vector). `seed`: the 64-bit stream that random compressors draw from.

        Raises
        ------
        NonFiniteVector
            If an entry is NaN or infinite.
        """


def require_shape(name: str, vector: Vector, dimension: int) -> None:
    """Refuse a vector that is not of shape (d,)."""
    if vector.shape != (dimension,):
        raise ConfigError(
            f"{name}: vector must have shape ({dimension},), got {vector.shape}; "
            "make the compressor for the dimension of the vector"
        )


def require_finite(name: str, vector: Vector) -> None:
    """Refuse a vector with NaN or infinite entries."""
    if not is_finite(vector):
        raise NonFiniteVector(f"{name}: the vector has entries that are NaN or infinite")


def require_k(name: str, k: int, dimension: int) -> None:
    """Refuse k outside [1, d]."""
    if not 1 <= k <= dimension:
        raise ConfigError(
            f"{name}: k must be in [1, d={dimension}], got {k}; "
            "use compressor=identity to send everything"
        )
