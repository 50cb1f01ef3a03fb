"""EF21 (arXiv:2106.05203) and its partial participation (arXiv:2110.03294)."""

from __future__ import annotations

from itertools import product
from math import sqrt

from fedef.errors import ConfigError
from fedef.theory.checks import (
    require_at_most,
    require_count,
    require_not_negative,
    require_positive,
    require_probability,
)
from fedef.theory.compression import error_factor, error_ratio


def ef21_step_size(lipschitz: float, client_lipschitz: float, alpha: float) -> float:
    """EF21's largest step: gamma = 1/(L + L~ r/(1-r))  (arXiv:2106.05203, Th. 1; stated).

    Parameters
    ----------
    lipschitz
        L of f.
    client_lipschitz
        L~ = sqrt(sum_i w_i L_i^2); the paper has equal weights.
    alpha
        The compressor's contraction constant.

    Raises
    ------
    ConfigError
        If a constant is not positive and finite, or `alpha` is not in (0, 1].
    """
    require_positive("L", lipschitz)
    require_positive("L~", client_lipschitz)
    return 1 / (lipschitz + client_lipschitz * error_ratio(alpha))


def ef21_bound(
    *,
    step_size: float,
    num_rounds: int,
    loss_gap: float,
    initial_error: float,
    lipschitz: float,
    client_lipschitz: float,
    alpha: float,
) -> float:
    """mean_{k<T} E||grad f(x^k)||^2 <= 2 (f^0 - f^inf)/(gamma T) + G^0/(theta T), theta = 1 - r.

    arXiv:2106.05203, Th. 1; stated. Weighted means of the clients are allowed; the paper has equal
    weights.

    Parameters
    ----------
    step_size
        gamma, at most `ef21_step_size`.
    num_rounds
        T: the mean is over x^0, ..., x^{T-1}.
    loss_gap
        f(x^0) - f^inf, or more.
    initial_error
        G^0 = sum_i w_i ||g_i^0 - grad f_i(x^0)||^2, of the g_i^0 that the first step follows; with
        init=zero these are C(grad f_i(x^0)).

    Raises
    ------
    ConfigError
        If the step is larger than the theorem allows or a constant is inadmissible.
    """
    require_positive("gamma", step_size)
    require_count("T", num_rounds, least=1)
    require_not_negative("f^0 - f^inf", loss_gap)
    require_not_negative("G^0", initial_error)
    largest = ef21_step_size(lipschitz, client_lipschitz, alpha)
    require_at_most("gamma", step_size, largest, "EF21 Th. 1")
    theta = alpha / (1 + error_factor(alpha))
    return 2 * loss_gap / (step_size * num_rounds) + initial_error / (theta * num_rounds)


def ef21_pp_step_size(
    lipschitz: float,
    client_lipschitz: float,
    alpha: float,
    *,
    participation: float,
    s: float,
    rho: float,
) -> float:
    """EF21-PP: gamma = 1/(L + sqrt(B/theta_p))  (arXiv:2110.03294, Th. 7; read in code).

    theta = 1 - (1+s)(1-alpha), beta = (1+1/s)(1-alpha), theta_p = theta p - rho (1-p),
    B = (beta p + (1 + 1/rho)(1-p)) L~^2, for s, rho > 0 with theta_p > 0; every client takes part
    with the same probability p. (The theorem's p_min and p_max coincide then.)
    FL_PyTorch fixes s = rho = 0.001. p = 1 and s = 1/r - 1 is EF21's Th. 1.

    Raises
    ------
    ConfigError
        If theta_p is not positive or a constant is inadmissible.
    """
    require_positive("L", lipschitz)
    require_positive("L~", client_lipschitz)
    require_probability("participation p", participation)
    error = _pp_error(alpha, participation, s, rho)
    if error is None:
        raise ConfigError(
            f"theory: EF21-PP Th. 7 needs theta_p = theta p - rho (1-p) > 0, got none at s={s}, "
            f"rho={rho}, alpha={alpha}, p={participation}; use smaller s and rho"
        )
    return 1 / (lipschitz + client_lipschitz * sqrt(error))


def ef21_pp_best_step_size(
    lipschitz: float, client_lipschitz: float, alpha: float, *, participation: float
) -> float:
    """EF21-PP's step with the best s and rho of a grid of 40 x 40.

    The theorem allows any; the smallest B/theta_p gives the largest step (the search is ours). At
    p = 1 it is EF21's step, exactly.

    Raises
    ------
    ConfigError
        If a constant is inadmissible.
    """
    require_positive("L", lipschitz)
    require_positive("L~", client_lipschitz)
    require_probability("participation p", participation)
    if participation == 1:
        return ef21_step_size(lipschitz, client_lipschitz, alpha)
    lost = error_factor(alpha) ** 2
    largest_s = alpha / lost if lost > 0 else 1.0
    largest_rho = alpha * participation / (1 - participation)
    fractions = [0.88**j for j in range(1, 41)]
    errors = [
        error
        for a, b in product(fractions, fractions)
        if (error := _pp_error(alpha, participation, largest_s * a, largest_rho * b)) is not None
    ]
    return 1 / (lipschitz + client_lipschitz * sqrt(min(errors)))


def _pp_error(alpha: float, p: float, s: float, rho: float) -> float | None:
    """B/(theta_p L~^2); None where theta_p is not positive."""
    require_positive("s", s)
    require_positive("rho", rho)
    lost = error_factor(alpha) ** 2
    theta_p = (1 - (1 + s) * lost) * p - rho * (1 - p)
    b = (1 + 1 / s) * lost * p + (1 + 1 / rho) * (1 - p)
    return b / theta_p if theta_p > 0 else None
