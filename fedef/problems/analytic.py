"""What problems in float64 with a formula share: a start, no buffers; rows that clients hold."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedef.vectors import IntVector, Vector


class Analytic:
    """A problem in float64 without buffers whose subclass holds its start."""

    x0: Vector
    """(d,) float64."""

    @property
    def dimension(self) -> int:
        """d: length of x."""
        return len(self.x0)

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """float64."""
        return np.dtype(np.float64)

    def initial_point(self) -> Vector:
        """x^0, (d,)."""
        return self.x0.copy()

    def initial_buffers(self) -> Vector:
        """Empty."""
        return np.empty(0)

    def named_arrays(self, x: Vector, buffers: Vector) -> dict[str, Vector]:
        """Return the model under one name."""
        return {"x": x}


class DealtRows(Analytic):
    """Its data are rows, those of one client together, in the order of the clients."""

    bounds: tuple[int, ...]
    """(n + 1,): client i holds the rows bounds[i] to bounds[i + 1], maybe none."""

    @cached_property
    def num_examples(self) -> tuple[int, ...]:
        """Rows of each client."""
        return tuple(np.diff(self.bounds).tolist())

    def held(
        self, client: int, rows: IntVector | None, *arrays: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], ...]:
        """The client's part of each array, or of that part its `rows`."""
        part = slice(self.bounds[client], self.bounds[client + 1])
        return tuple(array[part] if rows is None else array[part][rows] for array in arrays)

    def row_weights(self, weights: Vector) -> Vector:
        """Of all rows: a client's weight over its number of rows; (n,) weights in."""
        sizes = np.array(self.num_examples)
        holds = sizes > 0
        return np.repeat(weights[holds] / sizes[holds], sizes[holds])


def bounds_of(parts: Sequence[IntVector]) -> tuple[int, ...]:
    """`DealtRows.bounds` of what the clients were dealt."""
    return (0, *np.cumsum([len(part) for part in parts]).tolist())
