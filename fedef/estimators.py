"""What a client estimates its gradient with: the fresh gradient, or a moving average of them."""

from __future__ import annotations

from fedef.vectors import Vector


def momentum(v: Vector | None, gradient: Vector, eta: float) -> Vector:
    """V <- (1 - eta) v + eta grad f_i(x; xi)   (EF21-SGDM, arXiv:2305.15155, Alg. 1).

    A client's first gradient is its first v (v^{-1} = grad f_i(x^0; xi^0), as Theorem 2 of
    arXiv:2410.16871 requires). eta = 1 returns the gradient bit for bit.
    """
    if v is None or eta == 1.0:
        return gradient
    return (1.0 - eta) * v + eta * gradient
