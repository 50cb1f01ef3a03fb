"""What is minimized: f(x) = sum_i w_i f_i(x), one f_i per client, on a flat vector x."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from fedef.vectors import IntVector, Vector


@dataclass(frozen=True)
class Smoothness:
    """Constants of a problem, where they are known (arXiv:2410.16871, Section 3)."""

    lipschitz: float
    """L: f has an L-Lipschitz gradient on the region of interest."""
    client_lipschitz: float
    """L~ = sqrt(mean_i L_i^2)."""
    l0: float
    """L0 of ||grad f_i(x) - grad f_i(y)|| <= (L0 + L1 ||grad f_i(x)||) e^{L1||x-y||} ||x - y||."""
    l1: float
    """L1 of the same inequality."""


@dataclass(frozen=True, slots=True)
class LocalResult:
    """What one client computes at x on its own data."""

    loss: float
    """f_i(x), or its minibatch estimate."""
    gradient: Vector
    """(d,) of the problem's dtype; freshly allocated, the caller may keep it."""
    buffers: Vector
    """(b,) of the problem's dtype: the floating-point buffers after the pass; empty without any."""


@dataclass(frozen=True)
class Evaluation:
    """Quality of a model over all clients."""

    loss: float
    """f(x) = sum_i w_i f_i(x)."""
    gradient_norm: float | None
    """||grad f(x)||_2, None where the problem cannot say it."""
    test_accuracy: float | None
    """Fraction in [0, 1] on held-out data, None without any."""


class Problem(Protocol):
    """A finite sum over clients. Implementations are pure: same arguments, same bits."""

    @property
    def name(self) -> str:
        """The configuration's name of the problem."""

    @property
    def dimension(self) -> int:
        """d: number of trainable parameters."""

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """float32 for neural problems, float64 for analytic ones."""

    @property
    def num_examples(self) -> tuple[int, ...]:
        """Examples of each client; its length is the number of clients."""

    @property
    def smoothness(self) -> Smoothness | None:
        """The constants, None where they are unknown."""

    def initial_point(self) -> Vector:
        """x^0, (d,)."""

    def initial_buffers(self) -> Vector:
        """Floating-point buffers at the start, (b,); empty without any."""

    def named_arrays(self, x: Vector, buffers: Vector) -> dict[str, Vector]:
        """Return the model by its parts' names, floating-point buffers included."""

    def local(
        self, client: int, x: Vector, *, rows: IntVector | None = None, buffers: Vector
    ) -> LocalResult:
        """Loss, gradient and buffers of f_i at x on the client's `rows` (None: all of them).

        A client without examples has f_i = 0.
        """

    def evaluate(self, x: Vector, *, weights: Vector, buffers: Vector) -> Evaluation:
        """Evaluate the model; `weights` (n,) float64 sum to one."""


@runtime_checkable
class BatchedProblem(Protocol):
    """What a problem has besides, where it can compute the gradients of many clients together."""

    def local_many(
        self, clients: Sequence[int], x: Vector, *, rows: Sequence[IntVector | None]
    ) -> list[LocalResult]:
        """`Problem.local` of each client at the same x, equal up to rounding; no buffers."""
