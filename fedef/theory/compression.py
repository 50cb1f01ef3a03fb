"""What compression and absence cost: the factor r by which an error shrinks in a round."""

from math import sqrt

from fedef.errors import ConfigError
from fedef.theory.checks import require_probability


def error_ratio(alpha: float) -> float:
    """r/(1-r), r = sqrt(1 - alpha): how much the compressor's memory of errors costs.

    EF21's sqrt(beta/theta), at most 2/alpha - 1 (arXiv:2106.05203, Lemma 3). Computed as
    r(1+r)/alpha, which does not cancel for small alpha.

    Raises
    ------
    ConfigError
        If `alpha` is not in (0, 1].
    """
    r = error_factor(alpha)
    return r * (1 + r) / alpha


def error_factor(alpha: float) -> float:
    """Return r = sqrt(1 - alpha): ||C(v) - v|| <= r ||v||, in the mean for a random C.

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
    return sqrt(1 - alpha)


def participating_alpha(alpha: float, participation: float) -> float:
    """alpha_p = 1 - r_p^2, r_p = 1 - p + p r: the compressor that p-participation amounts to.

    A client that takes part with probability p, independently of the past, multiplies its error by
    r with probability p and by 1 otherwise, so the mean error shrinks by r_p and 1 - r_p = p (1-r).
    Derived here; it holds for mean *norms* of errors (||EF21||), not for EF21's mean squares. p = 1
    returns `alpha`.

    Raises
    ------
    ConfigError
        If `alpha` or `participation` is not in (0, 1].
    """
    r = error_factor(alpha)
    require_probability("participation p", participation)
    if participation == 1:
        return alpha
    gap = participation * alpha / (1 + r)
    return gap * (2 - gap)
