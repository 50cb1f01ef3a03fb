"""The method on one screen: two pure steps, and the papers' names as presets of their pieces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedef import theory
from fedef.compressors import Compressor, make_compressor
from fedef.config import Config
from fedef.directions import DIRECTIONS, Direction
from fedef.errors import ConfigError
from fedef.estimators import momentum
from fedef.problems.base import Problem, Smoothness
from fedef.schedules import Schedule, constant, horizon, inverse_sqrt
from fedef.updates import Update
from fedef.value_formats import FORMATS, ValueFormat, native_format
from fedef.vectors import Vector


def client_step(
    gradient: Vector,
    g: Vector,
    v: Vector | None,
    *,
    eta: float | None,
    compress: Callable[[Vector], Update],
) -> tuple[Update, Vector | None]:
    """V <- (1-eta) v + eta grad;  c = C(v - g)   (EF21-SGDM; eta None: EF21, v is the gradient).

    Without momentum `gradient` is overwritten by the difference, which spares a pass over it.
    The client adds what the server will decode of c to g once the server has acknowledged it.
    """
    if eta is None:
        return compress(np.subtract(gradient, g, out=gradient)), None
    v = momentum(v, gradient, eta)
    return compress(v - g), v


def server_step(x: Vector, g: Vector, *, step_size: float, direction: Direction) -> Vector:
    """X <- x - gamma_k direction(g), in float64, then in the dtype of x."""
    return (x.astype(np.float64) - step_size * direction(g)).astype(x.dtype)


@dataclass(frozen=True)
class Preset:
    """What a paper's name stands for."""

    momentum: bool
    direction: str


PRESETS = {
    "ef21": Preset(momentum=False, direction="plain"),
    "norm-ef21": Preset(momentum=False, direction="unit"),
    "ef21-sgdm": Preset(momentum=True, direction="plain"),
    "norm-ef21-sgdm": Preset(momentum=True, direction="unit"),
}


@dataclass(frozen=True)
class Method:
    """The pieces that both sides of a run agree on."""

    name: str
    eta: float | None
    """Momentum parameter in (0, 1]; None: the estimate is the fresh gradient."""
    local_batch_size: int
    """Rows per gradient; 0: all of the client's."""
    compressor: Compressor
    direction: Direction
    schedule: Schedule
    value_format: ValueFormat
    dense_start: bool
    """A client's first update is not compressed (g_i^{-1} = its first gradient)."""


def make_method(config: Config, problem: Problem) -> Method:
    """Build the method of a configuration for a problem.

    Raises
    ------
    ConfigError
        If k does not fit the dimension or the schedule needs constants that are unknown.
    """
    preset = PRESETS[config.method]
    compressor = make_compressor(
        config.compressor, problem.dimension, k=config.k, k_fraction=config.k_fraction
    )
    return Method(
        name=config.method,
        eta=config.momentum_eta if preset.momentum else None,
        local_batch_size=config.local_batch_size,
        compressor=compressor,
        direction=DIRECTIONS[preset.direction],
        schedule=_schedule(config, problem, compressor),
        value_format=native_format(problem.dtype)
        if config.value_format == "auto"
        else FORMATS[config.value_format],
        dense_start=config.init == "full",
    )


def _schedule(config: Config, problem: Problem, compressor: Compressor) -> Schedule:
    makers: dict[str, Callable[[], Schedule]] = {
        "constant": lambda: constant(config.step_size),
        "inv-sqrt": lambda: inverse_sqrt(config.step_size),
        "horizon": lambda: horizon(config.step_size, config.num_rounds),
        "theory": lambda: _theory(config, problem, compressor.alpha),
    }
    return makers[config.schedule]()


def _theory(config: Config, problem: Problem, alpha: float) -> Schedule:
    constants = problem.smoothness
    if constants is None:
        raise ConfigError(
            f"schedule=theory: the constants of problem={problem.name} are unknown; "
            "use schedule=inv-sqrt with a step-size"
        )
    if config.participation < 1.0 or config.local_batch_size:
        raise ConfigError(
            "schedule=theory: the theorems need participation=1 and local-batch-size=0 (exact "
            f"gradients), got {config.participation} and {config.local_batch_size}"
        )
    if config.method not in _THEORY:
        raise ConfigError(
            f"schedule=theory: known for {' and '.join(_THEORY)}, got method={config.method}; "
            "use schedule=constant or inv-sqrt with a step-size"
        )
    return _THEORY[config.method](constants, alpha, len(problem.num_examples), config.num_rounds)


def _ef21_theory(constants: Smoothness, alpha: float, num_clients: int, rounds: int) -> Schedule:
    return constant(theory.ef21_step_size(constants.lipschitz, constants.client_lipschitz, alpha))


def _norm_ef21_theory(
    constants: Smoothness, alpha: float, num_clients: int, rounds: int
) -> Schedule:
    if num_clients == 1:
        return constant(theory.norm_ef21_single_node_step(constants.l1, alpha))
    return horizon(theory.norm_ef21_gamma0(constants.l1, alpha), rounds)


_THEORY: dict[str, Callable[[Smoothness, float, int, int], Schedule]] = {
    "ef21": _ef21_theory,
    "norm-ef21": _norm_ef21_theory,
}
