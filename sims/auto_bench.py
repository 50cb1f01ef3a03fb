"""`schedule=auto` beside the best constant step of a grid: rounds to a target, and their ratio.

``python -m sims.auto_bench`` prints the table (about half an hour on one core); ``--case NAME``
runs one row, ``--plain`` the directions that are not normalized.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from fedef.auto_step import AutoStep
from fedef.compressors import Compressor, make_compressor
from fedef.config import Config
from fedef.problems.base import Problem
from fedef.problems.phase_retrieval import PUBLISHED_SEED
from fedef.problems.registry import build_problem
from fedef.server_session import client_weights
from fedef.threads import single_threaded
from fedef.vectors import Vector, is_finite, norm

Choose = Callable[[int, Vector, Vector], float]
"""(k, x^k, g^k) -> gamma_k."""
Settings = dict[str, Any]
UNIT_GRID = tuple(2.0 ** (j / 2) for j in range(-16, 7))
PLAIN_GRID = tuple(2.0 ** (j / 2) for j in range(-28, 11))


@dataclass(frozen=True)
class Case:
    """One row: a problem, a compressor and a target."""

    name: str
    settings: Settings
    target: float
    """Reached at x^k once ||grad f||^2 (or f, with `by_loss`) is below it and f <= f(x^0).

    The second condition excludes steps that leap to where a bounded regularizer is flat.
    """
    by_loss: bool
    max_rounds: int


@dataclass(frozen=True)
class Comparison:
    """Rounds of both, per seed; None: not within the limit."""

    case: Case
    tuned_step: float | None
    """The constant of the grid with the least median rounds, all seeds hit; None: there is none."""
    tuned: tuple[int | None, ...]
    auto: tuple[int | None, ...]

    @property
    def ratio(self) -> float | None:
        """Median rounds of auto over those of the tuned constant; None where either fails."""
        auto, tuned = _median(self.auto), _median(self.tuned)
        return None if auto is None or tuned is None else auto / tuned


def cases() -> list[Case]:
    """All rows."""
    rows = []
    for l1 in (1, 4, 8):
        for k in (None, 1):
            quartic: Settings = {"problem": "polynomial", "l1": l1, "num-clients": 1}
            rows.append(_case(f"polynomial-L1={l1}", quartic, k, 1e-4, 20000))
    logistic: Settings = {"problem": "logistic", "dirichlet-alpha": 0.5}
    for k in (None, 15, 3, 1):
        rows.append(_case("breast_cancer", {**logistic, "num-clients": 10}, k, 1e-4, 4000))
    synthetic = {**logistic, "data": "synthetic", "num-clients": 20}
    for k in (None, 5, 1):
        rows.append(_case("synthetic", synthetic, k, 1e-4, 4000))
    phase: Settings = {"problem": "phase-retrieval", "num-clients": 10, "dirichlet-alpha": 1.0}
    for k in (None, 10, 1):
        rows.append(_case("phase-retrieval", phase, k, 9.0, 3000, by_loss=True))
    digits: Settings = {"num-clients": 10, "dirichlet-alpha": 0.1}
    for k in (None, 65, 6):
        softmax = {**digits, "problem": "digits-softmax"}
        rows.append(_case("digits-softmax", softmax, k, 0.15, 1500, by_loss=True))
    for k in (None, 481, 48):
        network = {**digits, "problem": "digits-mlp"}
        rows.append(_case("digits-mlp", network, k, 0.1, 1500, by_loss=True))
    return rows


@dataclass(frozen=True)
class Run:
    """A case at one seed."""

    problem: Problem
    compressor: Compressor
    weights: tuple[float, ...]
    """(n,), sum 1."""
    normalized: bool


def build(case: Case, *, seed: int, normalized: bool = True) -> Run:
    """One run of a case; another seed is another start (phase retrieval: another instance)."""
    varied = {"seed": seed}
    if case.settings["problem"] == "phase-retrieval":
        varied["instance-seed"] = PUBLISHED_SEED + seed
    config = Config.from_flat({**case.settings, **varied})
    problem = build_problem(config)
    compressor = make_compressor(config.compressor or "identity", problem.dimension, k=config.k)
    weights = client_weights(config.weighting, problem.num_examples)
    return Run(problem, compressor, tuple(w / sum(weights) for w in weights), normalized)


def first_hit(run: Run, case: Case, choose: Choose, max_rounds: int) -> int | None:
    """Least k at which x^k meets the target; None: not in time, or diverged.

    (||)EF21(||) from g_i = 0 with exact gradients of all clients, without messages: the inline
    engine's trajectory at a fraction of its cost (a test compares them).
    """
    with np.errstate(over="ignore", invalid="ignore"):  # a constant of the grid may diverge
        return _first_hit(run, case, choose, max_rounds)


def _first_hit(run: Run, case: Case, choose: Choose, max_rounds: int) -> int | None:
    problem, compressor = run.problem, run.compressor
    x, buffers = problem.initial_point(), problem.initial_buffers()
    g_i = [np.zeros(problem.dimension, dtype=problem.dtype) for _ in run.weights]
    g, start = np.zeros(problem.dimension), np.inf
    for k in range(max_rounds + 1):
        x.flags.writeable = False
        gradients, loss, full = [], 0.0, np.zeros(problem.dimension)
        for client, weight in enumerate(run.weights):
            result = problem.local(client, x, buffers=buffers)
            gradients.append(result.gradient)
            loss += weight * result.loss
            full += weight * result.gradient.astype(np.float64)
        start = loss if k == 0 else start
        if not (np.isfinite(loss) and is_finite(full)):
            return None
        reached = loss if case.by_loss else float(np.square(norm(full)))
        if reached < case.target and loss <= start:
            return k
        for client, weight in enumerate(run.weights):
            sent = compressor.compress(gradients[client] - g_i[client], seed=0).dense()
            g_i[client] = g_i[client] + sent
            g += weight * sent.astype(np.float64)
        length = norm(g) if run.normalized else 1.0
        if length > 0.0:
            x = (x.astype(np.float64) - choose(k, x, g) / length * g).astype(problem.dtype)
    return None


def auto(run: Run) -> Choose:
    """The rule with its state inside."""
    rule = AutoStep(normalized=run.normalized)
    state = rule.init(run.problem.initial_point())

    def choose(k: int, x: Vector, g: Vector) -> float:
        nonlocal state
        step_size, state = rule.update(state, x, g)
        return step_size

    return choose


def compare(
    case: Case,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    normalized: bool = True,
    grid: Sequence[float] | None = None,
) -> Comparison:
    """Tune the constant on the seeds of the comparison, which favours it, and run both."""
    runs = [build(case, seed=seed, normalized=normalized) for seed in seeds]
    with single_threaded():
        step, tuned = _tuned(case, runs, grid or (UNIT_GRID if normalized else PLAIN_GRID))
        own = tuple(first_hit(run, case, auto(run), case.max_rounds) for run in runs)
    return Comparison(case, step, tuned, own)


def line(comparison: Comparison) -> str:
    """One row of the table."""
    ratio = comparison.ratio
    step = "none" if comparison.tuned_step is None else f"{comparison.tuned_step:.4g}"
    return (
        f"{comparison.case.name:24} {step:>8} {_spell(comparison.tuned):>20} "
        f"{_spell(comparison.auto):>20} {'n/a' if ratio is None else f'{ratio:.2f}':>6}"
    )


def main(arguments: Sequence[str]) -> None:
    """Print the table."""
    chosen = [a for a, flag in zip(arguments[1:], arguments, strict=False) if flag == "--case"]
    known = [case.name for case in cases()]
    if unknown := set(chosen) - set(known):
        sys.exit(f"auto_bench: no case {sorted(unknown)}; one of {known}")
    print(f"{'case':24} {'constant':>8} {'rounds, by seed':>20} {'auto':>20} {'ratio':>6}")
    for case in cases():
        if not chosen or case.name in chosen:
            print(line(compare(case, normalized="--plain" not in arguments)), flush=True)


def _case(
    name: str,
    settings: Settings,
    k: int | None,
    target: float,
    max_rounds: int,
    *,
    by_loss: bool = False,
) -> Case:
    compressor: Settings = {"compressor": "identity"}
    if k is not None:
        compressor = {"compressor": "top-k", "k": k}
    label = "identity" if k is None else f"top-{k}"
    return Case(f"{name}/{label}", {**settings, **compressor}, target, by_loss, max_rounds)


def _tuned(
    case: Case, runs: Sequence[Run], grid: Sequence[float]
) -> tuple[float | None, tuple[int | None, ...]]:
    """From large to small; a step that takes 1.5 times the best so far is not run to its end."""
    best: tuple[float | None, tuple[int | None, ...]] = (None, (None,) * len(runs))
    for step in sorted(grid, reverse=True):
        known = _median(best[1])
        limit = case.max_rounds if known is None else min(case.max_rounds, int(1.5 * known) + 10)
        hits: list[int | None] = []
        for run in runs:
            hits.append(first_hit(run, case, _constant(step), limit))
            if hits[-1] is None:
                break
        reached = _median(hits)
        if reached is not None and (known is None or reached < known):
            best = (step, tuple(hits))
    return best


def _constant(step: float) -> Choose:
    return lambda k, x, g: step


def _median(hits: Sequence[int | None]) -> float | None:
    reached = [hit for hit in hits if hit is not None]
    return float(median(reached)) if reached and len(reached) == len(hits) else None


def _spell(hits: Sequence[int | None]) -> str:
    return "/".join("never" if hit is None else str(hit) for hit in hits)


if __name__ == "__main__":
    main(sys.argv[1:])
