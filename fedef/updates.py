"""An update: what a client adds to its estimate g_i, and the server to its mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fedef.vectors import IntVector, Vector

_ENTRIES_AT_ONCE = 2**14


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

    def entries_after(self, vector: Vector) -> Update:
        """Return the entries that `vector` has once this update is added to it."""
        after = vector[self.where] + self.values
        return Update(self.dimension, after, self.indices, self.seed)

    def overwrite(self, vector: Vector) -> None:
        """Put the entries into `vector`, in place; doing it again changes nothing."""
        vector[self.where] = self.values

    def dense(self) -> Vector:
        """Return the (d,) vector."""
        result = np.zeros(self.dimension, dtype=self.values.dtype)
        result[self.where] = self.values
        return result


def add_weighted(accumulator: Vector, terms: Sequence[tuple[float, Update]]) -> None:
    """Accumulator += sum of weight times update over `terms`, in float64, in place.

    The bits depend on the order of the terms, on nothing else. O(d) plus the entries.
    """
    total = np.zeros(accumulator.size)
    for part in _blocks([(w, update) for w, update in terms if update.indices is not None]):
        values = np.concatenate([update.values for _, update in part], dtype=np.float64)
        values *= np.repeat([w for w, _ in part], [update.values.size for _, update in part])
        np.add.at(total, np.concatenate([update.where for _, update in part]), values)
    for weight, update in terms:
        if update.indices is None:
            total += weight * update.values.astype(np.float64)
    accumulator += total


def _blocks(terms: Sequence[tuple[float, Update]]) -> Iterator[list[tuple[float, Update]]]:
    """The terms in order, a few thousand entries at a time: their copies stay in a near cache."""
    block: list[tuple[float, Update]] = []
    entries = 0
    for weight, update in terms:
        block.append((weight, update))
        entries += update.values.size
        if entries >= _ENTRIES_AT_ONCE:
            yield block
            block, entries = [], 0
    if block:
        yield block
