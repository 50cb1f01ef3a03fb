"""A step size from the run itself: `schedule=auto`, no constant from the user.

A state and two pure functions, as in optax: ``state = rule.init(x)``, then each round
``step_size, state = rule.update(state, x, g)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedef.errors import ConfigError
from fedef.vectors import Vector, norm

GROWTH = 1.2
"""The most by which lambda grows in a round. 1.6 (AdGD's in the limit) overtakes what heavy
compression lets the server know; 1.1 doubles the rounds of an easy start."""
SECANT_SHARE = 0.4
"""Of the inverse secant. AdGD's 1/2 costs heavily compressed runs twice the rounds, 0.55 sends them
round in circles (phase retrieval, top-1 of 100); without compression it matters little."""
FIRST_MOVE = 0.1
"""Length of the first step over max(1, ||x^0||); later ones adapt by a factor a round."""
LEAST_SHARE = 0.15
"""Of the distance bound, for noisy gradients: the secants of pure noise would end all progress."""


@dataclass(frozen=True, eq=False)
class AutoState:
    """Everything that the rule remembers; part of a checkpoint."""

    origin: Vector
    """(d,) of the model's dtype: x^0."""
    last_g: Vector
    """(d,) float64: g^{k-1}; zero before the first round."""
    secant_step: float
    """lambda_{k-1}, the plain step that is safe for the curvature seen so far; 0: none yet."""
    length: float
    """||x^k - x^{k-1}||, the length of the last step."""
    distance: float
    """max_{j<=k} ||x^j - x^0||, at least the first step's length."""
    rounds: int
    """k: steps taken."""

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Named arrays that `from_arrays` turns back into this state, bit for bit."""
        scalars = [self.secant_step, self.length, self.distance, float(self.rounds)]
        return {"origin": self.origin, "last_g": self.last_g, "scalars": np.array(scalars)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> AutoState:
        """Inverse of `to_arrays`.

        Raises
        ------
        ConfigError
            If an array is missing or malformed.
        """
        try:
            secant_step, length, distance, rounds = arrays["scalars"].tolist()
            return cls(
                arrays["origin"], arrays["last_g"], secant_step, length, distance, int(rounds)
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"state of schedule=auto: {error!r} is missing or malformed; it was not written by "
                "fedef, or by another version: start the run again"
            ) from None


@dataclass(frozen=True)
class AutoStep:
    """gamma_k = lambda_k ||g^k||, lambda_k = min(1.2 lambda_{k-1}, 0.4 eta/l_k), within bounds.

    l_k = ||g^k - g^{k-1}||/||x^k - x^{k-1}|| is the local smoothness that the server sees; under
    (L0, L1)-smoothness l_k <= L0 + L1 ||g|| about, so gamma_k tends to 0.4 ||g||/(L0 + L1 ||g||) or
    more: the normalized step of known constants, without them. The secant is that of AdGD (Malitsky
    and Mishchenko, arXiv:1910.09529, Alg. 1), which has 1/2 for 0.4 and lets lambda grow by
    sqrt(1 + lambda_{k-1}/lambda_{k-2}). What compression holds back arrives later and counts as
    curvature, so the step shortens while g is unreliable. The step never exceeds d_k = max_j
    ||x^j - x^0||/sqrt(k+1), which bars runaways: DoG (Ivgi, Hinder and Carmon, arXiv:2302.12022)
    divides the same distance by sqrt(sum_j ||g^j||^2), here of unit vectors. With noise the step is
    at least 0.15 d_k. The combination is ours; no convergence theorem.

    Plain and unit directions get the same length of step, so they give the same trajectory.
    """

    normalized: bool
    """Whether the step multiplies g/||g|| rather than g."""
    eta: float = 1.0
    """Momentum parameter of the clients; 1: none. A momentum's secant shows eta of the change."""
    noisy: bool = False
    """Whether gradients are of minibatches."""

    def init(self, x: Vector) -> AutoState:
        """State before the first round, at x^0 (d,)."""
        return AutoState(x.copy(), np.zeros(x.size), 0.0, 0.0, 0.0, 0)

    def update(self, state: AutoState, x: Vector, g: Vector) -> tuple[float, AutoState]:
        """Step size of the round that starts at x and follows g, and the state after it.

        g = 0 gives 0 and counts as no round. An unchanged g (nothing arrived) keeps lambda.

        Parameters
        ----------
        x
            (d,): x^k.
        g
            (d,), finite: the server's mean estimate g^k.
        """
        size = norm(g)
        if size == 0.0:
            return 0.0, state
        if state.rounds == 0:
            length = distance = FIRST_MOVE * max(1.0, norm(x))
        else:
            distance = max(state.distance, norm(x.astype(np.float64) - state.origin))
            length = self._secant_step(state, g) * size
        bound = distance / sqrt(state.rounds + 1)
        length = min(length, bound)
        if self.noisy or self.eta < 1.0:
            length = max(length, LEAST_SHARE * bound)
        after = replace(
            state,
            last_g=g.astype(np.float64),
            secant_step=length / size,
            length=length,
            distance=distance,
            rounds=state.rounds + 1,
        )
        return (length if self.normalized else length / size), after

    def _secant_step(self, state: AutoState, g: Vector) -> float:
        """lambda_k before the bounds."""
        change = norm(g - state.last_g)
        if change == 0.0:
            return state.secant_step
        secant = SECANT_SHARE * self.eta * state.length / change
        return min(GROWTH * state.secant_step, secant if secant > 0.0 else inf)
