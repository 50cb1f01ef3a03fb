"""||EF21-SGDM||: normalized error feedback with momentum for noise (arXiv:2410.16871, Th. 2)."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from fedef.theory.checks import require_at_most, require_count, require_positive
from fedef.theory.compression import error_factor


@dataclass(frozen=True)
class NormSgdm:
    """Parameters of Theorem 2 for K rounds."""

    eta: float
    """eta = (K+1)^{-1/2} of v <- (1-eta) v + eta grad."""
    step_size: float
    """gamma = gamma_0 (K+1)^{-3/4}."""


def norm_sgdm_gamma0(num_rounds: int, l1: float, alpha: float) -> float:
    """The largest gamma_0 = min{sqrt(K+1) (1-r), 1}/(16 L1)  (arXiv:2410.16871, Th. 2; stated).

    Raises
    ------
    ConfigError
        If `l1` is not positive and finite, K < 0 or `alpha` is not in (0, 1].
    """
    require_count("K", num_rounds, least=0)
    require_positive("L1", l1)
    gap = alpha / (1 + error_factor(alpha))
    return min(sqrt(num_rounds + 1) * gap, 1.0) / (16 * l1)


def norm_sgdm_parameters(
    num_rounds: int, *, l1: float, alpha: float, gamma0: float | None = None
) -> NormSgdm:
    """Set eta = (K+1)^{-1/2}, gamma = gamma_0 (K+1)^{-3/4}  (arXiv:2410.16871, Th. 2; stated).

    Gives min_k E||grad f|| = O((K+1)^{-1/4}). The bound's constants are not reconstructed, so there
    is no function for it; its terms are (f^0 - f^inf)/gamma_0, sigma/sqrt(n), gamma_0 L0,
    gamma_0 L1^2 Delta^inf and alpha-dependent ones in sigma. It needs init=zero and
    v_i^{-1} = grad f_i(x^0; xi_i^0).

    Parameters
    ----------
    num_rounds
        K.
    gamma0
        At most `norm_sgdm_gamma0`; None: that.

    Raises
    ------
    ConfigError
        If gamma_0 is larger than the theorem allows or a constant is inadmissible.
    """
    largest = norm_sgdm_gamma0(num_rounds, l1, alpha)
    chosen = largest if gamma0 is None else gamma0
    require_positive("gamma_0", chosen)
    require_at_most("gamma_0", chosen, largest, "||EF21-SGDM|| Th. 2")
    root = sqrt(num_rounds + 1)
    return NormSgdm(1 / root, chosen / root**1.5)
