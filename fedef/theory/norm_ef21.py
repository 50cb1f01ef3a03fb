"""||EF21||: normalized error feedback under (L0, L1)-smoothness (arXiv:2410.16871).

The paper's bounds are *reconstructed* from its proofs: Lemma 6 was checked at every step of many
runs and never violated. They carry over to weighted means f = sum_i w_i f_i (derived here).
"""

from __future__ import annotations

from math import exp, inf, sqrt

from fedef.errors import ConfigError
from fedef.theory.checks import require_count, require_not_negative, require_positive
from fedef.theory.compression import error_factor, error_ratio, participating_alpha


def norm_ef21_constant(l_j: float, alpha: float) -> float:
    """||EF21||: c_j = L_j/2 + 2 r L_j/(1-r), j = 0 or 1  (arXiv:2410.16871, Th. 1).

    Reconstructed; checked numerically.

    Raises
    ------
    ConfigError
        If `l_j` is not positive and finite, or `alpha` is not in (0, 1].
    """
    require_positive("L_j", l_j)
    return l_j / 2 + 2 * l_j * error_ratio(alpha)


def norm_ef21_gamma0(l1: float, alpha: float) -> float:
    """||EF21||: gamma_0 = 1/(8 c_1) of gamma = gamma_0/sqrt(K+1)  (arXiv:2410.16871, Th. 1).

    Any gamma_0 > 0 is allowed; this one keeps the theorem's factor
    exp(8 c_1 L1 e^{L1 gamma_0} gamma_0^2) near 1.

    Raises
    ------
    ConfigError
        If `l1` is not positive and finite, or `alpha` is not in (0, 1].
    """
    return 1 / (8 * norm_ef21_constant(l1, alpha))


def norm_ef21_lyapunov(
    loss_gap: float, mean_error: float, *, step_size: float, alpha: float
) -> float:
    """V = f - f^inf + (2 gamma/(1-r)) sum_i w_i ||grad f_i(x) - g_i||  (Lemma 6; reconstructed).

    Raises
    ------
    ConfigError
        If an argument is inadmissible.
    """
    require_not_negative("f - f^inf", loss_gap)
    require_not_negative("mean ||grad f_i - g_i||", mean_error)
    require_positive("gamma", step_size)
    r = error_factor(alpha)
    return loss_gap + 2 * step_size * (1 + r) / alpha * mean_error


def norm_ef21_descent(
    v: float,
    *,
    gradient_norm: float,
    mean_client_norm: float,
    step_size: float,
    l0: float,
    l1: float,
    alpha: float,
) -> float:
    """V^{k+1} <= V^k - gamma ||grad f|| + gamma^2 e^{L1 gamma} (c_0 + c_1 mean_i ||grad f_i||).

    The right side, all at x^k (arXiv:2410.16871, Lemma 6; reconstructed). With random compressors
    or partial participation it bounds the conditional mean of V^{k+1}.

    Raises
    ------
    ConfigError
        If a constant is inadmissible.
    """
    require_positive("gamma", step_size)
    c_0, c_1 = norm_ef21_constant(l0, alpha), norm_ef21_constant(l1, alpha)
    curvature = c_0 + c_1 * mean_client_norm
    return v - step_size * gradient_norm + step_size**2 * _exp(l1 * step_size) * curvature


def norm_ef21_bound(
    *,
    gamma0: float,
    num_rounds: int,
    loss_gap: float,
    initial_error: float,
    client_gap: float,
    l0: float,
    l1: float,
    alpha: float,
) -> float:
    """Bound min_{k<=K} E||grad f(x^k)|| for gamma = gamma_0/sqrt(K+1), any gamma_0 > 0.

    V^0 exp(8 c_1 L1 e^{L1 gamma_0} gamma_0^2)/(gamma_0 sqrt(K+1))
    + B e^{L1 gamma_0} gamma_0/sqrt(K+1),  B = 2 c_0 + 8 c_1 L1 Delta^inf
    (arXiv:2410.16871, Th. 1; reconstructed). At the paper's own gamma_0 = 1 the exponent is
    292 ... 2.5e7, so the bound is vacuous there (inf where it overflows).

    Parameters
    ----------
    gamma0
        gamma_0.
    num_rounds
        K.
    loss_gap
        f(x^0) - f^inf, or more.
    initial_error
        sum_i w_i ||grad f_i(x^0) - g_i^0||, of the g_i^0 that the first step follows.
    client_gap
        Delta^inf = sum_i w_i (f^inf - f_i^inf), or more; 0 for one client or equal ones.

    Raises
    ------
    ConfigError
        If an argument is inadmissible.
    """
    require_positive("gamma_0", gamma0)
    require_count("K", num_rounds, least=0)
    require_not_negative("Delta^inf", client_gap)
    root = sqrt(num_rounds + 1)
    v = norm_ef21_lyapunov(loss_gap, initial_error, step_size=gamma0 / root, alpha=alpha)
    c_0, c_1 = norm_ef21_constant(l0, alpha), norm_ef21_constant(l1, alpha)
    growth = _exp(l1 * gamma0)
    b = 2 * c_0 + 8 * c_1 * l1 * client_gap
    first = v * _exp(8 * c_1 * l1 * growth * gamma0**2) if v > 0 else 0.0
    return first / (gamma0 * root) + b * growth * gamma0 / root


def norm_ef21_single_node_step(l1: float, alpha: float, *, b: float = 2) -> float:
    """||EF21|| on one node: gamma = 1/(b c_1), b >= 2  (arXiv:2410.16871, Th. 3).

    Reconstructed. The theorem needs q = c_1 gamma e^{L1 gamma} < 1; the paper's claim that b = 2
    always gives it is false: it holds for alpha < 0.990.

    Raises
    ------
    ConfigError
        If `l1` is not positive and finite, `alpha` is not in (0, 1], or b < 2.
    """
    if not 2 <= b < inf:
        raise ConfigError(f"theory: Theorem 3 needs b >= 2, got {b}; the default is b=2")
    return 1 / (b * norm_ef21_constant(l1, alpha))


def norm_ef21_single_node_bound(
    *,
    step_size: float,
    num_rounds: int,
    loss_gap: float,
    initial_error: float,
    l0: float,
    l1: float,
    alpha: float,
) -> float:
    """min_{k<=K} ||grad f(x^k)|| <= V^0/(gamma (1-q)(K+1)) + c_0 gamma e^{L1 gamma}/(1-q).

    q = c_1 gamma e^{L1 gamma} < 1, one node (arXiv:2410.16871, Th. 3; reconstructed: Lemma 6,
    telescoped). The second term does not vanish: a constant step stalls.

    Raises
    ------
    ConfigError
        If q >= 1 or an argument is inadmissible.
    """
    require_count("K", num_rounds, least=0)
    v = norm_ef21_lyapunov(loss_gap, initial_error, step_size=step_size, alpha=alpha)
    c_0, c_1 = norm_ef21_constant(l0, alpha), norm_ef21_constant(l1, alpha)
    growth = _exp(l1 * step_size)
    q = c_1 * step_size * growth
    if q >= 1:
        raise ConfigError(
            f"theory: Theorem 3 needs q = c_1 gamma e^(L1 gamma) < 1, got {q:.4g}; "
            "use a smaller step: a larger b"
        )
    return (v / (step_size * (num_rounds + 1)) + c_0 * step_size * growth) / (1 - q)


def norm_ef21_pp_gamma0(l1: float, alpha: float, *, participation: float) -> float:
    """||EF21-PP||: `norm_ef21_gamma0` with 1 - r replaced by p (1 - r)  (derived here).

    Each client takes part with probability p, independently of the past. No published analysis is
    known to us.

    Raises
    ------
    ConfigError
        If a constant is inadmissible.
    """
    return norm_ef21_gamma0(l1, participating_alpha(alpha, participation))


def norm_ef21_pp_bound(
    *,
    gamma0: float,
    num_rounds: int,
    loss_gap: float,
    initial_error: float,
    client_gap: float,
    l0: float,
    l1: float,
    alpha: float,
    participation: float,
) -> float:
    """||EF21-PP||: `norm_ef21_bound` with 1 - r replaced by p (1 - r)  (derived here).

    Lemma 5 holds with r_p = 1 - p + p r in the mean over who takes part, the rest of the proof is
    unchanged. `initial_error` is the mean over the first round's draw.

    Raises
    ------
    ConfigError
        If an argument is inadmissible.
    """
    return norm_ef21_bound(
        gamma0=gamma0,
        num_rounds=num_rounds,
        loss_gap=loss_gap,
        initial_error=initial_error,
        client_gap=client_gap,
        l0=l0,
        l1=l1,
        alpha=participating_alpha(alpha, participation),
    )


def _exp(exponent: float) -> float:
    """e^exponent, inf where it overflows: a bound of inf says nothing, truthfully."""
    return exp(exponent) if exponent < 700 else inf
