"""Chi-square distributionally robust regression on Life Expectancy (arXiv:2410.14054)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedef.config import Config
from fedef.datasets import find_file
from fedef.errors import ConfigError
from fedef.partitions import partition_for
from fedef.problems.analytic import DealtRows, bounds_of
from fedef.problems.base import Evaluation, LocalResult, Smoothness
from fedef.problems.files import read_initial_point, starting_point
from fedef.problems.life_expectancy import FILE, LifeExpectancy, read_life_expectancy
from fedef.vectors import IntVector, Vector, norm

PUBLISHED_SEED = 1
"""Of the published code; the paper's main figure, tau and small-batch figures have 2024."""
ROBUSTNESS = 0.01
"""lambda: the smaller, the fewer rows count."""
PENALTY = 0.1
"""Weight of sum_j log(1 + |x_j|)."""
_HELD_OUT = 100
_ETA0 = 0.1
_WARM_STEPS = 30
_WARM_STEP_SIZE = 0.2


@dataclass(frozen=True)
class Instance:
    """The numbers of one DRO problem."""

    features: NDArray[np.float64]
    """(2313, 34): a_r."""
    targets: NDArray[np.float64]
    """(2313,): b_r."""
    country: IntVector
    """(2313,): who a row is about."""
    start: NDArray[np.float64]
    """(35,): x0 and eta0, where the deterministic methods start."""


@dataclass(frozen=True)
class Dro(DealtRows):
    """L_i(x, eta) = lambda mean_r psi*((l_r(x) - eta)/lambda) + eta over the client's rows r.

    psi*(t) = max(t/2 + 1, 0)^2 - 1, l_r(x) = (a_r.x - b_r)^2/2 + 0.1 sum_j log(1 + |x_j|),
    lambda = 0.01, float64 (arXiv:2410.14054, code). The variable is (x, eta), eta last. The
    derivative of |x_j| at 0 is 0. The paper's measure is Psi(x) = min_eta L(x, eta), see `psi`.

    BLAS splits long products by its number of threads: for equal bits call it under
    ``threadpoolctl.threadpool_limits(1)``, as the engines do.
    """

    features: NDArray[np.float64]
    """(N, 34): the a_r, those of one client together, in the order of the clients."""
    targets: NDArray[np.float64]
    """(N,): the b_r."""
    bounds: tuple[int, ...]
    """(n + 1,): client i holds the rows bounds[i] to bounds[i + 1], maybe none."""
    x0: Vector
    """(35,) float64: x and eta."""

    @property
    def name(self) -> str:
        """``dro``."""
        return "dro"

    @property
    def smoothness(self) -> Smoothness | None:
        """None: the gradient grows with the loss, and the paper states no constants."""
        return None

    def named_arrays(self, x: Vector, buffers: Vector) -> dict[str, Vector]:
        """Return the model by its parts' names."""
        return {"x": x[:-1], "eta": x[-1:]}

    def local(
        self, client: int, x: Vector, *, rows: IntVector | None = None, buffers: Vector
    ) -> LocalResult:
        """L_i and its gradient at (x, eta), on the client's `rows` (None: all of them)."""
        a, b = self.held(client, rows, self.features, self.targets)
        if len(b) == 0:
            return LocalResult(0.0, np.zeros(self.dimension), buffers.copy())
        weights = np.full(len(b), 1 / len(b))
        return LocalResult(*value_and_gradient(a, b, weights, x), buffers.copy())

    def evaluate(self, x: Vector, *, weights: Vector, buffers: Vector) -> Evaluation:
        """L = sum_i w_i L_i and its gradient's norm, over the clients that have rows."""
        of_rows = self.row_weights(weights)
        loss, gradient = value_and_gradient(self.features, self.targets, of_rows, x)
        return Evaluation(loss, norm(gradient), None)

    def psi(self, x: Vector, *, weights: Vector) -> float:
        """Psi = min_eta sum_i w_i L_i(x, eta): the robust loss of x; eta's own value is not used.

        Parameters
        ----------
        x
            (35,): x and eta.
        weights
            (n,) of the clients.
        """
        of_rows = self.row_weights(weights)
        losses = row_losses(self.features, self.targets, x[:-1])
        total = float(np.sum(of_rows))
        return total * inner_minimum(losses, of_rows / total)[0]


def row_losses(a: NDArray[np.float64], b: NDArray[np.float64], x: Vector) -> NDArray[np.float64]:
    """l_r(x) = (a_r.x - b_r)^2/2 + 0.1 sum_j log(1 + |x_j|), the penalty in every row's loss."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray((a @ x - b) ** 2 / 2 + PENALTY * np.sum(np.log1p(np.abs(x))))


def value_and_gradient(
    a: NDArray[np.float64], b: NDArray[np.float64], weights: Vector, variable: Vector
) -> tuple[float, NDArray[np.float64]]:
    """L and its gradient at (x, eta) for rows of weights w_r, p_r = max((l_r-eta)/(2 lambda)+1, 0).

    grad_x = sum_r w_r p_r (a_r.x - b_r) a_r + 0.1 sum_r w_r p_r sign(x)/(1 + |x|),
    grad_eta = sum_r w_r (1 - p_r)  (arXiv:2410.14054, code). A diverging run ends in infinities or
    NaN without warnings; the sessions refuse those.
    """
    x, eta = variable[:-1], variable[-1]
    total = np.sum(weights)
    with np.errstate(over="ignore", invalid="ignore"):
        p = np.maximum((row_losses(a, b, x) - eta) / (2 * ROBUSTNESS) + 1, 0)
        loss = ROBUSTNESS * (np.sum(weights * p * p) - total) + total * eta
        pulled = weights * p
        slope_x = (pulled * (a @ x - b)) @ a + PENALTY * np.sum(pulled) * np.sign(x) / (
            1 + np.abs(x)
        )
    return float(loss), np.append(slope_x, total - np.sum(pulled))


def inner_minimum(losses: Vector, weights: Vector) -> tuple[float, float]:
    """Minimum over eta of lambda sum_r w_r psi*((l_r - eta)/lambda) + eta, and its eta; exact.

    With the losses descending and k of them active (p_r > 0), W_k = sum_{r<=k} w_r, stationarity
    gives eta = (sum_{r<=k} w_r l_r - 2 lambda (1 - W_k))/W_k; k is the smallest one with
    eta - 2 lambda >= l_{k+1}. The published code descends along eta instead, to within 2e-13.

    Parameters
    ----------
    losses
        (N,): l_r.
    weights
        (N,): w_r >= 0, sum 1.

    Returns
    -------
    (value, eta)
        NaN both where a loss is not finite.
    """
    counted = np.flatnonzero(weights > 0)
    order = counted[np.argsort(-losses[counted], kind="stable")]
    w, descending = weights[order], losses[order]
    if not np.isfinite(descending).all():
        return float("nan"), float("nan")
    mass = np.cumsum(w)
    eta = (np.cumsum(w * descending) - 2 * ROBUSTNESS * (1 - mass)) / mass
    following = np.append(descending[1:], -np.inf)
    best = float(eta[np.argmax(eta - 2 * ROBUSTNESS >= following)])
    with np.errstate(over="ignore"):
        p = np.maximum((descending - best) / (2 * ROBUSTNESS) + 1, 0)
        return float(ROBUSTNESS * (np.sum(w * p * p) - 1) + best), best


def make_instance(data: LifeExpectancy, seed: int) -> Instance:
    """Draw b = target + N(0, 1), x0 ~ N(0, I), eta0 = 0.1; the last 100 rows are left out.

    Both draws start from the same seed, so x0 equals the first 34 label noises, and the rows left
    out, all of the year 2000, are never used (arXiv:2410.14054, code). NumPy's legacy generator,
    because the published numbers are its draws: seed 1 in the repository, 2024 in the main figure.
    """
    noise = np.random.RandomState(seed).standard_normal(len(data.target))
    x0 = np.random.RandomState(seed).standard_normal(data.features.shape[1])
    return Instance(
        data.features[:-_HELD_OUT],
        (data.target + noise)[:-_HELD_OUT],
        data.country[:-_HELD_OUT],
        np.append(x0, _ETA0),
    )


def warm_start(instance: Instance) -> Vector:
    """(x1, eta1): 30 steps of -0.2 grad L/||grad L||, where the paper's stochastic methods start.

    Normalized over x and eta together (arXiv:2410.14054, code).
    """
    rows = len(instance.targets)
    weights = np.full(rows, 1 / rows)
    variable = instance.start
    for _ in range(_WARM_STEPS):
        _, g = value_and_gradient(instance.features, instance.targets, weights, variable)
        variable = variable - _WARM_STEP_SIZE * g / norm(g)
    return variable


def build(config: Config) -> Dro:
    """The instance of instance-seed (1, the repository's), its rows dealt to the clients.

    partitioner=natural gives a client whole countries: neighbours in the file, and one each where
    num-clients is the number of countries that have rows. For other partitioners a row's class is
    its country, and `contiguous` deals by year. With one client the rows keep their order: row r is
    row r of the published code.

    Raises
    ------
    ConfigError
        If an instance file is given, the table is missing or is not the published one, or its rows
        cannot be dealt to num-clients clients.
    """
    if config.instance is not None:
        raise ConfigError(
            f"instance: dro takes none, got {config.instance!r}; "
            "use instance-seed for another instance"
        )
    seed = PUBLISHED_SEED if config.instance_seed is None else config.instance_seed
    data = read_life_expectancy(find_file(FILE, config.data_dir))
    instance = make_instance(data, seed)
    parts = _deal(config, instance.country)
    order = np.concatenate(parts)
    start = warm_start(instance) if config.warm_start else instance.start
    given = None if config.initial_point is None else read_initial_point(config.initial_point)
    return Dro(
        instance.features[order],
        instance.targets[order],
        bounds_of(parts),
        starting_point(given, start),
    )


def _deal(config: Config, country: IntVector) -> tuple[IntVector, ...]:
    if config.num_clients == 1:
        return (np.arange(len(country)),)
    if config.partitioner != "natural":
        return tuple(partition_for(config, country, country))
    present = np.unique(country)
    if config.num_clients > len(present):
        raise ConfigError(
            f"num-clients: dro has {len(present)} countries to give to clients, "
            f"got {config.num_clients}; use fewer clients or another partitioner than natural"
        )
    groups = np.array_split(present, config.num_clients)
    return tuple(np.flatnonzero(np.isin(country, group)) for group in groups)
