"""One loop for IAN-SGD and its rivals on one machine, from recorded draws: fast and replayable.

Every method is m_t through `fedef.independent.step` with another norm; rows are drawn as the
published code does, so that runs can be compared seed by seed. The engines run the same methods as
federated ones, with messages and checks; this loop is for the many runs of a comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedef import independent
from fedef.config import Config
from fedef.problems.dro import Dro
from fedef.problems.registry import build_problem
from fedef.vectors import IntVector, Vector, norm

_EMPTY = np.empty(0)
_ONE = np.ones(1)
_EVERY_STEP_UNTIL = 40
"""Runs leap off early: until here the measure is logged before each step, then before each 5th."""
_LOG_EVERY = 5

Norm = Literal["own", "independent", "previous", "full"]


@dataclass(frozen=True)
class Arena:
    """A problem on one machine, and how the paper measures it."""

    problem: str
    """phase-retrieval or dro."""
    instance_seed: int
    gradient: Callable[[Vector, IntVector | None], Vector]
    """On these rows (None: all), in the published code's units."""
    measure: Callable[[Vector], float]
    """f, or Psi for dro."""
    start: Vector
    """(d,): z1 or (x1, eta1), where the paper's stochastic methods start."""
    rows: int
    batch: int
    """B."""
    independent_batch: int
    """B'."""
    budget: int
    """Gradients of single rows: where the paper's plots end."""
    target: float | None
    """f <= 10 on phase retrieval; dro has none."""
    diverged_above: float
    """A run ends in divergence if its measure does above this, or is not finite."""


@dataclass(frozen=True)
class Settings:
    """m <- theta m + (1-theta) v;  x <- x - gamma m / max(A N + delta, tau)^beta, cut by the cap.

    v is the batch gradient, or SPIDER's with `spider_period`. beta = 0 is SGD.
    """

    step_size: float
    beta: float = 0.0
    tau: float = 0.0
    delta: float = 0.0
    norm: Norm = "own"
    """N: ||m||; ||g'|| of an independent batch; ||m|| of the last step (ours); ||grad F||."""
    amplification: float = 1.0
    cap: float = math.inf
    """See `fedef.independent.step`."""
    momentum: float = 0.0
    """theta, the weight of the old m."""
    spider_period: int | None = None
    batch: int | None = None
    """None: the arena's."""
    independent_batch: int | None = None


@dataclass(frozen=True)
class Trajectory:
    """A run, at the steps that were logged."""

    evaluations: NDArray[np.int64]
    """(L,) gradients of single rows before the measure was taken; a difference of two counts two,
    and the norm of the full gradient nothing, since it is an oracle."""
    values: NDArray[np.float64]
    """(L,) the measure; the last is at the end, inf where it is not finite."""
    capped_share: float
    """Steps that the cap shortened, over all."""
    oracle_evaluations: int = 0
    """Gradients of single rows behind the oracle's norms."""

    @property
    def final(self) -> float:
        """The measure at the budget."""
        return float(self.values[-1])

    @property
    def worst(self) -> float:
        """Largest measure on the way, the start included."""
        return float(self.values.max())

    def evaluations_to(self, target: float) -> float:
        """Evaluations before the measure is first <= target; inf: never."""
        below = np.flatnonzero(self.values <= target)
        return float(self.evaluations[below[0]]) if below.size else math.inf


@lru_cache(maxsize=8)
def arena(problem: str, instance_seed: int, data_dir: str | None = None) -> Arena:
    """The arena `phase-retrieval` or `dro` on the instance of this seed.

    Raises
    ------
    ConfigError
        If the problem is unknown or the data is missing.
    """
    flat = {"problem": problem, "instance-seed": instance_seed, "num-clients": 1}
    built = build_problem(Config.from_flat({**flat, "data-dir": data_dir or ""}))

    def gradient(x: Vector, rows: IntVector | None) -> Vector:
        return built.local(0, x, rows=rows, buffers=_EMPTY).gradient

    def loss(x: Vector) -> float:
        return built.evaluate(x, weights=_ONE, buffers=_EMPTY).loss

    start, rows = built.initial_point(), built.num_examples[0]
    if isinstance(built, Dro):
        dro = built
        return Arena(
            problem,
            instance_seed,
            gradient,
            lambda x: dro.psi(x, weights=_ONE),
            start,
            rows,
            batch=128,
            independent_batch=8,
            budget=128_000,
            target=None,
            diverged_above=50.0,
        )
    return Arena(
        problem,
        instance_seed,
        gradient,
        loss,
        start,
        rows,
        batch=64,
        independent_batch=4,
        budget=27_000,
        target=10.0,
        diverged_above=loss(start),
    )


@lru_cache(maxsize=128)
def draw_rows(seed: int, rows: int, sizes: tuple[int, int], iterations: int) -> IntVector:
    """(T, B + B') rows: B without replacement, then B' from all again (arXiv:2410.14054, code).

    NumPy's legacy generator, because the published numbers are its draws. A choice permutes all
    rows whatever its size, so B' = 0 leaves the batches as they are with B' > 0: methods of one
    batch size are compared on the same batches, seed by seed.
    """
    draws = np.random.RandomState(seed)
    drawn = np.empty((iterations, sum(sizes)), dtype=np.int64)
    for t in range(iterations):
        drawn[t] = np.concatenate([draws.choice(rows, size, replace=False) for size in sizes])
    drawn.flags.writeable = False
    return drawn


def run(settings: Settings, arena: Arena, seed: int, *, log: bool = True) -> Trajectory:
    """Run to the arena's budget.

    A run that is no longer finite stops and ends at inf.

    Parameters
    ----------
    settings
        The method.
    arena
        The problem.
    seed
        Of the rows.
    log
        False: only the last value, for tuning.
    """
    batch = settings.batch or arena.batch
    second = 0
    if settings.norm == "independent":
        second = settings.independent_batch or arena.independent_batch
    full_every, difference = settings.spider_period, 1 if settings.spider_period is None else 2
    per_step = difference * batch + second
    drawn = draw_rows(seed, arena.rows, (batch, second), arena.budget // (batch + second))
    x: Vector = arena.start
    v: Vector = np.zeros(0)
    m: Vector = np.zeros(0)
    last_x, state, spent, t = x, independent.init(), 0, 0
    evaluations, values = [], []
    with np.errstate(all="ignore"):
        while True:
            whole = full_every is not None and t % full_every == 0
            cost = arena.rows if whole else per_step
            if spent + cost > arena.budget or not np.isfinite(x).all():
                break
            if log and (t < _EVERY_STEP_UNTIL or t % _LOG_EVERY == 0):
                evaluations.append(spent)
                values.append(arena.measure(x))
            rows = drawn[t]
            if whole:
                v = arena.gradient(x, None)
            elif full_every is not None:
                v = v + arena.gradient(x, rows) - arena.gradient(last_x, rows)
            else:
                v = arena.gradient(x, rows[:batch])
            theta = settings.momentum if t > 0 else 0.0
            m = theta * m + (1 - theta) * v if theta > 0 else v
            dx, state = independent.step(
                state,
                m,
                _norm(settings, arena, x, m, rows[batch:]),
                step_size=settings.step_size,
                beta=settings.beta,
                tau=settings.tau,
                delta=settings.delta,
                amplification=settings.amplification,
                cap=settings.cap,
            )
            last_x, x = x, x + dx
            spent += cost
            t += 1
        evaluations.append(spent)
        values.append(arena.measure(x))
    return Trajectory(
        np.array(evaluations),
        np.nan_to_num(np.array(values), nan=math.inf, posinf=math.inf),
        state.capped_steps / max(1, state.steps),
        t * arena.rows if settings.norm == "full" else 0,
    )


def _norm(settings: Settings, arena: Arena, x: Vector, m: Vector, rows: IntVector) -> float | None:
    if settings.norm == "own":
        return norm(m)
    if settings.norm == "independent":
        return norm(arena.gradient(x, rows))
    return norm(arena.gradient(x, None)) if settings.norm == "full" else None
