"""(L0, L1) estimated along a run of the polynomial, where the Hessian is known in closed form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedef.problems.polynomial import Polynomial
from fedef.smoothness import Envelope, Samples, fit_envelope, hessian_samples, secant_samples
from fedef.vectors import Vector, norm
from sims.engine import InlineEngine
from sims.reproduce.runs import experiment_on
from sims.reproduce.study import Comparison, Curve, Finding, Panel, Settings, Study
from sims.reproduce.verdict import Check, within_relative

TOLERANCE = 0.2
TRUTH = "Hessian in closed form"


@dataclass(frozen=True)
class Row:
    """One L1 with a step that walks from the start to the minimum in `rounds`."""

    l1: int
    step_size: float
    rounds: int


ROWS = (Row(1, 0.1768, 260), Row(4, 0.0221, 2000), Row(8, 0.011, 4000))


@dataclass(frozen=True)
class Found:
    """The same line fitted to three kinds of samples along one run."""

    truth: Envelope
    secants: Envelope
    products: Envelope
    samples: Samples
    """The closed form's."""


def study(settings: Settings, *, rows: tuple[Row, ...] = ROWS) -> Study:
    """Fit the upper envelope L0 + L1 ||grad f|| on each polynomial, three ways."""
    found = {}
    for number, row in enumerate(rows):
        settings.tell(f"L1={row.l1}", number / len(rows))
        found[row.l1] = estimate(row, resamples=40 if settings.quick else 200)
    checks = [check for row in rows for check in _checks(row, found[row.l1])]
    good = all(check.agrees for check in checks)
    return Study(
        name="smoothness",
        title="(L0, L1) estimated along a run",
        about="Local curvature against the gradient's norm along normalized gradient descent on the"
        " polynomial, and the line L0 + L1 ‖∇f‖ above 95 % of it, from consecutive gradients and "
        "from Hessian-vector products.",
        findings=(
            Finding(
                good,
                "Estimates of (L0, L1) from gradients alone are within "
                f"{TOLERANCE:.0%} of the same fit on the exact Hessian.",
            ),
            _pair(rows, found),
        ),
        panels=tuple(_panel(row, found[row.l1]) for row in rows),
        comparisons=(
            Comparison(
                "The fitted line, one run each (seed 0). Ours: estimate with a 95 % interval "
                "(block bootstrap over the run); agrees: within 20 % of the fit on the exact "
                "Hessian norms of the same run.",
                tuple(checks),
            ),
        ),
        settings=(
            "problem=polynomial num-clients=1 method=norm-ef21 compressor=identity "
            "schedule=constant, step-size "
            + ", ".join(f"{row.step_size} (L1={row.l1}, {row.rounds} rounds)" for row in rows),
        ),
    )


def _pair(rows: tuple[Row, ...], found: Mapping[int, Found]) -> Finding:
    """Whether the paper's constants bound the exact curvature on the way, and by how much."""
    slack = {}
    for row in rows:
        samples = found[row.l1].samples
        slack[row.l1] = (4.0 + row.l1 * samples.gradient_norms) / samples.curvatures
    shown = ", ".join(f"{np.median(s):.3g} (L1 = {l1})" for l1, s in slack.items())
    return Finding(
        all(bool((s >= 1).all()) for s in slack.values()),
        "The paper's pair (L0 = 4 and its L1) bounds the exact curvature everywhere on the way. It "
        f"is not tight: the median bound is the curvature times {shown}.",
    )


def estimate(row: Row, *, resamples: int) -> Found:
    """Walk, sample and fit."""
    experiment = experiment_on(
        None,
        problem="polynomial",
        num_clients=1,
        l1=row.l1,
        method="norm-ef21",
        compressor="identity",
        schedule="constant",
        step_size=row.step_size,
    )
    engine, problem = InlineEngine(experiment), experiment.problem
    assert isinstance(problem, Polynomial)  # noqa: S101 - asked for by its name
    points = [engine.server.x]
    for _ in range(row.rounds):
        engine.round()
        points.append(engine.server.x)

    def gradient(x: Vector) -> Vector:
        return problem.local(0, x, buffers=np.empty(0)).gradient

    gradients = [gradient(x) for x in points]
    exact = Samples(
        np.array([norm(g) for g in gradients]), hessian_norms(problem, np.array(points))
    )
    every = points[:: max(1, len(points) // 100)]
    return Found(
        truth=fit_envelope(exact, resamples=0),
        secants=fit_envelope(secant_samples(points, gradients), resamples=resamples),
        products=fit_envelope(hessian_samples(every, gradient), resamples=resamples),
        samples=exact,
    )


def hessian_norms(problem: Polynomial, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(T,) spectral norms: the Hessian is diagonal, 12 a x^2 + 2 lambda (1-3x^2)/(1+x^2)^3."""
    square = points**2
    bent = 2 * problem.lam * (1 - 3 * square) / (1 + square) ** 3
    return np.asarray(np.abs(12 * problem.a[0] * square + bent).max(axis=1))


def _checks(row: Row, found: Found) -> list[Check]:
    checks = []
    for kind, fit in (("secants", found.secants), ("Hessian products", found.products)):
        for name in ("l0", "l1"):
            ours, truth = getattr(fit, name), getattr(found.truth, name).estimate
            checks.append(
                Check(
                    f"polynomial with L1 = {row.l1}",
                    TRUTH,
                    f"{truth:.4g}",
                    f"{ours.estimate:.4g} [{ours.low:.3g}, {ours.high:.3g}]",
                    within_relative(ours.estimate, truth, TOLERANCE),
                    part=f"{name.upper()} from {kind}",
                )
            )
    return checks


def _panel(row: Row, found: Found) -> Panel:
    order = np.argsort(found.samples.gradient_norms)
    norms = found.samples.gradient_norms[order]

    def line(fit: Envelope) -> NDArray[np.float64]:
        return np.asarray(fit.l0.estimate + fit.l1.estimate * norms)

    return Panel(
        name=f"smoothness-l1-{row.l1}",
        title=f"L1 = {row.l1}",
        x_label="‖∇f(x)‖",
        y_label="‖∇²f(x)‖",
        curves=(
            Curve(norms, found.samples.curvatures[order], 0, "exact curvature on the way"),
            Curve(norms, line(found.secants), 1, "L0 + L1‖∇f‖ from consecutive gradients"),
            Curve(norms, line(found.products), 3, "L0 + L1‖∇f‖ from Hessian products"),
            Curve(norms, 4.0 + row.l1 * norms, 2, "the paper's 4 + L1‖∇f‖"),
        ),
        bottom=0.1 * found.truth.l0.estimate,
        caption=f"One run of {row.rounds} rounds (seed 0); the estimate is the line above 95 % of "
        "the measured curvatures.",
    )
