"""Logistic regression with a nonconvex regularizer (arXiv:2106.05203, 2410.16871)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from fedef.config import Config
from fedef.datasets import BinaryData, binary_data
from fedef.errors import ConfigError
from fedef.partitions import partition_for
from fedef.problems.analytic import DealtRows, bounds_of
from fedef.problems.base import Evaluation, LocalResult, Smoothness
from fedef.problems.files import read_initial_point, read_npz, starting_point
from fedef.randomness import stream
from fedef.vectors import IntVector, Vector, norm


@dataclass(frozen=True)
class Logistic(DealtRows):
    """f_i(x) = mean_r log(1 + exp(-b_r a_r.x)) + lambda sum_j x_j^2/(1 + x_j^2), in float64.

    The mean is over the client's rows r. BLAS splits long products by its number of threads: for
    equal bits call it under ``threadpoolctl.threadpool_limits(1)``, as the engines do.
    """

    data: BinaryData
    """All rows, those of one client together, in the order of the clients."""
    bounds: tuple[int, ...]
    """(n + 1,): client i holds the rows bounds[i] to bounds[i + 1], maybe none."""
    lam: float
    """lambda."""
    x0: Vector
    """(d,) float64."""
    smoothness: Smoothness | None

    @property
    def name(self) -> str:
        """``logistic``."""
        return "logistic"

    def labels(self, client: int) -> IntVector:
        """(m_i,) int64, -1 or +1: the classes of the client's rows."""
        start, stop = self.bounds[client], self.bounds[client + 1]
        return self.data.labels[start:stop].astype(np.int64)

    def local(
        self, client: int, x: Vector, *, rows: IntVector | None = None, buffers: Vector
    ) -> LocalResult:
        """f_i and its gradient at x, on the client's `rows` (None: all of them)."""
        features, labels = self.held(client, rows, self.data.features, self.data.labels)
        if len(labels) == 0:
            return LocalResult(0.0, np.zeros(self.dimension), buffers.copy())
        loss, gradient = _weighted(features, labels, np.full(len(labels), 1 / len(labels)), x)
        penalty, slope = _regularizer(self.lam, x)
        return LocalResult(loss + penalty, gradient + slope, buffers.copy())

    def local_many(
        self, clients: Sequence[int], x: Vector, *, rows: Sequence[IntVector | None]
    ) -> list[LocalResult]:
        """`local` of each client, all rows of all of them in one product."""
        held = [
            np.arange(self.bounds[client], self.bounds[client + 1])
            if chosen is None
            else self.bounds[client] + chosen
            for client, chosen in zip(clients, rows, strict=True)
        ]
        sizes = np.array([len(part) for part in held])
        losses, gradients = np.zeros(len(held)), np.zeros((len(held), self.dimension))
        holds = np.flatnonzero(sizes)
        if holds.size:
            chosen = np.concatenate(held)
            features, labels = self.data.features[chosen], self.data.labels[chosen]
            margins = labels * (features @ x)
            starts, counts = np.cumsum(sizes)[holds] - sizes[holds], sizes[holds]
            penalty, slope = _regularizer(self.lam, x)
            summed = np.add.reduceat(np.logaddexp(0.0, -margins), starts)
            losses[holds] = summed / counts + penalty
            pulled = -(labels * expit(-margins))[:, None] * features
            gradients[holds] = np.add.reduceat(pulled, starts) / counts[:, None] + slope
        return [
            LocalResult(loss, gradient.copy(), np.empty(0))
            for loss, gradient in zip(losses.tolist(), gradients, strict=True)
        ]

    def evaluate(self, x: Vector, *, weights: Vector, buffers: Vector) -> Evaluation:
        """Value and gradient norm of f = sum_i w_i f_i, over the clients that have rows."""
        of_rows = self.row_weights(weights)
        loss, gradient = _weighted(self.data.features, self.data.labels, of_rows, x)
        holds = np.array(self.num_examples) > 0
        penalty, slope = _regularizer(self.lam * float(np.sum(weights[holds])), x)
        return Evaluation(loss + penalty, norm(gradient + slope), None)


def build(config: Config) -> Logistic:
    """Logistic regression on the configured data, dealt to the clients; x^0 ~ N(0, I).

    As many clients as rows: client i holds row i, as in the papers. An instance npz holds
    ``features`` (N, d), ``labels`` (N,) of -1 and +1, and maybe ``client`` (N,): who holds a row.

    Raises
    ------
    ConfigError
        If the data are unusable or cannot be dealt to num-clients clients.
    """
    if config.instance is None:
        data = binary_data(config.data, data_dir=config.data_dir, seed=config.seed)
        owner = None
    else:
        data, owner = _read_instance(config.instance, config.num_clients)
    parts = _deal(config, data, owner)
    order = np.concatenate(parts)
    data = BinaryData(data.features[order], data.labels[order])
    bounds = bounds_of(parts)
    weights = np.diff(bounds) / len(order)
    if config.weighting == "uniform":
        weights = np.full(len(parts), 1 / len(parts))
    drawn = stream(config.seed, "initial-point").standard_normal(data.features.shape[1:])
    given = None if config.initial_point is None else read_initial_point(config.initial_point)
    return Logistic(
        data,
        bounds,
        config.regularization,
        starting_point(given, drawn),
        smoothness(data.features, bounds, weights, config.regularization),
    )


def smoothness(
    features: NDArray[np.float64], bounds: tuple[int, ...], weights: Vector, lam: float
) -> Smoothness:
    """Constants of f = sum_i w_i f_i from the curvature bound a a^T/4 of one row's loss.

    L = lambda_max(sum_i w_i A_i^T A_i/(4 m_i)) + 2 lambda, L_i = lambda_max(A_i^T A_i)/(4 m_i) +
    2 lambda, L~ = sqrt(sum_i w_i L_i^2), L0 = 2 lambda + lambda sqrt(d) max||a||, L1 = max||a||
    (arXiv:2410.16871, App. G; equal weights there). L0 and L1 are proved for one row per client;
    for more rows they are the paper's formula taken as it stands.
    """
    dimension = features.shape[1]
    held = [
        (weight, features[start:stop])
        for weight, start, stop in zip(weights, bounds[:-1], bounds[1:], strict=True)
        if stop > start
    ]
    curvature = np.zeros((dimension, dimension))
    for weight, a in held:
        curvature += weight * (a.T @ a) / (4 * len(a))
    squares = sum(
        w * (float(np.linalg.norm(a, ord=2)) ** 2 / (4 * len(a)) + 2 * lam) ** 2 for w, a in held
    )
    longest = float(np.linalg.norm(features, axis=1).max())
    return Smoothness(
        lipschitz=float(np.linalg.eigvalsh(curvature)[-1]) + 2 * lam,
        client_lipschitz=sqrt(squares),
        l0=2 * lam + lam * sqrt(dimension) * longest,
        l1=longest,
    )


def _weighted(
    features: NDArray[np.float64], labels: NDArray[np.float64], weights: Vector, x: Vector
) -> tuple[float, NDArray[np.float64]]:
    """sum_r w_r log(1 + exp(-b_r a_r.x)) and its gradient; no overflow for any margin."""
    margins = labels * (features @ x)
    loss = float(np.sum(weights * np.logaddexp(0.0, -margins)))
    return loss, -((weights * labels * expit(-margins)) @ features)


def _regularizer(lam: float, x: Vector) -> tuple[float, NDArray[np.float64]]:
    """Value and gradient of lambda sum_j x_j^2/(1 + x_j^2)."""
    square = x * x
    value = lam * float(np.sum(square / (1 + square)))
    return value, np.asarray(2 * lam * x / (1 + square) ** 2, dtype=np.float64)


def _deal(config: Config, data: BinaryData, owner: IntVector | None) -> tuple[IntVector, ...]:
    if owner is not None:
        return tuple(np.flatnonzero(owner == client) for client in range(config.num_clients))
    if config.num_clients == len(data.labels):
        return tuple(np.array([row]) for row in range(config.num_clients))
    return tuple(partition_for(config, data.labels.astype(np.int64)))


def _read_instance(path: str, num_clients: int) -> tuple[BinaryData, IntVector | None]:
    arrays = read_npz("instance", path, ["features", "labels"], ["client"])
    features, labels, client = arrays["features"], arrays["labels"], arrays.get("client")
    if features.ndim != 2 or features.size == 0 or labels.shape != features.shape[:1]:
        raise ConfigError(
            f"instance: {path!r} must hold features (N, d) and labels (N,), "
            f"got shapes {features.shape} and {labels.shape}"
        )
    if not np.isin(labels, (-1, 1)).all():
        raise ConfigError(
            f"instance: labels of {path!r} must be -1 or +1, got {np.unique(labels)[:5].tolist()}"
        )
    data = BinaryData(features.astype(np.float64), labels.astype(np.float64))
    if client is None:
        return data, None
    if client.shape != labels.shape or client.dtype.kind not in "iu" or client.min() < 0:
        raise ConfigError(
            f"instance: client of {path!r} must be ({len(labels)},) integers from 0, "
            f"got shape {client.shape}, dtype {client.dtype}"
        )
    if int(client.max()) + 1 != num_clients:
        raise ConfigError(
            f"instance: {path!r} holds {int(client.max()) + 1} clients, "
            f"got num-clients={num_clients}; set num-clients={int(client.max()) + 1}"
        )
    return data, client.astype(np.int64)
