"""The analytic problems: gradients by finite differences, constants by what they promise."""

import numpy as np
import pytest

from fedef.config import Config
from fedef.problems.registry import build_problem
from fedef.theory import ef21_step_size
from fedef.vectors import norm

POLYNOMIAL = {"problem": "polynomial", "num-clients": 3}
ONE_ROW_EACH = {"problem": "logistic", "data": "synthetic", "num-clients": 20}
SHARDS = {"problem": "logistic", "num-clients": 7, "dirichlet-alpha": 0.5, "regularization": 0.03}
UNIFORM_SHARDS = {**SHARDS, "weighting": "uniform"}
ALL = [POLYNOMIAL, ONE_ROW_EACH, SHARDS]
NO_BUFFERS = np.empty(0)


def build(settings):
    return build_problem(Config.from_flat(settings))


def weights_of(settings):
    sizes = np.array(build(settings).num_examples, dtype=float)
    return np.full(len(sizes), 1 / len(sizes)) if "weighting" in settings else sizes / sizes.sum()


def client_gradient(problem, client, x):
    return problem.local(client, x, buffers=NO_BUFFERS).gradient


def full_gradient(problem, weights, x):
    return sum(w * client_gradient(problem, i, x) for i, w in enumerate(weights))


def central_differences(function, x, step=1e-4):
    steps = step * np.eye(len(x))
    return np.array([(function(x + e) - function(x - e)) / (2 * step) for e in steps])


@pytest.mark.parametrize("settings", ALL)
def test_gradient_equals_central_differences(settings):
    problem = build(settings)
    x = problem.initial_point()
    for client in (0, 2):
        rows = np.array([0])
        for chosen in (None, rows):
            result = problem.local(client, x, rows=chosen, buffers=NO_BUFFERS)
            numeric = central_differences(
                lambda y, c=client, r=chosen: problem.local(c, y, rows=r, buffers=NO_BUFFERS).loss,
                x,
            )
            assert norm(result.gradient - numeric) <= 1e-7 * max(1.0, norm(numeric))


@pytest.mark.parametrize("settings", [*ALL, UNIFORM_SHARDS])
def test_evaluation_is_the_weighted_mean_of_the_clients(settings):
    problem, weights = build(settings), weights_of(settings)
    x = problem.initial_point()
    evaluation = problem.evaluate(x, weights=weights, buffers=NO_BUFFERS)
    losses = [problem.local(i, x, buffers=NO_BUFFERS).loss for i in range(len(weights))]
    assert evaluation.loss == pytest.approx(weights @ losses, rel=1e-13)
    assert evaluation.gradient_norm == pytest.approx(
        norm(full_gradient(problem, weights, x)), rel=1e-12
    )
    assert evaluation.test_accuracy is None


@pytest.mark.parametrize("settings", ALL)
def test_the_same_call_gives_the_same_bits_and_shares_no_memory(settings):
    problem, again = build(settings), build(settings)
    x, buffers = problem.initial_point(), problem.initial_buffers()
    np.testing.assert_array_equal(x, again.initial_point())
    first = problem.local(1, x, buffers=buffers)
    kept = first.gradient.copy()
    problem.local(1, x + 1, buffers=buffers)
    second = again.local(1, x.copy(), buffers=buffers)
    assert first.loss == second.loss
    assert kept.tobytes() == first.gradient.tobytes() == second.gradient.tobytes()
    assert first.buffers is not buffers
    x[:] = 0
    assert np.abs(problem.initial_point()).min() > 0


@pytest.mark.parametrize("settings", [SHARDS, UNIFORM_SHARDS, ONE_ROW_EACH])
def test_logistic_lipschitz_constants_are_the_curvature_at_zero(settings):
    """At x = 0 the Hessian of f_i is A_i^T A_i/(4 m_i) + 2 lambda I: L and L_i are attained."""
    problem, weights = build(settings), weights_of(settings)
    zero = np.zeros(problem.dimension)

    def curvature(gradient):
        return np.linalg.eigvalsh(central_differences(gradient, zero, 1e-5))[-1]

    per_client = [
        curvature(lambda y, c=i: client_gradient(problem, c, y)) for i in range(len(weights))
    ]
    constants = problem.smoothness
    assert constants.lipschitz == pytest.approx(
        curvature(lambda y: full_gradient(problem, weights, y)), rel=1e-7
    )
    assert constants.client_lipschitz == pytest.approx(
        np.sqrt(weights @ np.square(per_client)), rel=1e-7
    )


@pytest.mark.parametrize("settings", [SHARDS, UNIFORM_SHARDS, ONE_ROW_EACH])
def test_logistic_gradient_differences_are_bounded_by_l(settings):
    problem, weights = build(settings), weights_of(settings)
    draws = np.random.default_rng(0)
    for scale in (0.01, 1.0, 30.0):
        for _ in range(10):
            x, y = scale * draws.standard_normal((2, problem.dimension))
            difference = full_gradient(problem, weights, x) - full_gradient(problem, weights, y)
            assert norm(difference) <= problem.smoothness.lipschitz * norm(x - y)


@pytest.mark.parametrize("l1", [1, 4, 8])
def test_polynomial_gradient_differences_are_bounded_by_l_within_the_radius(l1):
    problem = build({**POLYNOMIAL, "l1": l1})
    draws = np.random.default_rng(0)
    for scale in (0.1, 1.0, 20.0):
        for x, y in scale * draws.uniform(-1, 1, size=(20, 2, 4)):
            difference = client_gradient(problem, 0, x) - client_gradient(problem, 0, y)
            assert norm(difference) <= problem.smoothness.lipschitz * norm(x - y)


@pytest.mark.parametrize(
    "settings", [ONE_ROW_EACH, *({**POLYNOMIAL, "l1": l1} for l1 in (1, 4, 8))]
)
def test_l0_l1_inequality_on_random_pairs(settings):
    """||grad f_i(x) - grad f_i(y)|| <= (L0 + L1 ||grad f_i(x)||) e^{L1 ||x-y||} ||x-y||."""
    problem = build(settings)
    constants = problem.smoothness
    draws = np.random.default_rng(0)
    for scale in (0.1, 3.0, 30.0):
        for distance in (1e-3, 0.1, 1.0):
            for _ in range(10):
                x = scale * draws.standard_normal(problem.dimension)
                y = x + distance * draws.standard_normal(problem.dimension)
                at_x, at_y = client_gradient(problem, 2, x), client_gradient(problem, 2, y)
                bound = (constants.l0 + constants.l1 * norm(at_x)) * norm(x - y)
                assert norm(at_x - at_y) <= bound * np.exp(constants.l1 * norm(x - y))


def test_polynomial_coefficients_are_the_papers():
    """At x = (20, 0, 0, 0) with L1 = 1: f = lambda (20^4/24 + 400/401), lambda = 4/74."""
    problem = build(POLYNOMIAL)
    x = np.array([20.0, 0, 0, 0])
    expected = 4 / 74 * (20**4 / 24 + 400 / 401)
    assert problem.local(0, x, buffers=NO_BUFFERS).loss == pytest.approx(expected, rel=1e-14)
    assert problem.smoothness.lipschitz == pytest.approx(402 * 4 / 74, rel=1e-14)
    assert (problem.smoothness.l0, problem.smoothness.l1) == (4.0, 1.0)


def test_polynomial_starts_around_20_where_the_seed_says():
    points = [build({**POLYNOMIAL, "seed": seed}).initial_point() for seed in range(50)]
    assert np.mean(points) == pytest.approx(20, abs=0.3)
    assert np.std(points) == pytest.approx(1, abs=0.2)


def test_the_mean_of_single_rows_is_the_whole_client():
    problem = build(SHARDS)
    x = problem.initial_point()
    whole = problem.local(3, x, buffers=NO_BUFFERS)
    singles = [
        problem.local(3, x, rows=np.array([row]), buffers=NO_BUFFERS)
        for row in range(problem.num_examples[3])
    ]
    assert np.mean([s.loss for s in singles]) == pytest.approx(whole.loss, rel=1e-12)
    np.testing.assert_allclose(
        np.mean([s.gradient for s in singles], axis=0), whole.gradient, atol=1e-13
    )


def test_logistic_does_not_overflow_for_large_margins():
    problem = build(ONE_ROW_EACH)
    for client in range(4):
        for sign in (-1.0, 1.0):
            x = sign * 1e5 * problem.initial_point()
            result = problem.local(client, x, buffers=NO_BUFFERS)
            assert np.isfinite(result.loss)
            assert np.isfinite(result.gradient).all()


def test_a_client_without_rows_has_f_i_of_zero():
    """Neither its loss nor its regularizer counts, alone or in the mean."""
    settings = {**SHARDS, "num-clients": 40, "dirichlet-alpha": 0.05, "min-partition-size": 0}
    problem, weights = build(settings), np.full(40, 1 / 40)
    empty = problem.num_examples.index(0)
    x = problem.initial_point()
    result = problem.local(empty, x, buffers=NO_BUFFERS)
    assert result.loss == 0.0
    assert not result.gradient.any()
    losses = [problem.local(i, x, buffers=NO_BUFFERS).loss for i in range(40)]
    evaluation = problem.evaluate(x, weights=weights, buffers=NO_BUFFERS)
    assert evaluation.loss == pytest.approx(np.mean(losses), rel=1e-13)


def ef21_step(problem, k):
    constants = problem.smoothness
    return ef21_step_size(constants.lipschitz, constants.client_lipschitz, k / problem.dimension)


@pytest.mark.parametrize(("k", "step"), [(1, 0.0051), (3, 0.0157), (15, 0.0936)])
def test_ef21_steps_on_wdbc_are_those_of_the_specification(k, step):
    problem = build({"problem": "logistic", "num-clients": 569})
    assert ef21_step(problem, k) == pytest.approx(step, abs=5e-5)


@pytest.mark.parametrize(("k", "step"), [(1, 0.026), (2, 0.055), (5, 0.159)])
def test_ef21_steps_on_the_papers_breast_cancer_are_those_of_the_specification(k, step, data_dir):
    settings = {"data": "breast-cancer_scale", "data-dir": str(data_dir), "num-clients": 683}
    problem = build({"problem": "logistic", **settings})
    assert ef21_step(problem, k) == pytest.approx(step, abs=5e-4)
