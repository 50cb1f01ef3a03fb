"""Which way the server steps, given its mean g of the clients' estimates."""

from collections.abc import Callable

import numpy as np

from fedef.vectors import Vector, norm

Direction = Callable[[Vector], Vector]


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


DIRECTIONS: dict[str, Direction] = {"plain": plain, "unit": unit}
