"""What a client estimates its gradient with, from the gradients that it computes.

An estimator is pure: it asks for gradients, and returns the estimate with the memory that the
next one needs. The memory commits or rolls back with the rest of the client's state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from fedef.problems.base import LocalResult
from fedef.vectors import IntVector, Vector

Memory = Mapping[str, Vector]
Oracle = Callable[[Vector, IntVector | None], LocalResult]
"""Loss and gradient at a point on some rows (None: all)."""


@dataclass(frozen=True)
class Estimate:
    """One estimate."""

    vector: Vector
    """(d,) what error feedback follows; freshly allocated, the caller may overwrite it."""
    memory: Memory
    at_x: LocalResult
    """Loss and buffers of the pass at x^k."""
    passes: int
    """Gradients that were computed of each row."""
    rows: IntVector | None
    """The rows that they were of; None: all."""


class Estimator(Protocol):
    """From the point and the round's rows to an estimate."""

    @property
    def vectors(self) -> int:
        """How many (d,) vectors of its own its memory holds."""

    def __call__(
        self, oracle: Oracle, x: Vector, rows: IntVector | None, memory: Memory, k: int
    ) -> Estimate:
        """Estimate at x^k, k = round - 1; an empty memory is a client's first round."""


def momentum(v: Vector | None, gradient: Vector, eta: float) -> Vector:
    """V <- (1 - eta) v + eta grad f_i(x; xi)   (EF21-SGDM, arXiv:2305.15155, Alg. 1).

    A client's first gradient is its first v (v^{-1} = grad f_i(x^0; xi^0), as Theorem 2 of
    arXiv:2410.16871 requires). eta = 1 returns the gradient bit for bit.
    """
    if v is None or eta == 1.0:
        return gradient
    return (1.0 - eta) * v + eta * gradient


@dataclass(frozen=True)
class Fresh:
    """The gradient on the round's rows."""

    vectors: ClassVar[int] = 0

    def __call__(
        self, oracle: Oracle, x: Vector, rows: IntVector | None, memory: Memory, k: int
    ) -> Estimate:
        """Grad f_i(x^k; xi^k)."""
        result = oracle(x, rows)
        return Estimate(result.gradient, {}, result, 1, rows)


@dataclass(frozen=True)
class Momentum:
    """Moving average of the gradients, weight eta on the new one."""

    eta: float
    vectors: ClassVar[int] = 1

    def __call__(
        self, oracle: Oracle, x: Vector, rows: IntVector | None, memory: Memory, k: int
    ) -> Estimate:
        """See `momentum`."""
        result = oracle(x, rows)
        v = momentum(memory.get("v"), result.gradient, self.eta)
        return Estimate(v.copy(), {"v": v}, result, 1, rows)


@dataclass(frozen=True)
class Spider:
    """v <- v + grad f(x^k; S) - grad f(x^{k-1}; S), and all rows every `period` rounds.

    SPIDER (Fang, Li, Lin and Zhang, arXiv:1807.01695). A client's first round takes all rows too.
    """

    period: int
    vectors: ClassVar[int] = 2

    def __call__(
        self, oracle: Oracle, x: Vector, rows: IntVector | None, memory: Memory, k: int
    ) -> Estimate:
        """Two gradients on the same rows, or one on all."""
        if k % self.period == 0 or "v" not in memory:
            result = oracle(x, None)
            return Estimate(result.gradient.copy(), {"v": result.gradient, "x": x}, result, 1, None)
        result = oracle(x, rows)
        v = memory["v"] + result.gradient - oracle(memory["x"], rows).gradient
        return Estimate(v.copy(), {"v": v, "x": x}, result, 2, rows)


@dataclass(frozen=True)
class Accumulated:
    """S <- S + grad f_i(x^k): EF21 of it is the error feedback of Seide et al. (2014).

    With h_i the sum of all that was sent, S - h_i is the error e_i that they carry over, and
    C(S - h_i) = C(e_i + grad f_i(x^k)) is what they send. `IncrementStep` is the server's side.
    """

    vectors: ClassVar[int] = 1

    def __call__(
        self, oracle: Oracle, x: Vector, rows: IntVector | None, memory: Memory, k: int
    ) -> Estimate:
        """Add the gradient on the round's rows."""
        result = oracle(x, rows)
        total = memory["v"] + result.gradient if "v" in memory else result.gradient
        return Estimate(total.copy(), {"v": total}, result, 1, rows)
