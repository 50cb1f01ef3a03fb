"""What problems in float64 with a formula share: a start, no buffers."""

from __future__ import annotations

import numpy as np

from fedef.vectors import Vector


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
