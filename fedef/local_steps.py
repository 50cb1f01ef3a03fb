"""Local steps: what a client sends in the place of one gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedef.problems.base import LocalResult
from fedef.schedules import Schedule
from fedef.vectors import IntVector, Vector

Gradient = Callable[[Vector, IntVector | None, Vector], LocalResult]
"""Loss, gradient and buffers at a point, on some rows (None: all), from some buffers."""


@dataclass(frozen=True)
class LocalSteps:
    """E steps of SGD from x^k, as a pseudo-gradient; E = 1 is the gradient itself, bit for bit.

    y_0 = x^k, y_{j+1} = y_j - eta_l grad f_i(y_j; xi_j), j < E   (FedAvg, arXiv:1602.05629, Alg. 1)
    and (x^k - y_E)/eta_l = sum_j grad f_i(y_j; xi_j), summed as it stands on the right: nothing is
    lost to the difference of two close models. A server step of length eta_l along the mean of the
    pseudo-gradients is then the mean of the models y_E. Deviation: every client takes E steps,
    where the paper counts epochs, so clients with more data take no more steps than others.
    """

    steps: int
    """E, at least 1."""
    step_size: Schedule
    """eta_l of round k + 1."""
    as_change: bool = False
    """Whether the server expects x^k - y_E, not divided by eta_l."""

    def pseudo_gradient(
        self,
        gradient: Gradient,
        x: Vector,
        rows: Callable[[int], IntVector | None],
        buffers: Vector,
        k: int,
    ) -> LocalResult:
        """Walk from x.

        Parameters
        ----------
        gradient
            The client's.
        x
            (d,).
        rows
            Those of local step j = 0, ..., E - 1.
        buffers
            (b,): those of the first pass; each further one starts from those before it.
        k
            Rounds done.

        Returns
        -------
        LocalResult
            The loss at x^k, the pseudo-gradient, the buffers after the last pass.
        """
        eta = float(self.step_size(k))
        at_x = last = gradient(x, rows(0), buffers)
        y, total = x, at_x.gradient
        for step in range(1, self.steps):
            with np.errstate(over="ignore", invalid="ignore"):  # what diverges is refused later
                y = y - eta * last.gradient
            last = gradient(y, rows(step), last.buffers)
            total += last.gradient
        return LocalResult(at_x.loss, eta * total if self.as_change else total, last.buffers)
