"""Three ways to learn ||grad f(x)|| from independent gradients of heterogeneous clients.

A linear sketch from everybody, the mean of everybody's norms, and the exact mean of an independent
cohort of some clients. Digits-softmax, 10 clients, Dirichlet 0.05, full local gradients, so that
the truth is known. ``python -m sims.independent_norms`` prints the table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from fedef.config import Config
from fedef.experiment import Experiment
from fedef.participation import participants
from fedef.randomness import stream_seed
from fedef.sketch import sketch, squared_norm
from fedef.vectors import norm
from sims.engine import InlineEngine

SETTINGS = {
    "problem": "digits-softmax",
    "dirichlet-alpha": 0.05,
    "method": "norm-ef21",
    "k-fraction": 0.1,
    "schedule": "constant",
    "step-size": 0.2,
}
COHORT = 0.3
SKETCH_SIZE = 256


@dataclass(frozen=True)
class Row:
    """One way at one point of a run."""

    rounds: int
    """Rounds of ||EF21|| before."""
    way: str
    mean_ratio: float
    """Mean of estimate over truth; 1: unbiased."""
    rms_error: float
    """Root mean square of estimate over truth, less one."""
    client_bytes: int
    """Payload of one client, header included."""
    n: int
    """Draws."""


def compare(*, draws: int = 400, seed: int = 0, after: tuple[int, ...] = (0, 50)) -> list[Row]:
    """Measure every way at every point, over `draws` seeds of the sketch and of the cohort."""
    config = Config.from_flat({**SETTINGS, "seed": seed})
    engine = InlineEngine(Experiment.build(config))
    rows: list[Row] = []
    for rounds in after:
        while engine.server.round < rounds:
            engine.round()
        rows += _at(engine, draws)
    return rows


def _at(engine: InlineEngine, draws: int) -> list[Row]:
    experiment = engine.experiment
    weights = np.array(experiment.weights) / sum(experiment.weights)
    gradients = np.array(
        [
            experiment.problem.local(i, engine.server.x, buffers=np.empty(0, np.float32)).gradient
            for i in range(experiment.num_clients)
        ],
        dtype=np.float64,
    )
    truth = norm(weights @ gradients)
    seed, d = experiment.config.seed, gradients.shape[1]
    sketched = [
        _sketched(gradients, weights, stream_seed(seed, "compare", t)) for t in range(draws)
    ]
    averaged = [float(weights @ np.array([norm(g) for g in gradients]))]
    cohorts = [_cohort(gradients, weights, seed, t) for t in range(1, draws + 1)]
    found = (
        (f"sketch of {SKETCH_SIZE} numbers", sketched, 24 + 4 * SKETCH_SIZE),
        ("mean of the clients' norms", averaged, 24 + 8),
        (f"independent cohort, {COHORT:.0%} of the clients", cohorts, 24 + 4 * d),
    )
    return [_row(engine.server.round, way, np.array(e) / truth, size) for way, e, size in found]


def _sketched(gradients: NDArray[np.float64], weights: NDArray[np.float64], seed: int) -> float:
    parts = np.array([sketch(g, seed=seed, size=SKETCH_SIZE) for g in gradients])
    return float(np.sqrt(squared_norm(weights @ parts)))


def _cohort(
    gradients: NDArray[np.float64], weights: NDArray[np.float64], seed: int, draw: int
) -> float:
    members = list(participants(seed, draw, len(weights), COHORT))
    share = weights[members] / weights[members].sum()
    return norm(share @ gradients[members])


def _row(rounds: int, way: str, ratios: NDArray[np.float64], client_bytes: int) -> Row:
    rms = float(np.sqrt(np.mean((ratios - 1) ** 2)))
    return Row(rounds, way, float(ratios.mean()), rms, client_bytes, ratios.size)


def main() -> None:
    """Print the table."""
    table = Table("rounds before", "way", "mean of estimate/truth", "rms error", "bytes", "n")
    for row in compare():
        numbers = (f"{row.mean_ratio:.3f}", f"{row.rms_error:.3f}", str(row.client_bytes))
        table.add_row(str(row.rounds), row.way, *numbers, str(row.n))
    Console().print(table)


if __name__ == "__main__":
    main()
