"""The published loops of arXiv:2410.14054 on whole arrays, written once more from the papers.

The formulas are those of the authors' code and share no line with fedef's problems and methods, so
that the two can be compared. Row indices are arguments: a run is replayed from recorded ones.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Loop:
    """w <- w - gamma m/max(N + delta, tau)^beta; beta = 0 divides by nothing.

    m is v, or theta m + (1 - theta) v from m_0 = v_0. N is ||m||, or amplify ||g'|| where an
    independent batch gives g'. v is the gradient on `batch` rows (None: all), or SPIDER's: the
    whole gradient every `spider_period` iterations, else v + g_S(w_t) - g_S(w_{t-1}).
    """

    gamma: float
    beta: float = 0.0
    delta: float = 0.0
    tau: float = 0.0
    theta: float = 0.0
    batch: int | None = None
    independent_batch: int | None = None
    amplify: float = 2.0
    spider_period: int | None = None
    momentum_reset: int | None = None

    def whole(self, t):
        """Whether iteration t takes the whole gradient."""
        return self.batch is None or (
            self.spider_period is not None and t % self.spider_period == 0
        )


def draw_rows(loop, draws, n, iterations):
    """[(rows, independent rows)] per iteration: B without replacement, then B' from all n again."""
    return [
        (
            None if loop.whole(t) else draws.choice(n, loop.batch, replace=False),
            None
            if loop.independent_batch is None
            else draws.choice(n, loop.independent_batch, replace=False),
        )
        for t in range(iterations)
    ]


def cost(loop, n, iterations):
    """(iterations + 1,) samples before each update, as the papers count: SPIDER's pair is one."""
    each = [
        (n if loop.whole(t) else loop.batch) + (loop.independent_batch or 0)
        for t in range(iterations)
    ]
    return np.cumsum([0, *each])


def iterations_within(loop, n, budget):
    """Updates whose samples fit in `budget`."""
    return int(np.searchsorted(cost(loop, n, budget // 64), budget, side="right")) - 1


def run(loop, gradient, w0, recorded):
    """(T + 1, d) iterates; `gradient(w, rows)` with rows None for all."""
    w, path = w0, [w0]
    v = m = previous = None
    for t, (rows, independent) in enumerate(recorded):
        if loop.spider_period is not None and not loop.whole(t):
            v = v + gradient(w, rows) - gradient(previous, rows)
        else:
            v = gradient(w, rows)
        fresh = m is None or (loop.momentum_reset is not None and t % loop.momentum_reset == 0)
        m = v if fresh else loop.theta * m + (1 - loop.theta) * v
        size = (
            np.linalg.norm(m)
            if independent is None
            else loop.amplify * np.linalg.norm(gradient(w, independent))
        )
        divisor = max(size + loop.delta, loop.tau) ** loop.beta if loop.beta else 1.0
        previous, w = w, w - loop.gamma * m / divisor
        path.append(w)
    return np.array(path)


class PhaseRetrievalArrays:
    """f(z) = 1/(2m) sum (y - (Az)^2)^2 and the code's "gradient", half of f's."""

    def __init__(self, seed=2024, m=3000, d=100):
        draws = np.random.RandomState(seed)
        self.truth = np.sqrt(0.5) * draws.randn(d)
        self.A = np.sqrt(0.5) * draws.randn(m, d)
        self.y = (self.A @ self.truth) ** 2 + 4 * draws.randn(m)
        self.z0 = np.sqrt(6) * draws.randn(d) + 1
        self.n = m

    def value(self, z):
        return np.mean((self.y - (self.A @ z) ** 2) ** 2) / 2

    def gradient(self, z, rows=None):
        A, y = (self.A, self.y) if rows is None else (self.A[rows], self.y[rows])
        u = A @ z
        return A.T @ (u * (u**2 - y)) / len(y)


class DroArrays:
    """L(x, eta) on given rows and labels; w = (x, eta)."""

    lam = 0.01

    def __init__(self, A, b):
        self.A, self.b, self.n = A, b, len(b)

    def losses(self, x, rows=slice(None)):
        return (self.A[rows] @ x - self.b[rows]) ** 2 / 2 + 0.1 * np.log(1 + np.abs(x)).sum()

    def value(self, w):
        t = (self.losses(w[:-1]) - w[-1]) / self.lam
        return self.lam * np.mean(np.maximum(t / 2 + 1, 0) ** 2 - 1) + w[-1]

    def gradient(self, w, rows=None):
        A, b = (self.A, self.b) if rows is None else (self.A[rows], self.b[rows])
        x, eta = w[:-1], w[-1]
        R = A @ x - b
        loss = R**2 / 2 + 0.1 * np.log(1 + np.abs(x)).sum()
        p = np.maximum((loss - eta) / (2 * self.lam) + 1, 0)
        along_x = A.T @ (p * R) / len(b) + 0.1 * p.mean() * np.sign(x) / (1 + np.abs(x))
        return np.append(along_x, 1 - p.mean())


PHASE_RETRIEVAL_DETERMINISTIC = {
    "gd": (Loop(gamma=8e-4), 2090.87),
    "1/3-gd": (Loop(gamma=0.03, beta=1 / 3), 585.779),
    "2/3-gd": (Loop(gamma=0.1, beta=2 / 3), 4490.50),
    "1-gd": (Loop(gamma=0.2, beta=1), 106824),
    "clipped-gd": (Loop(gamma=0.9, beta=1, tau=1e4), 43318),
}
"""From z0: the loop, and f at the tenth evaluation, which precedes the tenth update."""

PHASE_RETRIEVAL = {
    "sgd": (Loop(gamma=5e-5, batch=64), 952, 13),
    "nsgd": (Loop(gamma=0.2, beta=1, batch=64), 10.71, 0.39),
    "nsgdm": (Loop(gamma=0.2, beta=1, theta=0.2, batch=64), 11.50, 0.61),
    "clip-sgd": (Loop(gamma=0.6, beta=1, tau=2025, delta=15, batch=64), 171, 23),
    "spider": (Loop(gamma=0.3, beta=1, batch=64, spider_period=20), 191, 57),
    "ian-sgd": (
        Loop(gamma=0.3, beta=2 / 3, tau=2025, delta=15, batch=64, independent_batch=4),
        8.25,
        0.04,
    ),
}
"""From z1: the loop, and mean and standard deviation of f at 27,000 samples over 20 seeds."""
PHASE_RETRIEVAL_BUDGET = 27_000

DRO = {
    "sgd": (Loop(gamma=4e-5, batch=128), 4.608, 0.022, 0),
    "nsgd": (Loop(gamma=0.005, beta=2 / 3, batch=128), 3.749, 0.021, 0),
    "nsgdm": (
        Loop(gamma=0.005, beta=2 / 3, theta=0.1, batch=128, momentum_reset=59),
        3.722,
        0.022,
        0,
    ),
    "clip-sgd": (Loop(gamma=0.14, beta=2 / 3, tau=1225, delta=25, batch=128), 3.643, 0.027, 2),
    "spider": (Loop(gamma=0.003, beta=2 / 3, batch=128, spider_period=15), 3.674, 0.005, 0),
    "ian-sgd": (
        Loop(gamma=0.14, beta=2 / 3, tau=1225, delta=25, batch=128, independent_batch=8),
        3.644,
        0.024,
        2,
    ),
}
"""From (x1, eta1), seed 1: the loop; mean and standard deviation of Psi at 128,000 samples over the
seeds that do not diverge (Psi > 50 there); and how many of 20 do. NSGDm starts its momentum anew
every 59 iterations, as the code does by mistake."""
DRO_BUDGET = 128_000
