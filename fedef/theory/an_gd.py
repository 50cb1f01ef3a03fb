"""AN-GD, x <- x - gamma grad f/||grad f||^beta, under generalized smoothness (arXiv:2410.14054).

Smoothness: ||grad f(x) - grad f(y)|| <= (L0 + L1 ||grad f(x)||^a) ||x - y||, 0 <= a <= beta <= 1.
PL: ||grad f(x)||^rho >= 2 mu (f(x) - f*), rho > 0; rho = 2 is the classical case. K = L0 + L1.
The lemmas are derived here; the paper's own constants are known from memory only.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

from fedef.errors import ConfigError
from fedef.theory.checks import require_not_negative, require_positive, require_probability


@dataclass(frozen=True)
class AnGdRate:
    """Iterations to accuracy eps grow like eps^{-exponent}, times log(1/eps) where it says so."""

    exponent: float
    logarithm: bool


def an_gd_rate(beta: float, rho: float | None) -> AnGdRate:
    """Return how many iterations f - f* <= eps takes, by regime (arXiv:2410.14054; derived here).

    beta < 2 - rho: eps^{-(2-rho)/rho}, whatever beta. beta = 2 - rho: eps^{-beta/rho} log(1/eps).
    beta > 2 - rho: eps^{-beta/rho}, so the smallest admissible beta is the best. `rho` None, no PL:
    eps^{-2} to min ||grad f|| <= eps.

    Raises
    ------
    ConfigError
        If `beta` is not in [0, 1] or `rho` is not positive.
    """
    _require_beta(beta)
    if rho is None:
        return AnGdRate(2.0, logarithm=False)
    require_positive("rho", rho)
    if beta < 2 - rho:
        return AnGdRate((2 - rho) / rho, logarithm=False)
    return AnGdRate(beta / rho, logarithm=beta == 2 - rho)


def an_gd_step_size(
    eps: float, *, mu: float, rho: float, beta: float, l0: float, l1: float
) -> float:
    """Step gamma = min{(2 mu eps)^{beta/rho}/(2K), 1/(4 L1)}  (derived here).

    The paper's, from memory, is (2 mu eps)^{beta/rho}/(8K + 1).

    Raises
    ------
    ConfigError
        If a constant is inadmissible.
    """
    for symbol, value in (("eps", eps), ("mu", mu), ("rho", rho)):
        require_positive(symbol, value)
    _require_beta(beta)
    return _capped((2 * mu * eps) ** (beta / rho), l0, l1)


def an_gd_stationary_step_size(eps: float, *, beta: float, l0: float, l1: float) -> float:
    """Step gamma = min{eps^beta/(2K), 1/(4 L1)}  (derived here; no PL).

    Gives min ||grad f|| = O(eps) within O(K Delta_0/eps^2) iterations.

    Raises
    ------
    ConfigError
        If a constant is inadmissible.
    """
    require_positive("eps", eps)
    _require_beta(beta)
    return _capped(eps**beta, l0, l1)


def an_gd_descent(
    loss: float, gradient_norm: float, *, step_size: float, beta: float, l0: float, l1: float
) -> float:
    """f+ <= f - (5/8) gamma x^{2-beta} + (gamma/4)(2 gamma K)^{(2-beta)/beta}, x = ||grad f||.

    The right side, for gamma <= 1/(4 L1) and 0 < beta <= 1 (derived here: the descent lemma,
    x^a <= 1 + x^beta, and a split at x^beta = 2 gamma K).

    Raises
    ------
    ConfigError
        If beta = 0, the step is larger than 1/(4 L1), or a constant is inadmissible.
    """
    require_probability("beta", beta)
    require_positive("gamma", step_size)
    if 4 * l1 * step_size > 1 + 1e-12:
        raise ConfigError(
            f"theory: AN-GD's descent lemma needs gamma <= 1/(4 L1) = {1 / (4 * l1):.6g}, "
            f"got {step_size:.6g}; it says nothing about larger steps"
        )
    floor: float = (2 * step_size * _total(l0, l1)) ** ((2 - beta) / beta)
    descent: float = 5 / 8 * step_size * gradient_norm ** (2 - beta)
    return loss - descent + step_size / 4 * floor


def an_gd_iterations(
    eps: float, gap: float, *, mu: float, rho: float, beta: float, l0: float, l1: float
) -> float:
    """Iterations after which f - f* <= eps, with the step of `an_gd_step_size` (derived here).

    While Delta = f - f* > eps, Delta+ <= Delta - h Delta^p with p = (2-beta)/rho and
    h = (3/8) gamma (2 mu)^p, so at most 1 + integral_eps^gap dD/(h D^p) iterations are needed.

    Parameters
    ----------
    eps
        The accuracy.
    gap
        f(x^0) - f*.

    Raises
    ------
    ConfigError
        If beta = 0 or a constant is inadmissible.
    """
    require_probability("beta", beta)
    require_positive("f(x^0) - f*", gap)
    gamma = an_gd_step_size(eps, mu=mu, rho=rho, beta=beta, l0=l0, l1=l1)
    if gap <= eps:
        return 0.0
    p = (2 - beta) / rho
    h: float = 3 / 8 * gamma * (2 * mu) ** p
    integral: float = log(gap / eps) if p == 1 else (gap ** (1 - p) - eps ** (1 - p)) / (1 - p)
    return 1 + integral / h


def _capped(numerator: float, l0: float, l1: float) -> float:
    step = numerator / (2 * _total(l0, l1))
    return min(step, 1 / (4 * l1)) if l1 > 0 else step


def _total(l0: float, l1: float) -> float:
    require_not_negative("L0", l0)
    require_not_negative("L1", l1)
    require_positive("L0 + L1", l0 + l1)
    return l0 + l1


def _require_beta(beta: float) -> None:
    if not 0 <= beta <= 1:
        raise ConfigError(
            f"theory: AN-GD has beta in [0, 1], got {beta}; 0 is gradient descent, 1 normalizes"
        )
