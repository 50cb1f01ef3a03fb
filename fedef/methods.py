"""A method: five independent choices, and the papers' names as presets of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import numpy as np

from fedef import theory
from fedef.auto_step import AutoStep
from fedef.compressors import Compressor, Identity, make_compressor
from fedef.config import Config
from fedef.directions import Direction
from fedef.errors import ConfigError
from fedef.estimators import Estimator, Fresh, Momentum, Spider
from fedef.local_steps import LocalSteps
from fedef.problems.base import Problem, Smoothness
from fedef.sampling import Sampler, StreamSampler, read_replay
from fedef.schedules import Schedule, constant, horizon, inverse_sqrt
from fedef.steppers import (
    AdaGradNormStep,
    AdamStep,
    AutoScheduledStep,
    BoundedStep,
    ScheduledStep,
    Stepper,
)
from fedef.summaries import NormSummary, SketchSummary, Summary
from fedef.updates import Update
from fedef.value_formats import FORMATS, ValueFormat, native_format
from fedef.vectors import Vector


def client_step(
    estimate: Vector, g: Vector | None, *, compress: Callable[[Vector], Update]
) -> Update:
    """C = C(v - g)   (EF21, arXiv:2106.05203, Alg. 1); without error feedback (g None) c = C(v).

    The client adds what the server will decode of c to g once the server has acknowledged it.
    `estimate` (v) is overwritten by the difference, which spares a pass over memory.
    """
    return compress(estimate if g is None else np.subtract(estimate, g, out=estimate))


@dataclass(frozen=True)
class Preset:
    """What a name stands for."""

    estimator: str
    """fresh, momentum or spider."""
    feedback: str
    """ef21, or none: the server uses the participants' estimates of this round alone."""
    direction: str
    """plain, unit, power, clip or independent; or the server's own rule adam, adagrad-norm."""
    beta: float = 1.0
    """The default of key beta."""


PRESETS = {
    "ef21": Preset("fresh", "ef21", "plain"),
    "norm-ef21": Preset("fresh", "ef21", "unit"),
    "ef21-sgdm": Preset("momentum", "ef21", "plain"),
    "norm-ef21-sgdm": Preset("momentum", "ef21", "unit"),
    "gd": Preset("fresh", "none", "plain"),
    "sgd": Preset("fresh", "none", "plain"),
    "an-gd": Preset("fresh", "none", "power", beta=2 / 3),
    "clip-gd": Preset("fresh", "none", "clip"),
    "clip-sgd": Preset("fresh", "none", "clip"),
    "nsgd": Preset("fresh", "none", "power"),
    "nsgdm": Preset("momentum", "none", "power"),
    "spider": Preset("spider", "none", "power"),
    "ian-sgd": Preset("fresh", "none", "independent", beta=2 / 3),
    "adam": Preset("fresh", "none", "adam"),
    "adagrad-norm": Preset("fresh", "none", "adagrad-norm"),
    "fedavg": Preset("fresh", "none", "plain"),
}


@dataclass(frozen=True)
class Method:
    """The pieces that both sides of a run agree on."""

    name: str
    estimator: Estimator
    local_steps: LocalSteps
    """What stands in the place of a gradient."""
    sampler: Sampler
    feedback: bool
    """Whether clients keep g_i and the server the mean of all of them (EF21)."""
    compressor: Compressor
    stepper: Stepper
    value_format: ValueFormat
    dense_start: bool
    """A client's first update is not compressed (g_i^{-1} = its first gradient)."""
    summary: Summary | None = None
    """How clients tell the norm of an independent gradient; None: they do not compute one."""
    weight_decay: float = 0.0
    """lambda of lambda x, which is added to every gradient."""

    def compressor_of(self, *, acked: int, dense: int) -> Compressor:
        """Whose update answers a task (see `Task.acked` and `Task.dense`), on both sides."""
        if dense or (self.dense_start and acked == 0):
            return Identity(self.compressor.dimension)
        return self.compressor


def make_method(config: Config, problem: Problem) -> Method:
    """Build the method of a configuration for a problem.

    Raises
    ------
    ConfigError
        If k does not fit the dimension, the schedule needs constants that are unknown, or pieces
        do not fit each other.
    """
    preset = PRESETS[config.method]
    feedback = config.feedback or preset.feedback
    compressor = make_compressor(
        config.compressor or ("top-k" if feedback == "ef21" else "identity"),
        problem.dimension,
        k=config.k,
        k_fraction=config.k_fraction,
    )
    if config.method == "gd" and config.local_batch_size:
        raise ConfigError(
            f"method=gd takes all rows, got local-batch-size={config.local_batch_size}; use sgd"
        )
    direction = _direction(config, preset)
    return Method(
        name=config.method,
        estimator=_estimator(config, preset),
        local_steps=_local_steps(config, preset, problem, compressor),
        sampler=_sampler(config),
        feedback=feedback == "ef21",
        compressor=compressor,
        stepper=_stepper(config, preset, problem, compressor, direction),
        value_format=native_format(problem.dtype)
        if config.value_format == "auto"
        else FORMATS[config.value_format],
        dense_start=config.init == "full" and feedback == "ef21",
        summary=_summary(config, len(problem.num_examples)) if direction.independent else None,
        weight_decay=config.weight_decay,
    )


def _estimator(config: Config, preset: Preset) -> Estimator:
    makers: dict[str, Callable[[], Estimator]] = {
        "fresh": Fresh,
        "momentum": lambda: Momentum(config.momentum_eta),
        "spider": lambda: Spider(config.spider_period),
    }
    return makers[preset.estimator]()


def _local_steps(
    config: Config, preset: Preset, problem: Problem, compressor: Compressor
) -> LocalSteps:
    """Local steps by `local-step-size`; those of fedavg by the run's own schedule without it."""
    if config.local_steps > 1 and (preset.estimator == "spider" or config.replay is not None):
        raise ConfigError(
            f"local-steps: method=spider and replay know one step a round, got "
            f"{config.local_steps}; set local-steps=1"
        )
    fedavg, given = config.method == "fedavg", config.local_step_size
    if given is not None:
        return LocalSteps(config.local_steps, constant(given), as_change=fedavg)
    if config.local_steps == 1:
        return LocalSteps(1, constant(0.0))
    if not fedavg or config.schedule == "auto":
        raise ConfigError(
            f"local-step-size: needed with local-steps={config.local_steps}, method={config.method}"
            f" and schedule={config.schedule}; set it, for example local-step-size=0.1"
        )
    return LocalSteps(config.local_steps, _schedule(config, problem, compressor))


def _sampler(config: Config) -> Sampler:
    if config.replay is not None:
        return read_replay(config.replay)
    sizes = {"minibatch": config.local_batch_size, "independent": config.independent_batch_size}
    return StreamSampler(config.seed, sizes)


def _summary(config: Config, num_clients: int) -> Summary:
    kind = config.independent_summary or ("norm" if num_clients == 1 else "sketch")
    if kind == "norm":
        return NormSummary()
    return SketchSummary(config.seed, config.sketch_size)


def _direction(config: Config, preset: Preset) -> Direction:
    name = config.direction or preset.direction
    power = name == "power"
    return Direction(
        name=name,
        beta=preset.beta if config.beta is None else config.beta,
        delta=config.delta,
        tau=0.0 if power else config.tau,
        amplification=config.amplification,
    )


def _stepper(
    config: Config,
    preset: Preset,
    problem: Problem,
    compressor: Compressor,
    direction: Direction,
) -> Stepper:
    if config.schedule == "auto":
        if direction.name not in ("plain", "unit"):
            raise ConfigError(
                f"schedule=auto: needs direction=plain or unit, got {direction.name}; "
                "use schedule=constant or inv-sqrt with a step-size"
            )
        rule = AutoStep(
            normalized=direction.name == "unit",
            eta=config.momentum_eta if preset.estimator == "momentum" else 1.0,
            noisy=config.local_batch_size > 0 or config.replay is not None,
        )
        return AutoScheduledStep(rule, direction)
    schedule = _schedule(config, problem, compressor)
    if direction.name == "remembered" or (direction.independent and config.cap is not None):
        return BoundedStep(schedule, direction, inf if config.cap is None else config.cap)
    if config.cap is not None:
        raise ConfigError(
            f"cap: bounds direction=independent or remembered, got {direction.name}; use max-step"
        )
    if direction.name == "adam":
        return AdamStep(schedule)
    if direction.name == "adagrad-norm":
        return AdaGradNormStep(schedule)
    return ScheduledStep(schedule, direction, config.max_step)


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
    if config.local_steps > 1 or config.weight_decay:
        raise ConfigError(
            f"schedule=theory: the theorems know neither local steps nor weight decay, got "
            f"local-steps={config.local_steps} and weight-decay={config.weight_decay}; use "
            "schedule=constant or inv-sqrt with a step-size"
        )
    if config.value_format not in ("auto", "float64", native_format(problem.dtype).name):
        raise ConfigError(
            f"schedule=theory: alpha does not cover rounding, got value-format="
            f"{config.value_format}; use value-format=auto"
        )
    if config.method not in _THEORY or config.direction or config.feedback:
        raise ConfigError(
            f"schedule=theory: known for {' and '.join(_THEORY)} as they are, got "
            f"method={config.method}; use schedule=constant or inv-sqrt with a step-size"
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
