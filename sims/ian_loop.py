"""IAN-SGD and its rivals on one machine, many runs at once, from recorded rows.

Every method is m_t over the power of a norm, as in `fedef.independent`; the runs of all settings
and seeds are the rows of one array, which makes a grid as cheap as a few runs of the engine. Rows
are drawn as the published code does, so that runs can be compared seed by seed. Tests compare each
kind of method with the inline engine on the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedef.config import Config
from fedef.problems.base import Problem
from fedef.problems.dro import Dro
from fedef.problems.phase_retrieval import PhaseRetrieval
from fedef.problems.registry import build_problem
from fedef.vectors import IntVector
from sims.stacked import Stack, StackedDro, StackedPhaseRetrieval

Array = NDArray[np.float64]
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
    stack: Stack
    """Gradients and measures of many models at once, in the published code's units."""
    start: Array
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

    start: Array = built.initial_point().astype(np.float64)
    rows = built.num_examples[0]
    common: dict[str, Any] = {
        "problem": problem,
        "instance_seed": instance_seed,
        "built": built,
        "start": start,
        "rows": rows,
    }
    if isinstance(built, Dro):
        return Arena(
            **common,
            stack=StackedDro(built),
            batch=128,
            independent_batch=8,
            budget=128_000,
            target=None,
            diverged_above=50.0,
        )
    assert isinstance(built, PhaseRetrieval)  # noqa: S101 - asked for by its name
    stack = StackedPhaseRetrieval(built)
    return Arena(
        **common,
        stack=stack,
        batch=64,
        independent_batch=4,
        budget=27_000,
        target=10.0,
        diverged_above=float(stack.measure(start[None, None])[0, 0]),
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


def run(
    settings: Sequence[Settings], arena: Arena, seeds: Sequence[int]
) -> list[tuple[Trajectory, ...]]:
    """Run every setting from every seed to the arena's budget.

    Parameters
    ----------
    settings
        The methods.
    arena
        The problem.
    seeds
        Of the rows.

    Returns
    -------
    One tuple for each setting, a trajectory for each seed. A run that is no longer finite is inf
    from there.
    """
    kinds: dict[Any, list[int]] = {}
    for place, one in enumerate(settings):
        kind = (one.norm, one.rows(arena), one.idle_rows, one.spider_period)
        kinds.setdefault(kind, []).append(place)
    found: dict[int, tuple[Trajectory, ...]] = {}
    for places in kinds.values():
        runs = _run_kind([settings[place] for place in places], arena, seeds)
        found.update(zip(places, runs, strict=True))
    return [found[place] for place in range(len(settings))]


def _run_kind(
    settings: Sequence[Settings], arena: Arena, seeds: Sequence[int]
) -> list[tuple[Trajectory, ...]]:
    """Settings that draw and charge the same rows; arrays are (seeds, settings, d)."""
    one = settings[0]
    sizes = one.rows(arena)
    iterations = arena.budget // sum(sizes)
    drawn = np.stack([draw_rows(seed, arena.rows, sizes, iterations) for seed in seeds])
    x: Array = np.tile(arena.start, (len(seeds), len(settings), 1))
    theta = np.array([s.momentum for s in settings])[:, None]
    rule, gradient = _Rule.of(settings, len(seeds)), arena.stack.gradient
    v: Array = np.zeros(x.shape)
    m, last_x, spent, computed, t = v, x, 0, 0, 0
    evaluations: list[int] = []
    values: list[Array] = []
    with np.errstate(all="ignore"):
        while spent + (cost := one.charge(arena, t)) <= arena.budget:
            if arena.logged(t):
                evaluations.append(spent)
                values.append(arena.stack.measure(x))
            rows = drawn[:, t]
            if one.spider_period is not None and t % one.spider_period == 0:
                v = gradient(x, None)
            elif one.spider_period is not None:
                v = v + gradient(x, rows) - gradient(last_x, rows)
            else:
                v = gradient(x, rows[:, : sizes[0]])
            m = v if t == 0 else theta * m + (1 - theta) * v
            independent = None
            if one.norm == "independent":
                independent = _norms(gradient(x, rows[:, sizes[0] :]))
            elif one.norm == "full":
                independent = _norms(gradient(x, None))
            last_x, x = x, x + rule.step(m, independent)
            spent += cost
            computed += cost - one.idle_rows + (arena.rows if one.norm == "full" else 0)
            t += 1
        values.append(arena.stack.measure(x))
    at = np.array([*evaluations, spent])
    measured = np.nan_to_num(np.array(values), nan=math.inf, posinf=math.inf)
    return [
        tuple(
            Trajectory(at, measured[:, s, c], computed, float(rule.capped_steps[s, c]) / max(1, t))
            for s in range(len(seeds))
        )
        for c in range(len(settings))
    ]


@dataclass
class _Rule:
    """`fedef.independent.step` for (seeds, settings) at once; remembers what it needs."""

    settings: Sequence[Settings]
    last: Array | None
    """(seeds, settings): norm of the direction of the step before."""
    first: Array
    """(seeds, settings): length of the first step."""
    capped_steps: Array

    @classmethod
    def of(cls, settings: Sequence[Settings], seeds: int) -> _Rule:
        shape = (seeds, len(settings))
        return cls(settings, None, np.zeros(shape), np.zeros(shape))

    def step(self, m: Array, independent: Array | None) -> Array:
        """Dx = -gamma m / max(A N + delta, tau)^beta, cut to cap ||dx_0||."""
        length = _norms(m)
        n = length if independent is None else independent
        if self.settings[0].norm == "previous" and self.last is not None:
            n = self.last
        h = np.maximum(self._of("amplification") * n + self._of("delta"), self._of("tau"))
        rate = np.where(h > 0, self._of("step_size") / h ** self._of("beta"), 0.0)
        bound = np.where(self.first > 0, self._of("cap") * self.first, math.inf)
        capped = rate * length > bound
        rate = np.where(capped, bound / length, rate)
        self.first = np.where(self.first > 0, self.first, rate * length)
        self.last = length
        self.capped_steps = self.capped_steps + capped
        return -rate[..., None] * m

    def _of(self, name: str) -> Array:
        """(settings,): the values of one constant."""
        return np.array([getattr(one, name) for one in self.settings], dtype=np.float64)


def _norms(vectors: Array) -> Array:
    """Euclidean norms along the last axis."""
    return np.asarray(np.sqrt(np.einsum("...d,...d->...", vectors, vectors)))
