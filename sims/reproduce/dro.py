"""Chi-square DRO on Life Expectancy (arXiv:2410.14054): digits, 20 seeds, the paper's figure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedef.problems.dro import Dro
from fedef.threads import single_threaded
from fedef.vectors import Vector
from sims.reproduce.loops import (
    Loop,
    Runs,
    figure_check,
    mean_check,
    over_seeds,
    settings_line,
    who_diverged,
)
from sims.reproduce.runs import Measure, experiment_on, follow, problem_of
from sims.reproduce.study import IAN, Comparison, Finding, Panel, Settings, Study, numerus, of
from sims.reproduce.verdict import Check, same_digits, same_rate, within_relative

BUDGET = 128_000
DIVERGED = 50.0
"""Psi above it at the budget."""
_FIGURE_SEED = 2024
_READING = 0.02
SPEC = "specification"


@dataclass(frozen=True)
class Printed:
    """A method on the repository's instance, as the specification measured it."""

    loop: Loop
    mean: float
    deviation: float
    diverged: int
    """Of 20 seeds."""


_CLIPPED = {"step_size": 0.14, "beta": 2 / 3, "tau": 1225.0, "delta": 25.0}
REPOSITORY = (
    Printed(Loop("SGD", "sgd", 128, {"step_size": 4e-5}, 5), 4.608, 0.022, 0),
    Printed(Loop("NSGD", "nsgd", 128, {"step_size": 0.005, "beta": 2 / 3}, 2), 3.749, 0.021, 0),
    Printed(
        Loop("NSGDm", "nsgdm", 128, {"step_size": 0.005, "beta": 2 / 3, "momentum_eta": 0.9}, 3),
        3.722,
        0.022,
        0,
    ),
    Printed(Loop("Clip SGD", "clip-sgd", 128, _CLIPPED, 0), 3.643, 0.027, 2),
    Printed(
        Loop("SPIDER", "spider", 128, {"step_size": 0.003, "beta": 2 / 3}, 4, period=15),
        3.674,
        0.005,
        0,
    ),
    Printed(
        Loop("IAN-SGD", "ian-sgd", 128, {**_CLIPPED, "amplification": 2.0}, 1, independent=8),
        3.644,
        0.024,
        2,
    ),
)
FIGURE = (
    (Loop("SGD", "sgd", 128, {"step_size": 4e-5}, 5), 6.17),
    (Loop("NSGD, β = 1", "nsgd", 128, {"step_size": 0.005, "beta": 1.0}, 2), 5.67),
    (
        Loop(
            "NSGDm, β = 1",
            "nsgdm",
            128,
            {"step_size": 0.005, "beta": 1.0, "momentum_eta": 0.9},
            3,
        ),
        5.39,
    ),
    (
        Loop(
            "Clip SGD, β = 1",
            "clip-sgd",
            128,
            {"step_size": 0.15, "beta": 1.0, "tau": 1225.0, "delta": 25.0},
            0,
        ),
        5.13,
    ),
    (Loop("SPIDER, β = 1", "spider", 128, {"step_size": 0.005, "beta": 1.0}, 4, period=15), 4.47),
    (
        Loop(
            "IAN-SGD, β = 2/3",
            "ian-sgd",
            128,
            {
                "step_size": 0.16,
                "beta": 2 / 3,
                "tau": 1225.0,
                "delta": 25.0,
                "amplification": 2.0,
            },
            1,
            independent=8,
        ),
        3.99,
    ),
)
"""Settings that the specification recovered from DRO.png, and Psi at the budget there."""
_IAN_DIVERGED = 7
"""Of 20 on the figure's instance, by the specification: 7 or 8."""


def study(settings: Settings, *, budget: int = BUDGET) -> Study:
    """Digits, the deterministic start, then both instances over 20 seeds."""
    seeds = range(20)
    total, done = 1 + len(REPOSITORY) + len(FIGURE), 0
    with single_threaded():
        settings.tell("instance", 0.0)
        problems = {seed: _problem(settings, seed=seed) for seed in (1, _FIGURE_SEED)}
        digits = _digit_checks(settings, problems)
        done += 1
        results: dict[str, list[Runs]] = {"repository": [], "figure": []}
        plan: list[tuple[str, int, Loop]] = [("repository", 1, row.loop) for row in REPOSITORY]
        plan += [("figure", _FIGURE_SEED, row[0]) for row in FIGURE]
        for kind, instance, loop in plan:
            settings.tell(f"{loop.label}, {len(seeds)} seeds", done / total)
            problem = problems[instance]
            runs = over_seeds(
                problem,
                loop,
                psi_of(problem),
                seeds=seeds,
                budget=budget,
                limit=DIVERGED,
                name="dro",
            )
            results[kind].append(runs)
            done += 1
    repository, figure = results["repository"], results["figure"]
    n = numerus(len(seeds), "seed", "seeds")
    means = [
        mean_check(runs, row.mean, row.deviation, row.diverged)
        for runs, row in zip(repository, REPOSITORY, strict=True)
    ]
    figures = [
        figure_check(runs, row[1], widened=_READING, why="the fitted settings are not unique")
        for runs, row in zip(figure, FIGURE, strict=True)
    ]
    return Study(
        name="dro",
        paper=IAN,
        title="Distributionally robust regression (DRO)",
        about="Ψ(x) = min over η of L(x, η), χ²-robust regression on Life Expectancy, λ = 0.01, "
        "d = 34, 2313 rows (arXiv:2410.14054). All methods start at (x1, η1), 30 normalized steps "
        "from the random start. Only 30 to 70 rows matter at a solution, so minibatch gradients "
        "have heavy tails.",
        findings=_findings(digits, means, figures, repository, figure),
        panels=(
            _panel("dro", "Repository's settings, seed 1", repository, f"n = {n}", budget),
            _panel("dro-figure", "The paper's figure, seed 2024", figure, f"n = {n}", budget),
        ),
        comparisons=(
            Comparison(
                "The instance and the deterministic start. Agrees: the same printed digits; the 30 "
                "steps through the engine: to 1e-4 relative.",
                tuple(digits),
            ),
            Comparison(
                f"Ψ at {budget:,} samples with the repository's settings and instance (seed 1). "
                f"Ours: mean ± standard deviation over those of n = {n} of minibatches that end "
                "below 50, the others counted as diverged; the specification's: the same over its "
                "own 20 seeds. Agrees: means within 3 of its standard deviations, and Fisher's "
                "exact test (two-sided, 5 %) does not tell the counts apart.",
                tuple(means),
            ),
            Comparison(
                f"The paper's figure DRO.png (instance seed 2024), Ψ at {budget:,} samples. Ours: "
                f"median [least, largest] over n = {n}, diverged ones apart. Agrees: the "
                "figure's one seed, read to about 1 %, lies in our range widened by "
                f"{_READING:.0%}.",
                (*figures, _divergence_check(figure[-1])),
            ),
        ),
        settings=(
            "problem=dro num-clients=1 schedule=constant, instance-seed 1 (repository) and 2024 "
            f"(figure), seeds 0 to {len(seeds) - 1}; every update in the inline engine",
            "repository: " + settings_line([row.loop for row in REPOSITORY]),
            "figure: " + settings_line([row[0] for row in FIGURE]),
        ),
        notes=(
            "The headline figure compares IAN-SGD at β = 2/3 with baselines at β = 1. In the "
            "repository, where all have β = 2/3, the gap is about 2 %.",
            "At equal γ, β, τ, δ (repository) IAN-SGD and Clip SGD cannot be told apart.",
            "Why IAN-SGD diverges: at the end of a run the norm over B' = 8 rows is exactly 1 in "
            "more than half of the draws (no tail row among them), so the step is not bounded when "
            "the direction's batch hits the tail.",
            "The published NSGDm restarts its momentum every 59 iterations by mistake; ours does "
            "not. With θ = 0.1, almost no momentum, that hardly matters.",
            "A winsorized copy of the target and the row number are among the features, and the "
            "test rows are never used: nothing here is about prediction.",
            "SGD's published step is 31 times below IAN-SGD's own unclipped step: it is not tuned; "
            "the fair protocol tunes every method alike.",
        ),
    )


def psi_of(problem: Dro) -> Measure:
    """The measure Psi, exact minimum over eta."""
    one = np.ones(1)

    def measure(x: Vector) -> float:
        return problem.psi(x, weights=one)

    return measure


def _problem(settings: Settings, *, seed: int, warm: bool = True) -> Dro:
    return problem_of(
        Dro,
        problem="dro",
        num_clients=1,
        data_dir=settings.data_folder,
        instance_seed=seed,
        warm_start=warm,
    )


def _digit_checks(settings: Settings, problems: dict[int, Dro]) -> list[Check]:
    warm, cold = problems[1], _problem(settings, seed=1, warm=False)
    psi = psi_of(warm)
    at_x1 = warm.evaluate(
        warm.initial_point(), weights=np.ones(1), buffers=warm.initial_buffers()
    ).loss
    figure = problems[_FIGURE_SEED]
    digits = [
        ("d", "34", float(warm.dimension - 1)),
        ("training rows", "2313", float(sum(warm.num_examples))),
        ("Ψ(x0)", "201.477", psi(cold.initial_point())),
        ("Ψ(x1)", "6.24972", psi(warm.initial_point())),
        ("L(x1, η1)", "22.0653", at_x1),
        ("Ψ(x1), seed 2024", "8.940", psi_of(figure)(figure.initial_point())),
    ]
    checks = [
        Check(what, SPEC, printed, f"{ours:.6g}", same_digits(ours, printed))
        for what, printed, ours in digits
    ]
    steps = experiment_on(
        cold,
        problem="dro",
        num_clients=1,
        schedule="constant",
        warm_start=False,
        method="an-gd",
        beta=1.0,
        step_size=0.2,
    )
    reached = float(follow(steps, psi, [30])[-1])
    agrees = within_relative(reached, 6.24972, 1e-4)
    what = "Ψ after 30 normalized steps, engine"
    return [*checks, Check(what, SPEC, "6.24972", f"{reached:.6g}", agrees)]


def _divergence_check(runs: Runs) -> Check:
    total = len(runs.finals)
    agrees = same_rate(runs.diverged, total, _IAN_DIVERGED, 20)
    return Check(
        f"{runs.loop.label}: diverged",
        f"{SPEC} (20 seeds)",
        "7 or 8 of 20",
        of(runs.diverged, total),
        agrees,
        "" if agrees else "another share of diverging seeds",
    )


def _findings(
    digits: list[Check],
    means: list[Check],
    figures: list[Check],
    repository: list[Runs],
    figure: list[Runs],
) -> tuple[Finding, ...]:
    by_label = {runs.loop.label: runs for runs in repository}
    ian, clip = by_label["IAN-SGD"], by_label["Clip SGD"]
    baselines, shown_ian = figure[:-1], figure[-1]
    lowest = min(_median(runs) for runs in baselines)
    close = sum(bool(check.agrees) for check in means)
    near = sum(bool(check.agrees) for check in figures)
    rivals = [
        runs.kept.mean() for runs in repository if runs.loop.label != "SGD" and len(runs.kept)
    ]
    gap = max(rivals) / min(rivals) - 1 if rivals else float("nan")
    apart = abs(ian.kept.mean() - clip.kept.mean()) if len(ian.kept) and len(clip.kept) else np.nan
    pooled = np.hypot(ian.kept.std(ddof=1), clip.kept.std(ddof=1)) / np.sqrt(2)
    return (
        Finding(
            all(check.agrees for check in digits),
            "The instance (d = 34, 2313 rows) and its printed values come out the same.",
        ),
        Finding(
            close == len(means),
            f"With the repository's settings {of(close, len(means))} methods end within 3 standard "
            "deviations of the specification's means, with compatible counts of diverged seeds.",
        ),
        Finding(
            near == len(figures),
            f"With the settings recovered from the paper's figure {of(near, len(figures))} of its "
            "end values lie in our range.",
        ),
        Finding(
            _median(shown_ian) < lowest,
            f"In that figure's setting IAN-SGD's median seed ends lowest ({_median(shown_ian):.3g} "
            f"against {lowest:.3g}), as the paper claims; its baselines have β = 1, it has 2/3.",
        ),
        Finding(
            bool(apart > 2 * pooled and ian.kept.mean() < clip.kept.mean()),
            "IAN-SGD beats clipping at equal β, γ, τ, δ. "
            f"Its Ψ is {ian.summary()}; that of Clip SGD is {clip.summary()}. Without SGD, all "
            f"methods with β = 2/3 end within {100 * gap:.0f} % of each other.",
        ),
        Finding(
            shown_ian.diverged == 0,
            "IAN-SGD is robust. On the figure's own instance and settings it diverges on "
            f"{of(shown_ian.diverged, len(shown_ian.finals))} seeds; the paper shows one seed.",
        ),
    )


def _median(runs: Runs) -> float:
    return float(np.median(runs.finals))


def _panel(name: str, title: str, runs: list[Runs], n: str, budget: int) -> Panel:
    return Panel(
        name=name,
        title=title,
        x_label="samples",
        y_label="Ψ(x)",
        curves=tuple(curve for each in runs for curve in each.curves()),
        caption=f"Faint: each of {n}; bold: their median, diverged ones included; lines that leave "
        f"through the top are transients or divergence. {who_diverged(runs)}",
        top=15.0,
        bottom=3.0,
        mark=budget,
    )
