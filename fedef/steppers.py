"""The server's step: from the model and the mean estimate to the next model, with what it keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedef import independent
from fedef.auto_step import AutoState, AutoStep
from fedef.directions import Direction
from fedef.schedules import Schedule
from fedef.state import Arrays
from fedef.vectors import Vector, norm


@dataclass(frozen=True)
class Moment:
    """What a step may look at."""

    k: int
    """Rounds done, from 0."""
    x: Vector
    """(d,) the model x^k."""
    g: Vector
    """(d,) float64: the mean estimate g^k."""
    independent_norm: float | None = None
    """||g'|| of independent batches, where the method asks for it."""
    before: Callable[[], Vector] | None = None
    """(d,) float64 when called: g before this round's updates; zero once all start again."""


@dataclass(frozen=True)
class Step:
    """A step that was taken."""

    x: Vector
    """(d,) the next model, in the dtype of the last."""
    step_size: float
    """gamma_k."""
    memory: Arrays
    """What the next step needs; part of a checkpoint."""


class Stepper(Protocol):
    """A server's rule, pure: memory in, memory out."""

    def init(self, x: Vector) -> Arrays:
        """Memory before the first round, at x^0."""

    def step(self, memory: Arrays, moment: Moment) -> Step:
        """Take one step."""


def server_step(
    x: Vector, direction: Vector, *, step_size: float, max_step: float | None = None
) -> Vector:
    """X <- x - gamma_k direction, in float64, then in the dtype of x.

    `max_step` bounds ||gamma_k direction||_2; None: no bound.
    """
    change = step_size * direction
    if max_step is not None:
        length = norm(change)
        if length > max_step:
            change = change * (max_step / length)
    moved = x.astype(np.float64)
    moved -= change
    return moved.astype(x.dtype, copy=False)


@dataclass(frozen=True)
class ScheduledStep:
    """A schedule of step sizes along a direction."""

    schedule: Schedule
    direction: Direction
    max_step: float | None = None

    def init(self, x: Vector) -> Arrays:
        """Nothing to remember."""
        return {}

    def step(self, memory: Arrays, moment: Moment) -> Step:
        """x^{k+1} = x^k - gamma_k direction(g^k)."""
        gamma = self.schedule(moment.k)
        direction = self.direction.of(moment.g, moment.independent_norm)
        x = server_step(moment.x, direction, step_size=gamma, max_step=self.max_step)
        return Step(x, gamma, memory)


@dataclass(frozen=True)
class AutoScheduledStep:
    """A step size that the run itself tells, along a plain or unit direction."""

    rule: AutoStep
    direction: Direction

    def init(self, x: Vector) -> Arrays:
        """Memory of the rule."""
        return self.rule.init(x).to_arrays()

    def step(self, memory: Arrays, moment: Moment) -> Step:
        """x^{k+1} = x^k - gamma_k direction(g^k) with the rule's gamma_k."""
        gamma, after = self.rule.update(AutoState.from_arrays(memory), moment.x, moment.g)
        x = server_step(moment.x, self.direction.of(moment.g), step_size=gamma)
        return Step(x, gamma, after.to_arrays())


@dataclass(frozen=True)
class BoundedStep:
    """Independent normalization with a bound on the step, or with memory (ours); `independent`."""

    schedule: Schedule
    direction: Direction
    cap: float
    """Longest step in units of the first; inf: no bound."""

    def init(self, x: Vector) -> Arrays:
        """Nothing seen yet."""
        return independent.init().to_arrays()

    def step(self, memory: Arrays, moment: Moment) -> Step:
        """See `independent.step`."""
        gamma = self.schedule(moment.k)
        change, after = independent.step(
            independent.NormalizerState.from_arrays(memory),
            moment.g,
            moment.independent_norm,
            step_size=gamma,
            beta=self.direction.beta,
            tau=self.direction.tau,
            delta=self.direction.delta,
            amplification=self.direction.amplification,
            cap=self.cap,
        )
        return Step(server_step(moment.x, -change, step_size=1.0), gamma, after.to_arrays())


@dataclass(frozen=True)
class AdamStep:
    """m <- b1 m + (1-b1) g, v <- b2 v + (1-b2) g^2, x <- x - gamma m^ / (sqrt(v^) + eps).

    Adam (Kingma and Ba, arXiv:1412.6980, Alg. 1), m^ and v^ corrected for their start at zero, as a
    reference. beta2 is 0.99, as the code of arXiv:2410.14054 has it; Alg. 1 suggests 0.999.
    """

    schedule: Schedule
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-8

    def init(self, x: Vector) -> Arrays:
        """M = v = 0."""
        return {"m": np.zeros(x.size), "v": np.zeros(x.size)}

    def step(self, memory: Arrays, moment: Moment) -> Step:
        """One step of Adam."""
        m = self.beta1 * memory["m"] + (1 - self.beta1) * moment.g
        v = self.beta2 * memory["v"] + (1 - self.beta2) * moment.g**2
        t = moment.k + 1
        direction = (m / (1 - self.beta1**t)) / (np.sqrt(v / (1 - self.beta2**t)) + self.epsilon)
        gamma = self.schedule(moment.k)
        return Step(server_step(moment.x, direction, step_size=gamma), gamma, {"m": m, "v": v})


@dataclass(frozen=True)
class AdaGradNormStep:
    """b^2 <- b^2 + ||g||^2, x <- x - gamma g / b   (AdaGrad-Norm, arXiv:1806.01811); a reference.

    b_0 = 0: the first step is normalized; g = 0 leaves x unchanged.
    """

    schedule: Schedule

    def init(self, x: Vector) -> Arrays:
        """b^2 = 0."""
        return {"squares": np.zeros(1)}

    def step(self, memory: Arrays, moment: Moment) -> Step:
        """One step of AdaGrad-Norm."""
        squares = memory["squares"] + norm(moment.g) ** 2
        gamma = self.schedule(moment.k)
        b = float(np.sqrt(squares[0]))
        direction = moment.g / b if b > 0.0 else moment.g
        return Step(server_step(moment.x, direction, step_size=gamma), gamma, {"squares": squares})


@dataclass(frozen=True)
class IncrementStep:
    """x <- x - gamma_k (g^k - g^{k-1}), g^{-1} = 0, for clients that send running sums.

    Then g^k - g^{k-1} is the mean of what was sent in this round: the error feedback of Seide et
    al. (2014).
    """

    schedule: Schedule

    def init(self, x: Vector) -> Arrays:
        """Nothing to remember: the server has the mean of the last round."""
        return {}

    def step(self, memory: Arrays, moment: Moment) -> Step:
        """One step along what is new."""
        gamma = self.schedule(moment.k)
        new = moment.g if moment.before is None else moment.g - moment.before()
        return Step(server_step(moment.x, new, step_size=gamma), gamma, memory)
