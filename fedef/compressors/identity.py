"""The compressor that sends everything."""

from dataclasses import dataclass

from fedef.compressors.base import require_finite, require_shape
from fedef.updates import Update
from fedef.vectors import Vector


@dataclass(frozen=True)
class Identity:
    """C(v) = v, alpha = 1."""

    dimension: int

    @property
    def name(self) -> str:
        """The configuration's name."""
        return "identity"

    @property
    def max_entries(self) -> int:
        """Every entry is sent."""
        return self.dimension

    @property
    def kind(self) -> str:
        """The codec's kind of its updates."""
        return "dense"

    @property
    def alpha(self) -> float:
        """Nothing is lost."""
        return 1.0

    def compress(self, vector: Vector, *, seed: int = 0) -> Update:
        """Return the vector itself as a dense update; `seed` is not used."""
        require_shape(self.name, vector, self.dimension)
        require_finite(self.name, vector)
        return Update(self.dimension, vector)
