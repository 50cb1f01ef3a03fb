"""Which way the server steps, given its mean g of the clients' estimates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedef.errors import ConfigError
from fedef.vectors import Vector, norm


def plain(g: Vector) -> Vector:
    """Return g itself (EF21, arXiv:2106.05203, Alg. 1)."""
    return g


def unit(g: Vector) -> Vector:
    """G / ||g||_2 over the whole vector (||EF21||, arXiv:2410.16871, Alg. 1).

    ||g|| = 0 gives zero, so x stays; the paper does not define it.
    """
    length = norm(g)
    if length == 0.0:
        return g
    # In float64: the norm of a float32 vector need not fit in a float32.
    return np.divide(g, length, dtype=np.float64).astype(g.dtype, copy=False)


def adaptive(g: Vector, length: float, *, beta: float, delta: float, tau: float) -> Vector:
    """G / max(length + delta, tau)^beta   (arXiv:2410.14054; one formula for its family).

    `length` is ||g|| (normalized and clipped steps) or A ||g'|| of an independent batch. A
    divisor of zero gives zero, so x stays; the paper does not define it.
    """
    divisor = max(length + delta, tau)
    return g / divisor**beta if divisor > 0.0 else np.zeros_like(g)


@dataclass(frozen=True)
class Direction:
    """A direction by name: plain, unit, power, clip or independent."""

    name: str
    beta: float = 1.0
    """Power of the divisor, in (0, 1]."""
    delta: float = 0.0
    """Added to the norm, not negative."""
    tau: float = 0.0
    """The least divisor, not negative."""
    amplification: float = 1.0
    """A: factor of the independent norm."""

    @property
    def independent(self) -> bool:
        """Whether it needs the norm of an independent gradient."""
        return self.name == "independent"

    def of(self, g: Vector, independent_norm: float | None = None) -> Vector:
        """(d,) float64: the direction along g.

        Raises
        ------
        ConfigError
            If the direction is independent and there is no independent norm.
        """
        if self.name == "plain":
            return plain(g)
        if self.name == "unit":
            return unit(g)
        length = norm(g)
        if self.independent:
            if independent_norm is None:
                raise ConfigError("direction=independent needs the norm of an independent gradient")
            length = self.amplification * independent_norm
        return adaptive(g, length, beta=self.beta, delta=self.delta, tau=self.tau)


DIRECTIONS = ("plain", "unit", "power", "clip", "independent", "remembered")
"""remembered: the norm of the step before in the place of an independent one (ours)."""
