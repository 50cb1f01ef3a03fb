"""Independent normalization with a bounded step: the published rule, and ours that survives DRO.

Published (IAN-SGD, arXiv:2410.14054), with g' of an independent batch at the same x_t:

    x_{t+1} = x_t - gamma g_t / h_t^beta,    h_t = max(A ||g'_t|| + delta, tau).

Independence gives E[g_t / h_t^beta] = grad F(x_t) E[h_t^-beta], which g_t's own norm would not. But
nothing bounds the step: where a few rows carry the gradient, g' misses them (||g'|| = 1 in most
rounds of DRO) while g hits them, and the run leaps off.

Ours changes two things, neither in the paper, and adds no constant to tune:

* the cap: a step longer than gamma tau^(1-beta) is shortened to it. That is the step that the rule
  gives a gradient of norm tau at the threshold h = tau; at beta = 1 it is gamma, the bound of
  clipping. Shorter steps are exactly the published ones, so E[g/h^beta] changes by the capped ones
  alone.
* the memory: h_t is made of ||g_{t-1}||, the norm of the step before, in place of a second batch.
  Given the past h_t is a constant, so E[g_t / h_t^beta | past] = grad F(x_t) / h_t^beta exactly.
  It costs no samples, no messages and no sketch, and where clients differ it is still the norm of
  their mean. Its price is that it belongs to x_{t-1}, which the cap keeps near x_t.

``python -m sims.ian_robustness`` compares all four combinations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedef.errors import ConfigError
from fedef.vectors import Vector, norm


@dataclass(frozen=True)
class NormalizerState:
    """What the next step needs; part of a checkpoint."""

    last_norm: float | None = None
    """||g_{t-1}||; None before the first step."""
    steps: int = 0
    """t: steps taken."""
    capped_steps: int = 0
    """Those of them that the cap shortened."""

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Named arrays that `from_arrays` turns back into this state, bit for bit."""
        last = math.nan if self.last_norm is None else self.last_norm
        return {"normalizer": np.array([last, float(self.steps), float(self.capped_steps)])}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> NormalizerState:
        """Inverse of `to_arrays`.

        Raises
        ------
        ConfigError
            If the array is missing or malformed.
        """
        try:
            last, steps, capped = arrays["normalizer"].tolist()
            return cls(None if math.isnan(last) else float(last), int(steps), int(capped))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"state of direction=independent: {error!r} is missing or malformed; it was not "
                "written by fedef, or by another version: start the run again"
            ) from None


def init() -> NormalizerState:
    """State before the first step."""
    return NormalizerState()


def step(
    state: NormalizerState,
    g: Vector,
    independent_norm: float | None = None,
    *,
    step_size: float,
    beta: float,
    tau: float,
    delta: float = 0.0,
    amplification: float = 2.0,
    cap: float = 1.0,
) -> tuple[NDArray[np.float64], NormalizerState]:
    """Dx = -gamma g / max(A N + delta, tau)^beta, cut to ||dx|| <= cap gamma tau^(1-beta).

    N is `independent_norm` where it is given: arXiv:2410.14054 with cap=inf. Else N is the norm of
    the g of the call before (ours); the first call has none and takes its own, so that the first
    step alone is not independent. h = 0 leaves x unchanged, which the paper does not define.

    Parameters
    ----------
    state
        Of `init` or of the call before.
    g
        (d,) the batch gradient g_t, or the server's estimate of it.
    independent_norm
        ||g'_t||, or an estimate of it such as a sketch's; None: memory.
    step_size
        gamma > 0.
    beta
        Power of the divisor, in [0, 1].
    tau
        The least divisor, not negative; 1/Gamma of the paper.
    delta
        Added to A N, not negative.
    amplification
        A > 0.
    cap
        Longest step in units of gamma tau^(1-beta); inf: no bound. 1 is the rule that we report.

    Returns
    -------
    (dx, state)
        (d,) float64 with ||dx|| <= cap gamma tau^(1-beta) up to rounding, and the next state. A g
        that is not finite gives NaN, for the caller to refuse.

    Raises
    ------
    ConfigError
        If a constant is out of range, or the cap would forbid every step: tau = 0 with beta < 1.
    """
    bound = longest_step(step_size=step_size, beta=beta, tau=tau, cap=cap)
    length = norm(g)
    n = independent_norm
    if n is None:
        n = length if state.last_norm is None else state.last_norm
    h = max(amplification * n + delta, tau)
    rate = step_size / h**beta if h > 0.0 else 0.0
    capped = rate * length > bound
    if capped:
        rate = bound / length
    # -0.0 where g is 0 would do no harm, but an infinite g has to come out as NaN, also when h is.
    with np.errstate(invalid="ignore"):
        dx = -rate * g.astype(np.float64)
    return dx, NormalizerState(length, state.steps + 1, state.capped_steps + int(capped))


def longest_step(*, step_size: float, beta: float, tau: float, cap: float = 1.0) -> float:
    """Cap gamma tau^(1-beta), the bound on ||dx||; inf for cap = inf.

    Raises
    ------
    ConfigError
        If a constant is out of range, or the bound is 0.
    """
    if not (0 < step_size < math.inf and 0 <= beta <= 1 and 0 <= tau < math.inf and cap > 0):
        raise ConfigError(
            "independent: step_size and cap must be > 0, beta in [0, 1] and tau >= 0, got "
            f"step_size={step_size}, beta={beta}, tau={tau}, cap={cap}; cap=inf is no cap"
        )
    if cap == math.inf:
        return math.inf
    bound = cap * step_size * tau ** (1 - beta)
    if bound == 0.0:
        raise ConfigError(
            f"independent: the cap gamma tau^(1-beta) is 0 at tau={tau}, beta={beta}; set tau "
            "above 0, or use beta=1 or cap=inf"
        )
    return bound
