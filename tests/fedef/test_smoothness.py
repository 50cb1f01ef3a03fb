"""Estimates of (L0, L1) against functions whose curvature is known in closed form."""

import numpy as np
import pytest

from fedef.config import Config
from fedef.errors import ConfigError
from fedef.problems.registry import build_problem
from fedef.smoothness import (
    Samples,
    difference_hvp,
    fit_envelope,
    hessian_norm,
    hessian_samples,
    secant_samples,
)
from fedef.vectors import norm

STEPS = {1: 0.1768, 4: 0.0221, 8: 0.011}
ROUNDS = {1: 260, 4: 2000, 8: 4000}


def polynomial_descent(l1, *, seed=0):
    """Normalized gradient descent with a constant step, from the paper's start to the minimum."""
    settings = {"problem": "polynomial", "l1": l1, "num-clients": 1, "seed": seed}
    problem = build_problem(Config.from_flat(settings))

    def gradient(x):
        return problem.local(0, x, buffers=np.empty(0)).gradient

    points = [problem.initial_point()]
    for _ in range(ROUNDS[l1]):
        g = gradient(points[-1])
        points.append(points[-1] - STEPS[l1] * g / norm(g))
    return problem, gradient, points


def true_samples(problem, gradient, points):
    """The Hessian is diagonal: 12 a_j x_j^2 + 2 lambda (1 - 3 x_j^2)/(1 + x_j^2)^3."""
    x = np.array(points)
    diagonal = 12 * problem.a[0] * x**2 + 2 * problem.lam * (1 - 3 * x**2) / (1 + x**2) ** 3
    norms = np.array([norm(gradient(point)) for point in points])
    return Samples(norms, np.abs(diagonal).max(axis=1))


@pytest.mark.parametrize("l1", [1, 4, 8])
def test_polynomial_estimates_are_within_20_percent_of_the_true_envelope(l1):
    problem, gradient, points = polynomial_descent(l1)
    gradients = [gradient(x) for x in points]
    truth = fit_envelope(true_samples(problem, gradient, points), resamples=0)
    secants = fit_envelope(secant_samples(points, gradients), resamples=20)
    every = points[:: len(points) // 100]
    hessians = fit_envelope(hessian_samples(every, gradient), resamples=20)
    for estimate in (secants, hessians):
        assert estimate.l0.estimate == pytest.approx(truth.l0.estimate, rel=0.2)
        assert estimate.l1.estimate == pytest.approx(truth.l1.estimate, rel=0.2)
        assert estimate.l0.low <= truth.l0.estimate <= estimate.l0.high
        assert estimate.l1.low <= truth.l1.estimate <= estimate.l1.high


@pytest.mark.parametrize("l1", [1, 4, 8])
def test_the_papers_pair_is_a_bound_but_far_from_tight(l1):
    """||grad^2 f|| <= 4 + L1 ||grad f|| on the whole way; the tight slope is below L1/10."""
    problem, gradient, points = polynomial_descent(l1)
    truth = true_samples(problem, gradient, points)
    assert (truth.curvatures <= 4 + l1 * truth.gradient_norms).all()
    assert fit_envelope(truth, resamples=0).l1.estimate < l1 / 10


@pytest.mark.parametrize("size", [0.5, 3.0])
def test_exponential_has_l1_of_the_norm_of_a_and_no_l0(size):
    """f = exp(a.x): grad f = f a, grad^2 f = f a a^T, so ||grad^2 f|| = ||a|| ||grad f||."""
    a = size * np.array([2.0, -1.0, 2.0]) / 3

    def gradient(x):
        return np.exp(a @ x) * a

    points = [np.array([1.0, -1.0, 1.0]) * 2 / size]
    for _ in range(60):
        g = gradient(points[-1])
        points.append(points[-1] - 0.1 / size * g / norm(g))
    samples = [
        secant_samples(points, [gradient(x) for x in points]),
        hessian_samples(points, gradient),
    ]
    for of in samples:
        fit = fit_envelope(of, resamples=20)
        assert fit.l1.estimate == pytest.approx(size, rel=0.01)
        assert 0 <= fit.l0.estimate <= 0.01 * of.curvatures.max()
        assert fit.l1.low <= fit.l1.estimate <= fit.l1.high


@pytest.mark.parametrize("quantile", [0.5, 0.9, 1.0])
def test_the_line_leaves_the_right_share_of_noisy_samples_above(quantile):
    draws = np.random.default_rng(0)
    norms = draws.uniform(0, 10, 400)
    samples = Samples(norms, (1 + 0.5 * norms) * draws.uniform(0.2, 1, 400))
    fit = fit_envelope(samples, quantile=quantile, resamples=0)
    line = fit.l0.estimate + fit.l1.estimate * norms
    above = np.mean(samples.curvatures > line * (1 + 1e-9))
    assert above == pytest.approx(1 - quantile, abs=2 / 400)
    if quantile == 1.0:
        assert fit.l0.estimate == pytest.approx(1, rel=0.1)
        assert fit.l1.estimate == pytest.approx(0.5, rel=0.05)


def test_a_few_wild_samples_do_not_move_the_line():
    norms = np.linspace(0, 5, 200)
    clean = Samples(norms, 2 + 0.7 * norms)
    wild = Samples(norms, clean.curvatures.copy())
    wild.curvatures[[3, 90, 170]] *= 50
    for samples in (clean, wild):
        fit = fit_envelope(samples, resamples=0)
        assert (fit.l0.estimate, fit.l1.estimate) == pytest.approx((2, 0.7), rel=1e-6)
    assert fit_envelope(wild, quantile=1.0, resamples=0).l0.estimate > 50


def test_scale_of_the_problem_scales_the_estimates():
    """F = s f: L0 grows by s, L1 stays, whatever the units of the solver."""
    norms = np.linspace(0, 5, 100)
    for s in (1e-8, 1e8):
        fit = fit_envelope(Samples(s * norms, s * (2 + 0.7 * norms)), resamples=0)
        assert (fit.l0.estimate, fit.l1.estimate) == pytest.approx((2 * s, 0.7), rel=1e-6)


def test_intervals_are_reproducible_and_widen_with_confidence():
    draws = np.random.default_rng(0)
    norms = draws.uniform(0, 10, 80)
    samples = Samples(norms, (1 + 0.5 * norms) * draws.uniform(0.5, 1, 80))
    narrow = fit_envelope(samples, resamples=40, confidence=0.5)
    wide, again = (fit_envelope(samples, resamples=40, confidence=0.95) for _ in range(2))
    assert wide.l1 == again.l1
    assert wide.l1.low < narrow.l1.low < narrow.l1.high < wide.l1.high


@pytest.mark.parametrize("eigenvalues", [[3, 1, -2], [2, -2, 0.5], [-5, 1, 1], [0, 0, 0]])
def test_hessian_norm_of_a_known_matrix(eigenvalues):
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    h = basis @ np.diag(eigenvalues).astype(float) @ basis.T
    found = hessian_norm(lambda v: h @ v, 3, tolerance=1e-9)
    assert found == pytest.approx(np.abs(eigenvalues).max(), rel=1e-6, abs=1e-12)


def test_difference_hvp_is_linear_and_right_in_both_precisions():
    def gradient(x):
        return np.sinh(x)

    x = np.array([0.3, -1.0, 2.0])
    v = np.array([1.0, 2.0, -0.5])
    exact = np.cosh(x) * v
    np.testing.assert_allclose(difference_hvp(gradient, x)(v), exact, rtol=1e-8)
    np.testing.assert_allclose(difference_hvp(gradient, x)(1e6 * v), 1e6 * exact, rtol=1e-8)
    single = difference_hvp(gradient, x.astype(np.float32))
    np.testing.assert_allclose(single(v.astype(np.float32)), exact, rtol=2e-3)
    assert not difference_hvp(gradient, x)(np.zeros(3)).any()


def test_secants_of_a_quadratic_lie_between_its_eigenvalues():
    h = np.diag([1.0, 4.0])
    points = list(np.random.default_rng(0).standard_normal((30, 2)))
    samples = secant_samples(points, [h @ x for x in points])
    assert samples.curvatures.min() >= 1 - 1e-12
    assert samples.curvatures.max() <= 4 + 1e-12
    middle = h @ (points[0] + points[1]) / 2
    assert samples.gradient_norms[0] == pytest.approx(norm(middle), rel=1e-14)


def test_refusals():
    x = np.ones(3)
    with pytest.raises(ConfigError, match="does not move"):
        secant_samples([x, x], [x, x])
    with pytest.raises(ConfigError, match="2 points and 1 gradients"):
        secant_samples([x, x], [x])
    with pytest.raises(ConfigError, match="not finite"):
        secant_samples([x, 2 * x], [x, x * np.inf])
    with pytest.raises(ConfigError, match="product is not finite"):
        hessian_norm(lambda v: v * np.nan, 3)
    good = Samples(np.arange(5.0), np.arange(5.0))
    for bad in ({"quantile": 0.0}, {"confidence": 1.1}, {"block": 6}, {"resamples": -1}):
        with pytest.raises(ConfigError, match="must be in"):
            fit_envelope(good, **bad)
    with pytest.raises(ConfigError, match="at least 2 samples"):
        fit_envelope(Samples(np.ones(1), np.ones(1)))
