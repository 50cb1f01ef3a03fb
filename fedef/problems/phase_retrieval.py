"""Phase retrieval: a real signal from the squares of linear measurements (arXiv:2410.14054)."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from fedef.config import Config
from fedef.errors import ConfigError
from fedef.partitions import partition_for
from fedef.problems.analytic import DealtRows, bounds_of
from fedef.problems.base import Evaluation, LocalResult, Smoothness
from fedef.problems.files import read_initial_point, starting_point
from fedef.vectors import IntVector, Vector, norm

PUBLISHED_SEED = 2024
_MEASUREMENTS = 3000
_DIMENSION = 100
_CLASSES = 10


@dataclass(frozen=True)
class Instance:
    """The numbers of one phase retrieval problem."""

    sensing: NDArray[np.float64]
    """(m, d): a_r."""
    measured: NDArray[np.float64]
    """(m,): y_r; negative where the noise says so."""
    truth: NDArray[np.float64]
    """(d,): z*, from which y was made; noise moves the minimizer a little away from it."""
    start: NDArray[np.float64]
    """(d,): z0, where the deterministic methods start."""


@dataclass(frozen=True)
class PhaseRetrieval(DealtRows):
    """f_i(z) = 1/2 mean_r (y_r - (a_r.z)^2)^2 over the client's measurements r, in float64.

    ``gradient`` and ``gradient_norm`` are *half* of f's: mean_r ((a_r.z)^2 - y_r) (a_r.z) a_r, the
    published code's direction (left from the complex case), so that its step sizes, thresholds and
    delta hold as printed (arXiv:2410.14054, code). With the whole gradient they become
    gamma/2^(1-beta), 2 tau and 2 delta.

    BLAS splits long products by its number of threads: for equal bits call it under
    ``threadpoolctl.threadpool_limits(1)``, as the engines do.
    """

    sensing: NDArray[np.float64]
    """(m, d): the a_r, those of one client together, in the order of the clients."""
    measured: NDArray[np.float64]
    """(m,): the y_r."""
    bounds: tuple[int, ...]
    """(n + 1,): client i holds the rows bounds[i] to bounds[i + 1], maybe none."""
    x0: Vector
    """(d,) float64."""

    @property
    def name(self) -> str:
        """``phase-retrieval``."""
        return "phase-retrieval"

    @property
    def smoothness(self) -> Smoothness | None:
        """None: the gradient grows like ||z||^3, and the paper states no constants."""
        return None

    def named_arrays(self, x: Vector, buffers: Vector) -> dict[str, Vector]:
        """Return the model by its parts' names."""
        return {"z": x}

    def local(
        self, client: int, x: Vector, *, rows: IntVector | None = None, buffers: Vector
    ) -> LocalResult:
        """f_i and half its gradient at x, on the client's `rows` (None: all of them)."""
        a, y = self.held(client, rows, self.sensing, self.measured)
        if len(y) == 0:
            return LocalResult(0.0, np.zeros(self.dimension), buffers.copy())
        weights = np.full(len(y), 1 / len(y))
        return LocalResult(*value_and_direction(a, y, weights, x), buffers.copy())

    def evaluate(self, x: Vector, *, weights: Vector, buffers: Vector) -> Evaluation:
        """Value of f = sum_i w_i f_i and *half* its gradient's norm, without the empty clients."""
        of_rows = self.row_weights(weights)
        loss, direction = value_and_direction(self.sensing, self.measured, of_rows, x)
        return Evaluation(loss, norm(direction), None)


def make_instance(seed: int) -> Instance:
    """Draw m = 3000 measurements in d = 100 as the published code does.

    z* ~ N(0, 1/2)^d, then a_r ~ N(0, 1/2)^d, then y_r = (a_r.z*)^2 + N(0, 4^2), then
    z0 ~ 1 + N(0, 6)^d (arXiv:2410.14054, code); 1/2 and 6 are variances. NumPy's legacy generator,
    because the published numbers are its draws; seed 2024 gives the published instance.
    """
    draws = np.random.RandomState(seed)
    truth = draws.normal(0.0, sqrt(1 / 2), _DIMENSION)
    sensing = draws.normal(0.0, sqrt(1 / 2), (_MEASUREMENTS, _DIMENSION))
    measured = (sensing @ truth) ** 2 + draws.normal(0.0, 4.0, _MEASUREMENTS)
    start = draws.normal(0.0, sqrt(6), _DIMENSION) + 1
    return Instance(sensing, measured, truth, start)


def warm_start(instance: Instance) -> Vector:
    """z1 = z0 - 0.1 g/||g||^(2/3), g = grad f(z0)/2: where the paper's stochastic methods start.

    One AN-GD step with beta = 2/3 (arXiv:2410.14054, code).
    """
    m = len(instance.measured)
    z0 = instance.start
    _, g = value_and_direction(instance.sensing, instance.measured, np.full(m, 1 / m), z0)
    return np.asarray(z0 - 0.1 * g / norm(g) ** (2 / 3))


def value_and_direction(
    a: NDArray[np.float64], y: NDArray[np.float64], weights: Vector, z: Vector
) -> tuple[float, NDArray[np.float64]]:
    """Value of f = 1/2 sum_r w_r (y_r - (a_r.z)^2)^2, and half its gradient.

    grad f/2 = sum_r w_r ((a_r.z)^2 - y_r) (a_r.z) a_r  (arXiv:2410.14054, code).
    A diverging run ends in infinities or NaN without warnings; the sessions refuse those.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        along = a @ z
        residual = along * along - y
        loss = float(np.sum(weights * residual**2)) / 2
        return loss, (weights * residual * along) @ a


def build(config: Config) -> PhaseRetrieval:
    """The instance of instance-seed (2024, the published one), its measurements dealt to clients.

    Partitioners by class see ten classes of equal size by y, the smallest measurements first. With
    one client the rows keep their order: row r is measurement r of the published code.

    Raises
    ------
    ConfigError
        If an instance file is given, or the measurements cannot be dealt to num-clients clients.
    """
    if config.instance is not None:
        raise ConfigError(
            f"instance: phase-retrieval takes none, got {config.instance!r}; "
            "use instance-seed for another instance"
        )
    seed = PUBLISHED_SEED if config.instance_seed is None else config.instance_seed
    instance = make_instance(seed)
    parts = _deal(config, instance.measured)
    order = np.concatenate(parts)
    start = warm_start(instance) if config.warm_start else instance.start
    given = None if config.initial_point is None else read_initial_point(config.initial_point)
    return PhaseRetrieval(
        instance.sensing[order],
        instance.measured[order],
        bounds_of(parts),
        starting_point(given, start),
    )


def _deal(config: Config, measured: NDArray[np.float64]) -> tuple[IntVector, ...]:
    if config.num_clients == 1:
        return (np.arange(len(measured)),)
    rank = np.argsort(np.argsort(measured, kind="stable"), kind="stable")
    return tuple(partition_for(config, rank * _CLASSES // len(measured)))
