"""How different the clients are: measured, not read off a Dirichlet parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fedef.problems.base import LocalResult, Problem
from fedef.vectors import IntVector, Vector


@runtime_checkable
class Labelled(Protocol):
    """A problem whose examples may have classes."""

    def labels(self, client: int) -> IntVector | None:
        """(m_i,) classes of the client's examples; None where the targets are no classes."""


@runtime_checkable
class EvaluatesClients(Protocol):
    """A problem that trains otherwise than it evaluates (batch norm, a subset of the rows)."""

    def evaluate_client(self, client: int, x: Vector, *, buffers: Vector) -> LocalResult:
        """f_i and its gradient as `Problem.evaluate` sees them."""


@dataclass(frozen=True)
class LabelTable:
    """Who holds how many examples of which class."""

    classes: IntVector
    """(C,) the classes that anybody holds, ascending."""
    counts: NDArray[np.int64]
    """(n, C) examples."""

    def distances(self) -> NDArray[np.float64]:
        """(n,) total variation between a client's classes and all clients'; NaN without examples.

        TV(p_i, p) = 1/2 sum_c |p_i(c) - p(c)|, p the classes of all examples together: 0 for equal
        ones, below 1 always.
        """
        sizes = self.counts.sum(axis=1, keepdims=True)
        shares = np.where(sizes > 0, self.counts / np.maximum(sizes, 1), np.nan)
        everybody = self.counts.sum(axis=0) / sizes.sum()
        return np.asarray(np.abs(shares - everybody).sum(axis=1) / 2)

    def distance(self, weights: Sequence[float]) -> float:
        """Weighted mean of `distances`; those without examples are left out.

        Parameters
        ----------
        weights
            (n,) not negative.
        """
        distances = self.distances()
        holds = np.isfinite(distances)
        return float(np.average(distances[holds], weights=np.asarray(weights)[holds]))


def label_table(problem: Problem) -> LabelTable | None:
    """The clients' classes; None where the problem has none."""
    if not isinstance(problem, Labelled):
        return None
    labels = [problem.labels(client) for client in range(len(problem.num_examples))]
    known = [of_client for of_client in labels if of_client is not None]
    if len(known) != len(labels):
        return None
    classes, index = np.unique(np.concatenate(known), return_inverse=True)
    owner = np.repeat(np.arange(len(known)), [len(of_client) for of_client in known])
    counts = np.zeros((len(known), len(classes)), dtype=np.int64)
    np.add.at(counts, (owner, index), 1)
    return LabelTable(classes, counts)


def gradient_dissimilarity(
    problem: Problem, x: Vector, *, weights: Sequence[float], buffers: Vector
) -> float:
    """zeta^2 = sum_i w_i ||grad f_i(x) - grad f(x)||^2, f = sum_i w_i f_i.

    One full gradient of every client and O(d) memory: West's weighted update (CACM 22(9), 1979),
    M2 <- M2 + w (1 - w/W) ||grad f_i - mean||^2 in float64, which is never negative and exactly 0
    for copies of one client. A client without examples has f_i = 0, as in the objective.

    Parameters
    ----------
    x
        (d,).
    weights
        (n,) not negative; they are scaled to sum to one.
    buffers
        (b,) of the server's model.

    Returns
    -------
    zeta^2, maybe not finite where a gradient is not.
    """
    gradient = problem.evaluate_client if isinstance(problem, EvaluatesClients) else problem.local
    mean = np.zeros(problem.dimension)
    total = spread = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for client, weight in enumerate(weights):
            if weight == 0:
                continue
            total += weight
            away = gradient(client, x, buffers=buffers).gradient.astype(np.float64) - mean
            spread += weight * (1 - weight / total) * float(away @ away)
            mean += (weight / total) * away
    return spread / total
