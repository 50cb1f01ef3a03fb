"""Independent normalization with a bounded step: the published rule, and ours that survives DRO.

Published (IAN-SGD, arXiv:2410.14054), with g' of an independent batch at the same x_t:

    x_{t+1} = x_t - gamma g_t / h_t^beta,    h_t = max(A ||g'_t|| + delta, tau).

Independence gives E[g_t / h_t^beta] = grad F(x_t) E[h_t^-beta], which g_t's own norm would not. But
nothing bounds the step: where a few rows carry the gradient, g' misses them (||g'|| = 1 in most
rounds of DRO) while g hits them, and the run leaps off.

Ours changes two things, neither in the paper:

* the cap: no step is longer than twice the first one. Where the run descends, gradients shrink and
  nothing is cut; a step beyond the bound is a leap of the kind above. Shorter steps are exactly the
  published ones, so E[g/h^beta] changes by the capped ones alone (0.2 % of them on DRO).
* the memory: h_t is made of ||g_{t-1}||, the norm of the step before, in place of a second batch.
  Given the past h_t is a constant, so E[g_t / h_t^beta | past] = grad F(x_t) / h_t^beta exactly.
  It costs no samples, no messages and no sketch, and where clients differ it is still the norm of
  their mean. Its price is that it belongs to x_{t-1}, which the cap keeps near x_t.

The cap takes its scale from the start, and with it from gamma, beta, tau and delta. Where a run
starts flatter than its way is (near a saddle), it would hold it back: there give a larger `cap`.

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
    first_length: float = 0.0
    """||dx_0||: length of the first step that is not zero; 0 before it."""
    steps: int = 0
    """t: steps taken."""
    capped_steps: int = 0
    """Those of them that the cap shortened."""

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Named arrays that `from_arrays` turns back into this state, bit for bit."""
        last = math.nan if self.last_norm is None else self.last_norm
        counts = [float(self.steps), float(self.capped_steps)]
        return {"normalizer": np.array([last, self.first_length, *counts])}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> NormalizerState:
        """Inverse of `to_arrays`.

        Raises
        ------
        ConfigError
            If the array is missing or malformed.
        """
        try:
            last, first, steps, capped = arrays["normalizer"].tolist()
            return cls(None if math.isnan(last) else float(last), first, int(steps), int(capped))
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
    cap: float = 2.0,
) -> tuple[NDArray[np.float64], NormalizerState]:
    """Dx = -gamma g / max(A N + delta, tau)^beta, cut to ||dx|| <= cap ||dx_0||.

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
        A >= 0; 0 leaves h = max(delta, tau).
    cap
        Longest step in units of the first, at least 1; inf: no bound. 2 is what we report.

    Returns
    -------
    (dx, state)
        (d,) float64, and the next state. A g that is not finite gives NaN, for the caller to
        refuse.

    Raises
    ------
    ConfigError
        If a constant is out of range.
    """
    _check(step_size=step_size, beta=beta, tau=tau, delta=delta, a=amplification, cap=cap)
    length = norm(g)
    n = independent_norm
    if n is None:
        n = length if state.last_norm is None else state.last_norm
    h = max(amplification * n + delta, tau)
    rate = step_size / h**beta if h > 0.0 else 0.0
    bound = cap * state.first_length if state.first_length > 0.0 else math.inf
    capped = rate * length > bound
    if capped:
        rate = bound / length
    # An infinite g has a rate of 0 and has to come out as NaN.
    with np.errstate(invalid="ignore"):
        dx = -rate * g.astype(np.float64)
    after = NormalizerState(
        last_norm=length,
        first_length=state.first_length or rate * length,
        steps=state.steps + 1,
        capped_steps=state.capped_steps + int(capped),
    )
    return dx, after


def _check(
    *, step_size: float, beta: float, tau: float, delta: float, a: float, cap: float
) -> None:
    not_negative = all(0 <= value < math.inf for value in (tau, delta, a))
    if not (0 < step_size < math.inf and 0 <= beta <= 1 and not_negative and cap >= 1):
        raise ConfigError(
            "independent: step_size must be > 0, beta in [0, 1], tau, delta and amplification "
            f">= 0, cap >= 1, got step_size={step_size}, beta={beta}, tau={tau}, delta={delta}, "
            f"amplification={a}, cap={cap}; cap=inf is no cap"
        )
