"""problem=logistic takes every LIBSVM set of the data folder by its name."""

import numpy as np
import pytest

from fedef.config import Config
from fedef.problems.registry import build_problem


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [
        ("a1a", 1605, 119),
        ("a9a", 32561, 123),
        ("w8a", 49749, 300),
        ("phishing", 11055, 68),
        ("mushrooms", 8124, 112),
        ("breast-cancer_scale", 683, 10),
        ("diabetes_scale", 768, 8),
        ("heart_scale", 270, 13),
    ],
)
def test_a_set_of_the_papers(data_dir, name, rows, columns):
    """Dealt to ten clients; at x = 0 the loss is log 2."""
    settings = {"problem": "logistic", "data": name, "data-dir": str(data_dir)}
    problem = build_problem(Config.from_flat({**settings, "partitioner": "iid"}))
    assert (sum(problem.num_examples), problem.dimension) == (rows, columns)
    assert set(np.unique(problem.data.labels)) == {-1.0, 1.0}
    at_zero = problem.evaluate(
        np.zeros(columns), weights=np.full(10, 0.1), buffers=problem.initial_buffers()
    )
    assert at_zero.loss == pytest.approx(np.log(2), rel=1e-12)
    assert np.isfinite(problem.smoothness.lipschitz)
