"""Step sizes of the papers' theorems, as functions of L, L1 and the compressor's alpha."""

from math import isfinite, sqrt

from fedef.errors import ConfigError


def error_ratio(alpha: float) -> float:
    """r/(1-r), r = sqrt(1 - alpha): how much the compressor's memory of errors costs.

    EF21's sqrt(beta/theta), at most 2/alpha - 1 (arXiv:2106.05203, Lemma 3). Computed as
    r(1+r)/alpha, which does not cancel for small alpha.

    Raises
    ------
    ConfigError
        If `alpha` is not in (0, 1].
    """
    if not 0 < alpha <= 1:
        raise ConfigError(
            f"theory: a contractive compressor has alpha in (0, 1], got {alpha}; "
            "an unbiased one with variance omega has alpha = 1/(1+omega) once scaled by it"
        )
    r = sqrt(1 - alpha)
    return r * (1 + r) / alpha


def ef21_step_size(lipschitz: float, client_lipschitz: float, alpha: float) -> float:
    """EF21's largest step: gamma = 1/(L + L~ r/(1-r))  (arXiv:2106.05203, Th. 1).

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
    _require_positive("L", lipschitz)
    _require_positive("L~", client_lipschitz)
    return 1 / (lipschitz + client_lipschitz * error_ratio(alpha))


def norm_ef21_constant(l_j: float, alpha: float) -> float:
    """||EF21||: c_j = L_j/2 + 2 r L_j/(1-r), j = 0 or 1  (arXiv:2410.16871, Th. 1).

    The paper's proof is reconstructed; the constant was checked numerically.

    Raises
    ------
    ConfigError
        If `l_j` is not positive and finite, or `alpha` is not in (0, 1].
    """
    _require_positive("L_j", l_j)
    return l_j / 2 + 2 * l_j * error_ratio(alpha)


def norm_ef21_single_node_step(l1: float, alpha: float, *, b: float = 2) -> float:
    """||EF21|| on one node: gamma = 1/(b c_1), b >= 2  (arXiv:2410.16871, Th. 3).

    The theorem needs q = c_1 gamma e^{L1 gamma} < 1; the paper's claim that b = 2 always gives it
    is false: it holds for alpha < 0.990.

    Raises
    ------
    ConfigError
        If `l1` is not positive and finite, `alpha` is not in (0, 1], or b < 2.
    """
    if not 2 <= b < float("inf"):
        raise ConfigError(f"theory: Theorem 3 needs b >= 2, got {b}; the default is b=2")
    return 1 / (b * norm_ef21_constant(l1, alpha))


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


def _require_positive(symbol: str, value: float) -> None:
    if not (value > 0 and isfinite(value)):
        raise ConfigError(
            f"theory: {symbol} must be positive and finite, got {value}; "
            "use schedule=constant or inv-sqrt where it is unknown"
        )
