"""EF21 and ||EF21|| on logistic regression with one data row per client, on whole arrays.

The sessions cost about 0.1 ms for each client and round, minutes for a thousand clients. This is
the same method without messages; a test, and each page, compare it with the inline engine.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from fedef.compressors.top_k import top_k_indices
from fedef.problems.logistic import Logistic
from fedef.vectors import Vector, norm

Matrix = NDArray[np.float64]


def row_gradients(problem: Logistic, x: Vector) -> Matrix:
    """(n, d): grad f_i(x) of each row, the regularizer in each."""
    features, labels = problem.data.features, problem.data.labels
    pulled = -labels * expit(-labels * (features @ x))
    regularizer = 2 * problem.lam * x / (1 + x * x) ** 2
    return np.asarray(pulled[:, None] * features + regularizer)


def top_k_rows(matrix: Matrix, k: int) -> NDArray[np.bool_]:
    """(n, d): the k entries of largest magnitude of each row, ties to the lower index."""
    n, d = matrix.shape
    if k >= d:
        return np.ones((n, d), dtype=np.bool_)
    magnitudes = np.abs(matrix)
    if k == 1:
        chosen = np.zeros((n, d), dtype=np.bool_)
        chosen[np.arange(n), magnitudes.argmax(axis=1)] = True
        return chosen
    kth = np.partition(magnitudes, d - k, axis=1)[:, d - k, None]
    chosen = magnitudes >= kth
    for row in np.flatnonzero(chosen.sum(axis=1) > k):
        chosen[row] = False
        chosen[row, top_k_indices(matrix[row], k)] = True
    return chosen


def follow_rows(
    problem: Logistic,
    *,
    k: int,
    step_size: float,
    normalized: bool,
    rounds: int,
    stop: Callable[[float], bool] = lambda value: False,
) -> tuple[NDArray[np.float64], Vector]:
    """||grad f(x^j)||^2 for j = 0 ... rounds, and the last x.

    EF21 (arXiv:2106.05203, Alg. 1) or ||EF21|| (arXiv:2410.16871, Alg. 1) with top-k, constant
    step, dense first message, equal weights: `init=full` of the sessions.

    Parameters
    ----------
    stop
        Ends the run once it holds for a value, which is then the last one.
    """
    x = problem.initial_point()
    estimates: Matrix | None = None
    values: list[float] = []
    for j in range(rounds + 1):
        gradients = row_gradients(problem, x)
        whole = gradients.mean(axis=0)
        values.append(float(whole @ whole))
        if j == rounds or stop(values[-1]):
            break
        if estimates is None:
            estimates = gradients
        else:
            difference = gradients - estimates
            estimates = estimates + np.where(top_k_rows(difference, k), difference, 0.0)
        g = estimates.mean(axis=0)
        length = norm(g) if normalized else 1.0
        if length > 0:
            x = x - step_size * g / length
    return np.array(values), x
