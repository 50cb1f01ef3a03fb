"""Step sizes gamma_k of the rounds k = 0, 1, ..."""

from collections.abc import Callable
from math import sqrt

Schedule = Callable[[int], float]


def constant(step_size: float) -> Schedule:
    """gamma_k = gamma."""
    return lambda k: step_size


def inverse_sqrt(step_size: float) -> Schedule:
    """gamma_k = gamma_0 / sqrt(k + 1): needs no horizon."""
    return lambda k: step_size / sqrt(k + 1)


def horizon(step_size: float, num_rounds: int) -> Schedule:
    """gamma_k = gamma_0 / sqrt(K + 1) for K rounds (arXiv:2410.16871, Theorem 1)."""
    return constant(step_size / sqrt(num_rounds + 1))
