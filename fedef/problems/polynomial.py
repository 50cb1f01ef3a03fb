"""A quartic whose gradient is (L0, L1)-smooth but not Lipschitz (arXiv:2410.16871, App. G.1)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from fedef.config import Config
from fedef.errors import ConfigError
from fedef.problems.analytic import Analytic
from fedef.problems.base import Evaluation, LocalResult, Smoothness
from fedef.problems.files import read_initial_point, read_npz, starting_point
from fedef.randomness import stream
from fedef.vectors import IntVector, Vector, norm

_DIMENSION = 4
_RADIUS = 20.0


@dataclass(frozen=True)
class Polynomial(Analytic):
    """f_i(x) = sum_j a_ij x_j^4 + lambda sum_j x_j^2/(1 + x_j^2), in float64."""

    a: NDArray[np.float64]
    """(n, d): a client's coefficients."""
    lam: float
    """lambda."""
    x0: Vector
    """(d,) float64."""
    smoothness: Smoothness | None

    @property
    def name(self) -> str:
        """``polynomial``."""
        return "polynomial"

    @cached_property
    def num_examples(self) -> tuple[int, ...]:
        """One per client: the clients have equal weights."""
        return (1,) * len(self.a)

    def local(
        self, client: int, x: Vector, *, rows: IntVector | None = None, buffers: Vector
    ) -> LocalResult:
        """f_i and its gradient at x; a client is one example, so `rows` makes no difference."""
        return LocalResult(*_value_and_gradient(self.a[client], self.lam, x), buffers.copy())

    def evaluate(self, x: Vector, *, weights: Vector, buffers: Vector) -> Evaluation:
        """Quality of f = sum_i w_i f_i, the same polynomial with a = sum_i w_i a_i."""
        mean_a = np.add.reduce(weights[:, None] * self.a, axis=0)
        loss, gradient = _value_and_gradient(mean_a, self.lam * float(np.sum(weights)), x)
        return Evaluation(loss, norm(gradient), None)


def build(config: Config) -> Polynomial:
    """The paper's polynomial, d = 4, shared by all clients; or the numbers of an instance file.

    The paper's: a_j = lambda/24 with lambda = L0/(9 d^2/(2 L1^2) + 2), x^0_j ~ N(20, 1). An
    instance npz holds ``a``, (d,) for all clients or (n, d), and ``lam``.

    Raises
    ------
    ConfigError
        If a file is unusable or disagrees with num-clients.
    """
    if config.instance is None:
        lam = config.l0 / (9 * _DIMENSION**2 / (2 * config.l1**2) + 2)
        a = np.full((config.num_clients, _DIMENSION), lam / 24)
        constants = _smoothness(lam, l0=config.l0, l1=config.l1)
    else:
        a, lam = _read_instance(config.instance, config.num_clients)
        constants = None
    drawn = stream(config.seed, "initial-point").normal(_RADIUS, 1.0, size=a.shape[1])
    given = None if config.initial_point is None else read_initial_point(config.initial_point)
    return Polynomial(a, lam, starting_point(given, drawn), constants)


def _value_and_gradient(
    a: NDArray[np.float64], lam: float, x: Vector
) -> tuple[float, NDArray[np.float64]]:
    square = x * x
    loss = np.sum(a * square**2) + lam * np.sum(square / (1 + square))
    gradient = 4 * a * square * x + lam * 2 * x / (1 + square) ** 2
    return float(loss), gradient


def _smoothness(lam: float, *, l0: float, l1: float) -> Smoothness:
    """L = lambda sqrt(d) D^2/2 + 2 lambda on |x_j| <= D = 20  (arXiv:2410.16871, App. G.1).

    The largest second derivative there, lambda D^2/2 + 2 lambda, is smaller; x^0 may lie outside.
    """
    lipschitz = lam * sqrt(_DIMENSION) * _RADIUS**2 / 2 + 2 * lam
    return Smoothness(lipschitz, lipschitz, l0, l1)


def _read_instance(path: str, num_clients: int) -> tuple[NDArray[np.float64], float]:
    arrays = read_npz("instance", path, ["a", "lam"])
    a, lam = arrays["a"].astype(np.float64), arrays["lam"]
    if a.ndim not in (1, 2) or a.shape[-1] == 0 or lam.size != 1:
        raise ConfigError(
            f"instance: {path!r} must hold a of shape (d,) or (n, d) and a scalar lam, "
            f"got shapes {a.shape} and {lam.shape}"
        )
    if not lam.item() >= 0:
        raise ConfigError(
            f"instance: lam of {path!r} weighs a regularizer and must not be negative, got "
            f"{lam.item()}; use lam=0 for none"
        )
    if a.ndim == 2 and len(a) != num_clients:
        raise ConfigError(
            f"instance: {path!r} holds {len(a)} clients, got num-clients={num_clients}; "
            f"set num-clients={len(a)}"
        )
    return np.ascontiguousarray(np.broadcast_to(a, (num_clients, a.shape[-1]))), float(lam.item())
