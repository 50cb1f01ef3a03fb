"""Phase retrieval of arXiv:2410.14054: the instance, the deterministic methods, 20 seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from fedef.problems.phase_retrieval import PhaseRetrieval, make_instance
from fedef.threads import single_threaded
from fedef.vectors import Vector
from sims.reproduce.loops import (
    FIGURE,
    Loop,
    Runs,
    figure_check,
    mean_check,
    over_seeds,
    settings_line,
    who_diverged,
)
from sims.reproduce.runs import Measure, experiment_on, follow, problem_of
from sims.reproduce.study import (
    IAN,
    Comparison,
    Curve,
    Finding,
    Panel,
    Settings,
    Study,
    numerus,
    of,
)
from sims.reproduce.verdict import MEASURED, Check, same_digits, within_relative

BUDGET = 27_000
SMALL = 10.0
"""The paper's figure is read at f <= 10."""
_DIGITS = {"f(z0)": "146143", "f(z1)": "97398.7", "f(z*)": "8.28319", "min f": "7.95038"}
_TOLERANCE = 1e-4
_READING = 0.02
_WHY_NOT = {
    "SPIDER": "the figure has these settings; SPIDER's end is heavy-tailed over seeds, and the "
    "figure's one seed lies below all of ours"
}
_UNSURE = "the fit is one of several; the figure's settings are not published"
_OTHER_SETTINGS = "the figure's settings are not the repository's, and are not published"


@dataclass(frozen=True)
class Deterministic:
    """A deterministic method from z0 and f at its tenth evaluation."""

    label: str
    settings: dict[str, str | float]
    printed: str


DETERMINISTIC = (
    Deterministic("GD", {"method": "gd", "step_size": 8e-4}, "2090.87"),
    Deterministic("1/3-GD", {"method": "an-gd", "step_size": 0.03, "beta": 1 / 3}, "585.779"),
    Deterministic("2/3-GD", {"method": "an-gd", "step_size": 0.1, "beta": 2 / 3}, "4490.50"),
    Deterministic("1-GD", {"method": "an-gd", "step_size": 0.2, "beta": 1.0}, "106824"),
    Deterministic(
        "Clipped GD", {"method": "clip-gd", "step_size": 0.9, "beta": 1.0, "tau": 1e4}, "43318"
    ),
)


@dataclass(frozen=True)
class Printed:
    """A stochastic method, what the specification measured and what the figure shows."""

    loop: Loop
    mean: float
    deviation: float
    figure: float
    """f at the end, read off PhaseRetrieval.png."""
    shown: str
    small: str
    """Samples to f <= 10 in the figure."""


_IAN = {"step_size": 0.3, "beta": 2 / 3, "tau": 2025.0, "delta": 15.0, "amplification": 2.0}
_CLIP = {"step_size": 0.6, "beta": 1.0, "tau": 2025.0, "delta": 15.0}
STOCHASTIC = (
    Printed(Loop("SGD", "sgd", 64, {"step_size": 5e-5}, 5), 952, 13, 950, "≈ 950", "never"),
    Printed(
        Loop("NSGD", "nsgd", 64, {"step_size": 0.2, "beta": 1.0}, 2),
        10.71,
        0.39,
        10.5,
        "10.5",
        "never clearly",
    ),
    Printed(
        Loop("NSGDm", "nsgdm", 64, {"step_size": 0.2, "beta": 1.0, "momentum_eta": 0.8}, 3),
        11.50,
        0.61,
        11.75,
        "11.5–12",
        "never clearly",
    ),
    Printed(Loop("Clip SGD", "clip-sgd", 64, _CLIP, 0), 171, 23, 8.2, "8.2", "≈ 13,900"),
    Printed(
        Loop("SPIDER", "spider", 64, {"step_size": 0.3, "beta": 1.0}, 4, period=20),
        191,
        57,
        100,
        "≈ 100",
        "never",
    ),
    Printed(
        Loop("IAN-SGD", "ian-sgd", 64, _IAN, 1, independent=4),
        8.25,
        0.04,
        9.1,
        "8.9–9.3",
        "≈ 7,500",
    ),
)
FITTED = (
    (
        Loop("Clip SGD, τ = 400", "clip-sgd", 64, {**_CLIP, "tau": 400.0}, 0),
        8.2,
        "8.2",
        13_900.0,
    ),
    (
        Loop(
            "IAN-SGD, γ = 0.25, τ = 400",
            "ian-sgd",
            64,
            {**_IAN, "step_size": 0.25, "tau": 400.0},
            1,
            independent=4,
        ),
        9.1,
        "8.9–9.3",
        7_500.0,
    ),
)
"""The specification's fits of the figure, f at its end, and samples to f <= 10 there."""


def study(settings: Settings, *, budget: int = BUDGET) -> Study:
    """Digits, deterministic values, then every stochastic method over seeds."""
    seeds = range(20)
    total, done = len(STOCHASTIC) + len(FITTED) + 1, 0
    with single_threaded():
        settings.tell("instance and deterministic methods", 0.0)
        warm, cold = _problem(warm=True), _problem(warm=False)
        value = value_of(warm)
        digits = _digit_checks(warm, cold, value)
        deterministic, paths = _deterministic(cold, value)
        done += 1
        repository: list[Runs] = []
        fitted: list[Runs] = []
        for loop in [printed.loop for printed in STOCHASTIC] + [row[0] for row in FITTED]:
            settings.tell(f"{loop.label}, 20 seeds", done / total)
            runs = over_seeds(
                warm,
                loop,
                value,
                seeds=seeds,
                budget=budget,
                limit=value(warm.initial_point()),
                points=budget // 64,
                name="phase-retrieval",
            )
            (repository if done <= len(STOCHASTIC) else fitted).append(runs)
            done += 1
    n = numerus(len(seeds), "seed", "seeds")
    top = 2 * value(warm.initial_point())
    means = [
        mean_check(runs, printed.mean, printed.deviation, 0)
        for runs, printed in zip(repository, STOCHASTIC, strict=True)
    ]
    figures = [
        figure_check(
            runs,
            printed.figure,
            widened=_READING,
            why=_WHY_NOT.get(printed.loop.label, _OTHER_SETTINGS),
            shown=printed.shown,
        )
        for runs, printed in zip(repository, STOCHASTIC, strict=True)
    ]
    return Study(
        name="phase-retrieval",
        paper=IAN,
        title="Phase retrieval",
        about="f(z) = ½ mean (yᵣ − (aᵣᵀz)²)² with m = 3000 measurements of a signal in d = 100, "
        "the published instance (arXiv:2410.14054). Deterministic methods start at z0, stochastic "
        "ones at z1, one normalized step later. “Gradient” is the published code's: half of f's.",
        findings=_findings(digits, deterministic, means, figures, repository, fitted),
        panels=(
            _panel("phase-retrieval", "Repository's settings", repository, n, top, budget),
            _panel("phase-retrieval-fitted", "Fitted to the figure", fitted, n, top, budget),
            _deterministic_panel(paths),
        ),
        comparisons=(
            Comparison("The instance. Agrees: the same printed digits.", tuple(digits)),
            Comparison(
                "Deterministic methods from z0: f at the tenth evaluation (nine updates). "
                f"Agrees: to {_TOLERANCE:g} relative.",
                tuple(deterministic),
            ),
            Comparison(
                f"f at {budget:,} samples with the repository's settings. Ours: mean ± standard "
                f"deviation over n = {n} of minibatches, one instance; the specification's: the "
                "same over its own 20 seeds. Agrees: means within 3 of its standard deviations.",
                tuple(means),
            ),
            Comparison(
                "The paper's figure PhaseRetrieval.png, f at its end. Ours: median [least, "
                f"largest] over n = {n}. Agrees: the figure's one seed, read to about 1 %, lies in "
                f"our range widened by {_READING:.0%}. The last two rows use the specification's "
                "fit of the figure's settings, which are not unique.",
                tuple(
                    figures
                    + [
                        figure_check(runs, row[1], widened=_READING, why=_UNSURE, shown=row[2])
                        for runs, row in zip(fitted, FITTED, strict=True)
                    ]
                ),
            ),
            Comparison(
                f"Samples until f ≤ 10 first holds. Ours: median over those of n = {n} that get "
                "there; the paper's: read off the figure. Agrees: both never (in most seeds), or "
                "within 25 %.",
                tuple(
                    [
                        _small_check(runs, printed.small)
                        for runs, printed in zip(repository, STOCHASTIC, strict=True)
                    ]
                    + [
                        _small_check(runs, f"≈ {row[3]:,.0f}", why=_UNSURE)
                        for runs, row in zip(fitted, FITTED, strict=True)
                    ]
                ),
            ),
        ),
        settings=(
            "problem=phase-retrieval num-clients=1 schedule=constant, instance-seed 2024, seeds "
            f"0 to {len(seeds) - 1}; every update through the inline engine, float64",
            settings_line([printed.loop for printed in STOCHASTIC]),
            "fitted to the figure: " + settings_line([row[0] for row in FITTED]),
            "A run counts as diverged if f at the budget is above f(z1).",
        ),
        notes=(
            "The published code compares the squared constant with the plain norm, so τ = 45² = "
            "2025; δ = 15 is then far below τ and does nothing.",
            "The published plot code drops every curve that exceeds 2 f(z1) = "
            f"{top:,.0f}; in our runs it would drop {_dropped(repository, top)}.",
            "SGD's published step is 37 times below IAN-SGD's own unclipped step: it is not tuned.",
            "IAN-SGD uses B + B' = 68 samples per update; they are counted. SPIDER's difference is "
            "counted once, as in the paper, though it needs two gradients of each sample.",
            "These are the paper's own, hand-chosen constants; the fair protocol tunes all methods "
            "alike.",
        ),
    )


def value_of(problem: PhaseRetrieval) -> Measure:
    """The measure f."""
    one, buffers = np.ones(1), problem.initial_buffers()

    def measure(z: Vector) -> float:
        return problem.evaluate(z, weights=one, buffers=buffers).loss

    return measure


def _problem(*, warm: bool) -> PhaseRetrieval:
    return problem_of(PhaseRetrieval, problem="phase-retrieval", num_clients=1, warm_start=warm)


def _digit_checks(warm: PhaseRetrieval, cold: PhaseRetrieval, value: Measure) -> list[Check]:
    truth = make_instance(2024).truth

    def both(z: Vector) -> tuple[float, Vector]:
        result = warm.local(0, z, buffers=warm.initial_buffers())
        return result.loss, 2 * result.gradient

    least = float(minimize(both, truth, jac=True, method="BFGS").fun)
    ours = [value(cold.initial_point()), value(warm.initial_point()), value(truth), least]
    return [
        Check(name, "specification", printed, f"{number:.6g}", same_digits(number, printed))
        for (name, printed), number in zip(_DIGITS.items(), ours, strict=True)
    ]


def _deterministic(
    cold: PhaseRetrieval, value: Measure
) -> tuple[list[Check], list[tuple[str, list[float]]]]:
    checks, paths = [], []
    for row in DETERMINISTIC:
        experiment = experiment_on(
            cold,
            problem="phase-retrieval",
            num_clients=1,
            schedule="constant",
            warm_start=False,
            **row.settings,
        )
        values = follow(experiment, value, range(10)).tolist()
        agrees = within_relative(values[9], float(row.printed), _TOLERANCE)
        checks.append(Check(row.label, MEASURED, row.printed, f"{values[9]:.6g}", agrees))
        paths.append((row.label, values))
    return checks, paths


def first_small(runs: Runs, level: float = SMALL) -> list[int]:
    """Samples at the first recorded value at most `level`, of the seeds that get there."""
    return [
        int(runs.samples[np.argmax(values <= level)])
        for values in runs.values
        if (values <= level).any()
    ]


def _small_check(runs: Runs, printed: str, why: str = _OTHER_SETTINGS) -> Check:
    found = first_small(runs)
    never = len(found) * 2 <= len(runs.values)
    shown = f"{np.median(found):,.0f}" if found else "never"
    if found and len(found) < len(runs.values):
        shown += f"; in {of(len(found), len(runs.values))} seeds"
    if printed.startswith("never"):
        agrees = never
        if not agrees and printed == "never clearly":
            why = "the figure's one seed stays just above 10, most of ours pass just below"
    else:
        expected = float(printed.removeprefix("≈ ").replace(",", ""))
        agrees = not never and within_relative(float(np.median(found)), expected, 0.25)
    return Check(runs.loop.label, FIGURE, printed, shown, agrees, "" if agrees else why)


def _dropped(runs: list[Runs], top: float) -> str:
    counts = [
        f"{of(int((each.values > top).any(axis=1).sum()), len(each.values))} of {each.loop.label}"
        for each in runs
        if (each.values > top).any()
    ]
    return ", ".join(counts) if counts else "none"


def _findings(
    digits: list[Check],
    deterministic: list[Check],
    means: list[Check],
    figures: list[Check],
    repository: list[Runs],
    fitted: list[Runs],
) -> tuple[Finding, ...]:
    by_label = {runs.loop.label: runs for runs in repository}
    ian, clip = by_label["IAN-SGD"], by_label["Clip SGD"]
    fast, others = first_small(ian), [each for each in repository if each is not ian]
    exact = all(check.agrees for check in digits + deterministic)
    close = sum(bool(check.agrees) for check in means)
    shown = sum(bool(check.agrees) for check in figures)
    ours = np.median(clip.kept) if len(clip.kept) else np.inf
    plateau = [np.median(runs.kept) if len(runs.kept) else np.inf for runs in fitted]
    return (
        Finding(
            exact,
            "The instance's printed digits and the five deterministic methods come out the same.",
        ),
        Finding(
            close == len(means),
            f"With the repository's settings {of(close, len(means))} stochastic methods end within "
            "3 standard deviations of the specification's means over 20 seeds.",
        ),
        Finding(
            bool(fast) and all(_typical(ian) < _typical(each) for each in others),
            f"With the repository's settings IAN-SGD is the first below f = 10, as the paper says: "
            f"{_reached(ian)}; then {_reached(min(others, key=_typical))}.",
        ),
        Finding(
            shown == len(figures),
            "The paper's figure shows what the repository's settings give: it does for "
            f"{of(shown, len(figures))} methods. Clip SGD ends at {ours:.3g} with them, in the "
            f"figure at 8.2; with τ = 400 it ends at {plateau[0]:.3g}, "
            + ("below" if plateau[0] < plateau[1] else "above")
            + f" IAN-SGD at the fit of its curve ({plateau[1]:.3g}).",
        ),
    )


def _typical(runs: Runs) -> float:
    """Median samples to f <= 10, a seed that never gets there counted as inf."""
    found = first_small(runs)
    return float(np.median([*found, *([np.inf] * (len(runs.values) - len(found)))]))


def _reached(runs: Runs) -> str:
    found = first_small(runs)
    if not found:
        return f"{runs.loop.label} never"
    seeds = of(len(found), len(runs.values))
    return f"{runs.loop.label} in {seeds} seeds, median {np.median(found):,.0f} samples"


def _panel(name: str, title: str, runs: list[Runs], n: str, top: float, budget: int) -> Panel:
    return Panel(
        name=name,
        title=title,
        x_label="samples",
        y_label="f(z)",
        curves=tuple(curve for each in runs for curve in each.curves()),
        caption=f"Faint: each of n = {n}; bold: their median. {who_diverged(runs)}",
        top=2 * top,
        bottom=6.0,
        level=SMALL,
        mark=budget,
    )


def _deterministic_panel(paths: list[tuple[str, list[float]]]) -> Panel:
    return Panel(
        name="phase-retrieval-deterministic",
        title="Deterministic methods from z0",
        x_label="evaluation",
        y_label="f(z)",
        curves=tuple(
            Curve(np.arange(1.0, len(values) + 1), np.array(values), color, label)
            for color, (label, values) in enumerate(paths)
        ),
        caption="One run each: nothing is random.",
    )
