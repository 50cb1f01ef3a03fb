"""The study of (L0, L1): exact Hessians, and estimates that find them."""

import numpy as np

from fedef.config import Config
from fedef.problems.registry import build_problem
from sims.reproduce.smoothness import ROWS, hessian_norms, study
from sims.reproduce.study import Settings


def test_the_closed_form_is_the_second_difference():
    problem = build_problem(Config.from_flat({"problem": "polynomial", "num-clients": 1}))
    x, step = np.array([[0.3, -2.0, 7.0, 19.0]]), 1e-4

    def gradient(point):
        return problem.local(0, point, buffers=np.empty(0)).gradient

    diagonal = [
        (gradient(x[0] + step * e) - gradient(x[0] - step * e)) @ e / (2 * step) for e in np.eye(4)
    ]
    np.testing.assert_allclose(hessian_norms(problem, x), [np.abs(diagonal).max()], rtol=1e-6)


def test_the_estimates_agree():
    result = study(Settings(quick=True), rows=ROWS[:1])
    assert len(result.checks) == 4
    assert all(check.agrees for check in result.checks)
    assert len(result.panels) == 1
