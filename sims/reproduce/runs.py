"""A run of the inline engine, measured at given rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedef.config import Config
from fedef.experiment import Experiment
from fedef.problems.base import Problem
from fedef.problems.registry import build_problem
from fedef.server_session import Diverged
from fedef.threads import single_threaded
from fedef.vectors import Vector
from sims.engine import InlineEngine

Measure = Callable[[Vector], float]
Stop = Callable[[float], bool]
P = TypeVar("P", bound=Problem)

TARGET = 1e-4
"""Of ||grad f||^2."""


def problem_of(kind: type[P], **settings: Any) -> P:
    """The problem of these settings (underscores for dashes), which is of that class."""
    problem = build_problem(_config(settings))
    assert isinstance(problem, kind)  # noqa: S101 - narrows the type for mypy
    return problem


def experiment_on(problem: Problem | None, /, **settings: Any) -> Experiment:
    """The experiment of these settings (underscores for dashes), on a problem that is at hand."""
    config = _config(settings)
    return Experiment.build(config) if problem is None else Experiment.of(config, problem)


def _config(settings: Mapping[str, Any]) -> Config:
    return Config.from_flat({key.replace("_", "-"): value for key, value in settings.items()})


def follow(
    experiment: Experiment, measure: Measure, at: Sequence[int], *, stop: Stop | None = None
) -> NDArray[np.float64]:
    """measure(x^k) for each k of `at`, increasing; inf from where the model is not finite.

    Parameters
    ----------
    stop
        Ends the run early once it holds for a measured value, which is then the last one.
    """
    values: list[float] = []
    with single_threaded(), np.errstate(over="ignore", invalid="ignore"):
        engine = InlineEngine(experiment)
        for k in at:
            try:
                while engine.server.round < k:
                    engine.round()
            except Diverged:
                break
            value = measure(engine.server.x)
            values.append(value if np.isfinite(value) else np.inf)
            if stop is not None and stop(values[-1]):
                return np.array(values)
    return np.array(values + [np.inf] * (len(at) - len(values)))


def squared_gradient(problem: Problem, weights: Sequence[float]) -> Measure:
    """The measure ||grad f(x)||^2."""
    shares = np.array(weights, dtype=np.float64) / np.sum(weights)
    buffers = problem.initial_buffers()

    def measure(x: Vector) -> float:
        norm = problem.evaluate(x, weights=shares, buffers=buffers).gradient_norm
        return np.nan if norm is None else norm**2

    return measure


def first_hit(values: NDArray[np.float64], target: float = TARGET) -> int | None:
    """Least k with values[k] below the target."""
    below = np.flatnonzero(values < target)
    return int(below[0]) if below.size else None


def thinned(length: int, points: int = 240) -> NDArray[np.int64]:
    """At most about `points` indices of 0 ... length - 1, both ends among them."""
    return np.unique(np.linspace(0, length - 1, min(points, length)).round().astype(np.int64))
