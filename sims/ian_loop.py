"""One loop for IAN-SGD and its rivals on one machine, from recorded draws: fast and replayable.

Every method is m_t through `fedef.independent.step` with another norm; rows are drawn as the
published code does, so that runs can be compared seed by seed. The engines run the same methods as
federated ones, with messages and checks; this loop takes half their time, for grids.
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
from fedef.problems.base import Problem
from fedef.problems.dro import Dro
from fedef.problems.registry import build_problem
from fedef.vectors import IntVector, Vector, norm

_EMPTY = np.empty(0)
_ONE = np.ones(1)
_EVERY_STEP_UNTIL = 40
"""Runs leap off early: until here the measure is logged before each step."""

Norm = Literal["own", "independent", "previous", "full"]


@dataclass(frozen=True)
class Arena:
    """A problem on one machine, and how the paper measures it."""

    problem: str
    """phase-retrieval or dro."""
    instance_seed: int
    built: Problem
    """For the engines."""
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
    log_every: int = 5
    """Steps between values of the measure after the first 40; 0: only the value at the end."""

    def logged(self, t: int) -> bool:
        """Whether the measure is taken before step t."""
        return self.log_every > 0 and (t < _EVERY_STEP_UNTIL or t % self.log_every == 0)


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
    idle_rows: int = 0
    """Charged to the budget in each step and not used, so that a control takes no more steps."""

    def charge(self, arena: Arena, t: int) -> int:
        """What step t costs of the budget: gradients of single rows, a SPIDER difference two.

        The norm of the full gradient is an oracle's and free; see `Trajectory.computed`.
        """
        if self.spider_period is not None:
            return arena.rows if t % self.spider_period == 0 else 2 * self.rows(arena)[0]
        return sum(self.rows(arena)) + self.idle_rows

    def rows(self, arena: Arena) -> tuple[int, int]:
        """(B, B'), B' = 0 without an independent batch."""
        second = self.independent_batch or arena.independent_batch
        return self.batch or arena.batch, second if self.norm == "independent" else 0


@dataclass(frozen=True)
class Trajectory:
    """A run, at the steps that were logged."""

    evaluations: NDArray[np.int64]
    """(L,) charged before the measure was taken; see `Settings.charge`."""
    values: NDArray[np.float64]
    """(L,) the measure; the last is at the end, inf where it is not finite."""
    computed: int
    """Gradients of single rows that were really computed, an oracle's included."""
    capped_share: float = 0.0
    """Steps that the cap shortened, over all."""

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
            built,
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
        built,
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


def run(settings: Settings, arena: Arena, seed: int) -> Trajectory:
    """Run to the arena's budget; a run that is no longer finite stops and ends at inf.

    Parameters
    ----------
    settings
        The method.
    arena
        The problem.
    seed
        Of the rows.
    """
    sizes = settings.rows(arena)
    drawn = draw_rows(seed, arena.rows, sizes, arena.budget // sum(sizes))
    x: Vector = arena.start
    v: Vector = np.zeros(0)
    m: Vector = np.zeros(0)
    last_x, state, spent, computed, t = x, independent.init(), 0, 0, 0
    evaluations, values = [], []
    with np.errstate(all="ignore"):
        while np.isfinite(x).all():
            cost = settings.charge(arena, t)
            if spent + cost > arena.budget:
                break
            if arena.logged(t):
                evaluations.append(spent)
                values.append(arena.measure(x))
            rows = drawn[t]
            if settings.spider_period is not None and t % settings.spider_period == 0:
                v = arena.gradient(x, None)
            elif settings.spider_period is not None:
                v = v + arena.gradient(x, rows) - arena.gradient(last_x, rows)
            else:
                v = arena.gradient(x, rows[: sizes[0]])
            theta = settings.momentum if t > 0 else 0.0
            m = theta * m + (1 - theta) * v if theta > 0 else v
            dx, state = independent.step(
                state,
                m,
                _norm(settings, arena, x, m, rows[sizes[0] :]),
                step_size=settings.step_size,
                beta=settings.beta,
                tau=settings.tau,
                delta=settings.delta,
                amplification=settings.amplification,
                cap=settings.cap,
            )
            last_x, x = x, x + dx
            spent += cost
            computed += cost - settings.idle_rows
            computed += arena.rows if settings.norm == "full" else 0
            t += 1
        evaluations.append(spent)
        values.append(arena.measure(x))
    return trajectory(
        evaluations, values, computed, capped_share=state.capped_steps / max(1, state.steps)
    )


def trajectory(
    evaluations: list[int], values: list[float], computed: int, *, capped_share: float = 0.0
) -> Trajectory:
    """Return a trajectory with inf for all that is not finite."""
    clean = np.nan_to_num(np.array(values), nan=math.inf, posinf=math.inf)
    return Trajectory(np.array(evaluations), clean, computed, capped_share)


def _norm(settings: Settings, arena: Arena, x: Vector, m: Vector, rows: IntVector) -> float | None:
    if settings.norm == "own":
        return norm(m)
    if settings.norm == "independent":
        return norm(arena.gradient(x, rows))
    return norm(arena.gradient(x, None)) if settings.norm == "full" else None
