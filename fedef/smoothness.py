"""(L0, L1) from a trajectory: the line L0 + L1 ||grad f|| above the local smoothness it met.

A sample is (||grad f||, curvature) at a place of the trajectory. Its curvature is either the secant
||grad f(x) - grad f(y)||/||x - y|| of two consecutive points, which sees the direction of travel
only and so may miss the largest curvature, or the spectral norm of the Hessian by power iteration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from fedef.errors import ConfigError
from fedef.randomness import stream
from fedef.vectors import Vector, is_finite, norm

Gradient = Callable[[Vector], Vector]
Hvp = Callable[[Vector], Vector]


@dataclass(frozen=True, eq=False)
class Samples:
    """What the trajectory showed, in its order."""

    gradient_norms: NDArray[np.float64]
    """(m,): ||grad f||_2."""
    curvatures: NDArray[np.float64]
    """(m,): local smoothness there."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its bootstrap percentile interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Envelope:
    """curvature <= L0 + L1 ||grad f|| on a share of the samples."""

    l0: Interval
    l1: Interval
    quantile: float
    """The share that the line is fitted to lie above; 1: all of them."""
    num_samples: int


def secant_samples(points: Sequence[Vector], gradients: Sequence[Vector]) -> Samples:
    """Secants of consecutive points, each at the norm of the mean of its two gradients.

    The mean approximates the gradient halfway, where the secant is a second-order estimate. Pairs
    of equal points are left out.

    Parameters
    ----------
    points, gradients
        m + 1 vectors (d,) each: x^0, x^1, ... and grad f there.

    Raises
    ------
    ConfigError
        If the numbers of points and gradients differ or no two consecutive points do.
    """
    if len(points) != len(gradients):
        raise ConfigError(
            f"smoothness: got {len(points)} points and {len(gradients)} gradients; "
            "pass the gradient of each point"
        )
    found = []
    for (x, g_x), (y, g_y) in pairwise(zip(points, gradients, strict=True)):
        a, b = g_x.astype(np.float64), g_y.astype(np.float64)
        distance = norm(y.astype(np.float64) - x)
        if distance > 0.0:
            found.append((norm((a + b) / 2), norm(b - a) / distance))
    return _samples(found)


def hessian_samples(points: Sequence[Vector], gradient: Gradient, *, seed: int = 0) -> Samples:
    """||grad^2 f||_2 at each point, by power iteration on differences of `gradient`.

    Raises
    ------
    ConfigError
        If there is no point, or a gradient is not finite.
    """
    found = [
        (
            norm(gradient(x)),
            hessian_norm(difference_hvp(gradient, x), len(x), seed=seed),
        )
        for x in points
    ]
    return _samples(found)


def hessian_norm(
    hvp: Hvp, dimension: int, *, seed: int = 0, iterations: int = 100, tolerance: float = 1e-3
) -> float:
    """||H||_2 by power iteration on H^2: v <- H(Hv)/||H(Hv)||, the norm is sqrt(||H(Hv)||).

    H^2, because eigenvalues +a and -a of H would keep the iteration on H from settling. Approaches
    from below, and stops once an iteration adds less than `tolerance` of it.

    Parameters
    ----------
    hvp
        v (d,) -> H v (d,), H symmetric; it need not be definite.
    seed
        Of the named stream that the first v is drawn from.

    Raises
    ------
    ConfigError
        If a product is not finite.
    """
    v = stream(seed, "hessian-norm").standard_normal(dimension)
    v /= norm(v)
    last = 0.0
    for _ in range(iterations):
        twice = hvp(np.asarray(hvp(v), dtype=np.float64))
        if not is_finite(np.asarray(twice)):
            raise ConfigError(
                "smoothness: a Hessian-vector product is not finite; "
                "leave out the points where the run had diverged"
            )
        length = norm(np.asarray(twice))
        if length == 0.0:
            return 0.0
        v = np.asarray(twice, dtype=np.float64) / length
        if length**0.5 <= last * (1 + tolerance):
            return float(max(length**0.5, last))
        last = length**0.5
    return float(last)


def difference_hvp(gradient: Gradient, x: Vector, *, relative_step: float | None = None) -> Hvp:
    """Return v -> (grad f(x + h u) - grad f(x - h u)) ||v||/(2h), u = v/||v||.

    The error is O(h^2) plus rounding over h; h = `relative_step` max(1, ||x||), by default the cube
    root of the precision of x's dtype, which balances them (6e-6 in float64, 5e-3 in float32).
    """
    step = float(np.cbrt(np.finfo(x.dtype).eps)) if relative_step is None else relative_step
    h = step * max(1.0, norm(x))

    def hvp(v: Vector) -> Vector:
        length = norm(v)
        if length == 0.0:
            return np.zeros(x.shape)
        move = (h / length) * v.astype(np.float64)
        ahead = gradient((x + move).astype(x.dtype)).astype(np.float64)
        behind = gradient((x - move).astype(x.dtype)).astype(np.float64)
        return np.asarray((ahead - behind) * (length / (2 * h)))

    return hvp


def fit_envelope(
    samples: Samples,
    *,
    quantile: float = 0.95,
    resamples: int = 200,
    block: int | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> Envelope:
    """Fit the line of a quantile regression with L0, L1 >= 0, by linear programming.

    It minimizes the mean of q max(c - l, 0) + (1-q) max(l - c, 0), c the curvature and l = L0 +
    L1 ||grad f|| (Koenker and Bassett 1978). q = 1 is the lowest line on average that no sample
    exceeds; a smaller q leaves the largest (1-q) of the samples above it, so that a few wild ones
    do not decide. The line belongs to the places that the trajectory saw: others may be as valid.

    Parameters
    ----------
    quantile
        q in (0, 1].
    resamples
        Bootstrap draws for the intervals, of whole blocks, since neighbours on a trajectory are
        alike; 0: the intervals are the estimates.
    block
        Consecutive samples in a block; None: about sqrt(m).
    confidence
        Of the percentile intervals.
    seed
        Of the named streams of the draws; the same seed pairs the draws of equally long samples.

    Raises
    ------
    ConfigError
        If there are fewer than two samples or a setting is out of range.
    """
    m = len(samples.gradient_norms)
    if m < 2:
        raise ConfigError(f"smoothness: a line needs at least 2 samples, got {m}; run longer")
    for name, value in (("quantile", quantile), ("confidence", confidence)):
        if not 0 < value <= 1:
            raise ConfigError(f"smoothness: {name} must be in (0, 1], got {value}")
    size = max(1, round(m**0.5)) if block is None else block
    if not 1 <= size <= m or resamples < 0:
        raise ConfigError(
            f"smoothness: block must be in [1, {m}] and resamples not negative, "
            f"got {size} and {resamples}"
        )
    estimate = _line(samples.gradient_norms, samples.curvatures, quantile)
    drawn = [estimate]
    for draw in range(resamples):
        chosen = _blocks(m, size, stream(seed, "smoothness-bootstrap", draw))
        drawn.append(_line(samples.gradient_norms[chosen], samples.curvatures[chosen], quantile))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.array(drawn), [tail, 1 - tail], axis=0).tolist()
    return Envelope(
        Interval(estimate[0], low[0], high[0]),
        Interval(estimate[1], low[1], high[1]),
        quantile,
        m,
    )


def _samples(found: Sequence[tuple[float, float]]) -> Samples:
    array = np.array(found, dtype=np.float64).reshape(-1, 2)
    if not len(array):
        raise ConfigError("smoothness: no sample; the trajectory does not move, run longer")
    if not np.isfinite(array).all():
        raise ConfigError(
            "smoothness: a gradient is not finite; leave out the points where the run had diverged"
        )
    return Samples(array[:, 0].copy(), array[:, 1].copy())


def _line(
    norms: NDArray[np.float64], curvatures: NDArray[np.float64], quantile: float
) -> tuple[float, float]:
    """(L0, L1) of the quantile regression; scaled, since solvers stop at absolute tolerances.

    Variables L0, L1 and u >= 0, v >= 0 with c = l + u - v; q = 1 forbids u.
    """
    m = len(norms)
    x_scale, y_scale = float(norms.max()) or 1.0, float(curvatures.max()) or 1.0
    x, y = norms / x_scale, curvatures / y_scale
    if quantile == 1:
        solved = linprog(
            [1.0, float(x.mean())],
            A_ub=-np.column_stack([np.ones(m), x]),
            b_ub=-y,
            bounds=(0, None),
            method="highs",
        )
    else:
        # The dual has m bounded variables and two constraints: max y.a, 0 <= a + 1 - q <= 1.
        solved = linprog(
            -y,
            A_ub=np.vstack([np.ones(m), x]),
            b_ub=[0.0, 0.0],
            bounds=(quantile - 1, quantile),
            method="highs",
        )
    if not solved.success:
        raise ConfigError(f"smoothness: the fit failed: {solved.message}; the samples are unusable")
    l0, l1 = solved.x if quantile == 1 else -solved.ineqlin.marginals
    # The dual's multipliers are nonnegative up to the solver's tolerance.
    return max(float(l0), 0.0) * y_scale, max(float(l1), 0.0) * y_scale / x_scale


def _blocks(m: int, size: int, draws: np.random.Generator) -> NDArray[np.int64]:
    """M indices: blocks of consecutive ones from random starts (moving-block bootstrap)."""
    starts = draws.integers(m - size + 1, size=-(-m // size))
    return np.asarray((starts[:, None] + np.arange(size)).reshape(-1)[:m], dtype=np.int64)
