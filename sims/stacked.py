"""Gradients and measures of phase retrieval and DRO for many models at once."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedef.problems.dro import PENALTY, ROBUSTNESS, Dro, inner_minimum
from fedef.problems.phase_retrieval import PhaseRetrieval
from fedef.vectors import IntVector

Array = NDArray[np.float64]


class Stack(Protocol):
    """A problem on one machine, evaluated at a (seeds, settings, d) array of models."""

    def gradient(self, x: Array, rows: IntVector | None) -> Array:
        """(seeds, settings, d): gradients on rows[s] (seeds, B) of each seed; None: on all rows."""

    def measure(self, x: Array) -> Array:
        """(seeds, settings): the paper's measure."""


class StackedPhaseRetrieval:
    """f, and half its gradient; see `PhaseRetrieval`."""

    def __init__(self, problem: PhaseRetrieval) -> None:
        self._a, self._y = problem.sensing, problem.measured

    def gradient(self, x: Array, rows: IntVector | None) -> Array:
        """mean_r ((a_r.z)^2 - y_r) (a_r.z) a_r."""
        a, y = _pick(self._a, self._y, rows)
        along = x @ a.swapaxes(-1, -2)
        return np.asarray(((along * along - y) * along) @ a / y.shape[-1])

    def measure(self, x: Array) -> Array:
        """f(z) = 1/2 mean_r (y_r - (a_r.z)^2)^2."""
        along = x @ self._a.T
        return np.asarray(np.square(along * along - self._y).mean(axis=-1) / 2)


class StackedDro:
    """Psi, and the gradient of L in (x, eta); see `Dro`."""

    def __init__(self, problem: Dro) -> None:
        self._a, self._b = problem.features, problem.targets
        self._shares = np.full(len(self._b), 1 / len(self._b))

    def gradient(self, x: Array, rows: IntVector | None) -> Array:
        """mean_r p_r (a_r.x - b_r) a_r + 0.1 mean(p) sign(x)/(1 + |x|), and 1 - mean(p)."""
        a, b = _pick(self._a, self._b, rows)
        weights, eta = x[..., :-1], x[..., -1:]
        residual = weights @ a.swapaxes(-1, -2) - b
        p = np.maximum((_losses(residual, weights) - eta) / (2 * ROBUSTNESS) + 1, 0)
        mean = p.mean(axis=-1, keepdims=True)
        slope = (p * residual) @ a / b.shape[-1]
        slope += PENALTY * mean * np.sign(weights) / (1 + np.abs(weights))
        return np.concatenate([slope, 1 - mean], axis=-1)

    def measure(self, x: Array) -> Array:
        """Psi(x) = min over eta of L(x, eta)."""
        weights = x[..., :-1]
        losses = _losses(weights @ self._a.T - self._b, weights)
        values = [inner_minimum(each, self._shares)[0] for each in losses.reshape(-1, len(self._b))]
        return np.array(values).reshape(x.shape[:-1])


def _losses(residual: Array, weights: Array) -> Array:
    """l_r(x) = (a_r.x - b_r)^2/2 + 0.1 sum_j log(1 + |x_j|)."""
    penalty = PENALTY * np.log1p(np.abs(weights)).sum(axis=-1, keepdims=True)
    return np.asarray(residual**2 / 2 + penalty)


def _pick(matrix: Array, vector: Array, rows: IntVector | None) -> tuple[Array, Array]:
    """(seeds, B, d) and (seeds, 1, B), or all rows as (m, d) and (m,)."""
    return (matrix, vector) if rows is None else (matrix[rows], vector[rows][:, None])
