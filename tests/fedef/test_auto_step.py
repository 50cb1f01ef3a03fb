"""`schedule=auto`: its formula, its safeguards, and its rounds beside a tuned constant step."""

import numpy as np
import pytest

from fedef.auto_step import FIRST_MOVE, GROWTH, LEAST_SHARE, SECANT_SHARE, AutoState, AutoStep
from fedef.config import Config
from fedef.errors import ConfigError
from fedef.experiment import Experiment
from fedef.vectors import norm
from sims.auto_bench import Case, auto, build, cases, compare, first_hit
from sims.engine import InlineEngine

CASES = {case.name: case for case in cases()}


def descend(rule, gradient, x, rounds):
    """Points and step lengths of x <- x - gamma g (or g/||g||)."""
    state, points, lengths = rule.init(x), [x], []
    for _ in range(rounds):
        g = gradient(x)
        gamma, state = rule.update(state, x, g)
        direction = g / norm(g) if rule.normalized and norm(g) > 0 else g
        x = x - gamma * direction
        points.append(x)
        lengths.append(norm(gamma * direction))
    return np.array(points), np.array(lengths), state


def test_the_first_rounds_by_hand():
    """f = 2 x^2, g = 4 x, from x = 10: step 1; then l = 4, lambda = min(1.2/40, 0.4/4) = 0.03."""
    rule = AutoStep(normalized=False)
    x = np.array([10.0])
    first, state = rule.update(rule.init(x), x, 4 * x)
    assert first == pytest.approx(FIRST_MOVE * 10 / 40, rel=1e-15)
    x = x - first * 4 * x
    assert x[0] == pytest.approx(9.0, rel=1e-15)
    second, state = rule.update(state, x, 4 * x)
    bound = 1.0 / 2**0.5
    assert bound < GROWTH / 40 * 36
    assert second * 36 == pytest.approx(bound, rel=1e-15)
    assert state.rounds == 2


def test_late_steps_are_a_share_of_the_inverse_curvature():
    """On a quadratic with eigenvalue L in every direction l_k = L, so lambda = 0.4/L."""
    start = np.array([3.0, -4.0])
    for curvature in (1e-3, 1.0, 1e6):
        points, _, state = descend(
            AutoStep(normalized=False), lambda x, c=curvature: c * x, start, 60
        )
        assert state.secant_step == pytest.approx(SECANT_SHARE / curvature, rel=1e-6)
        assert norm(points[-1]) < 1e-6


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_scale_of_the_loss_does_not_matter(scale):
    h, start = np.array([1.0, 7.0]), np.array([2.0, -1.0])
    points, _, _ = descend(AutoStep(normalized=True), lambda x: h * x, start, 40)
    scaled, _, _ = descend(AutoStep(normalized=True), lambda x: scale * h * x, start, 40)
    np.testing.assert_allclose(scaled, points, rtol=1e-9, atol=1e-12)


def test_plain_and_unit_directions_give_the_same_trajectory():
    h, start = np.array([1.0, 30.0]), np.array([5.0, 1.0])
    plain, _, _ = descend(AutoStep(normalized=False), lambda x: h * x, start, 30)
    unit, _, _ = descend(AutoStep(normalized=True), lambda x: h * x, start, 30)
    np.testing.assert_allclose(plain, unit, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("l1", [1.0, 10.0])
def test_an_exponential_gradient_does_not_make_it_diverge(l1):
    """f = cosh(L1 x)/L1: f'' = L1 (1 + f'^2)^(1/2), not Lipschitz; from f' = 1e8."""
    start = np.array([np.arcsinh(1e8) / l1])
    points, _, _ = descend(AutoStep(normalized=True), lambda x: np.sinh(l1 * x), start, 120)
    assert np.abs(points).max() <= start[0]
    assert abs(np.sinh(l1 * points[-1][0])) < 1e-2


def test_no_step_is_longer_than_the_distance_bound():
    """A gradient that hardly changes shows no curvature: lambda would grow by 1.2 every round."""
    points, lengths, _ = descend(
        AutoStep(normalized=True), lambda x: 1 + 1e-12 * x, np.zeros(3), 200
    )
    distances = np.maximum.accumulate(np.linalg.norm(points - points[0], axis=1))
    distances = np.maximum(distances, lengths[0])[:-1]
    assert (lengths <= distances / np.sqrt(np.arange(1, 201)) * (1 + 1e-12)).all()
    assert lengths[-1] > 100 * lengths[0]


@pytest.mark.parametrize("rule", [AutoStep(normalized=True, noisy=True), AutoStep(True, eta=0.1)])
def test_pure_noise_does_not_end_progress(rule):
    """Secants of noise are as large as the noise over the step: without a floor lambda vanishes."""

    def length_after_100_rounds(of):
        draws = np.random.default_rng(0)
        return descend(of, lambda x: draws.standard_normal(5), np.zeros(5), 100)

    _, lengths, state = length_after_100_rounds(rule)
    assert lengths[-1] == pytest.approx(LEAST_SHARE * state.distance / 10, rel=1e-12)
    _, vanished, _ = length_after_100_rounds(AutoStep(normalized=True))
    assert vanished[-1] < 1e-12


@pytest.mark.parametrize(
    ("settings", "noisy"),
    [
        ({"method": "norm-ef21"}, False),
        ({"method": "norm-ef21", "local-batch-size": 8}, True),
        ({"method": "spider", "direction": "unit", "local-batch-size": 8}, True),
        ({"method": "spider", "direction": "unit"}, False),
        ({"method": "norm-ef21", "replay": "rows.npz"}, True),
    ],
)
def test_gradients_of_some_rows_are_noisy(settings, noisy, tmp_path, monkeypatch):
    """SPIDER's differences of a batch and replayed rows as well as minibatches."""
    monkeypatch.chdir(tmp_path)
    np.savez("rows.npz", minibatch=np.zeros((3, 1, 4), dtype=np.int64))
    common = {"problem": "phase-retrieval", "num-clients": 1, "schedule": "auto"}
    experiment = Experiment.build(Config.from_flat({**common, **settings}))
    assert experiment.method.stepper.rule.noisy is noisy


def test_a_silent_round_keeps_lambda_and_a_zero_estimate_keeps_the_state():
    rule, x = AutoStep(normalized=False), np.ones(2)
    first, state = rule.update(rule.init(x), x, np.ones(2))
    again, state = rule.update(state, x, np.ones(2))
    assert again <= first
    step, kept = rule.update(state, x, np.zeros(2))
    assert step == 0.0
    assert kept is state


def test_update_is_pure():
    rule = AutoStep(normalized=True)
    x, g = np.ones(3, dtype=np.float32), np.array([1.0, 2.0, 3.0])
    _, state = rule.update(rule.init(x), x, g)
    first, after = rule.update(state, x * 2, g * 3)
    x[:], g[:] = 0, 0
    second, _ = rule.update(state, np.full(3, 2, dtype=np.float32), np.array([3.0, 6.0, 9.0]))
    assert first == second
    assert state.rounds == 1
    assert after.last_g.tolist() == [3.0, 6.0, 9.0]


def test_the_state_survives_a_checkpoint_bit_for_bit():
    rule, h = AutoStep(normalized=True), np.array([1.0, 3.0])
    x = np.array([1.0, 1.0])
    _, _, state = descend(rule, lambda y: h * y, x, 7)
    back = AutoState.from_arrays(state.to_arrays())
    assert rule.update(back, x, x)[0] == rule.update(state, x, x)[0]
    for name, array in state.to_arrays().items():
        assert array.tobytes() == back.to_arrays()[name].tobytes()
    with pytest.raises(ConfigError, match="schedule=auto"):
        AutoState.from_arrays({"origin": x})


MEASURED = {
    "polynomial-L1=1/identity": 231,
    "polynomial-L1=1/top-1": 233,
    "polynomial-L1=4/identity": 1851,
    "polynomial-L1=4/top-1": 2619,
    "polynomial-L1=8/identity": 5235,
    "polynomial-L1=8/top-1": 7405,
    "breast_cancer/identity": 437,
    "breast_cancer/top-15": 437,
    "breast_cancer/top-3": 161,
    "breast_cancer/top-1": 331,
    "synthetic/identity": 36,
    "synthetic/top-5": 100,
    "synthetic/top-1": 95,
    "phase-retrieval/identity": 39,
    "phase-retrieval/top-10": 164,
    "phase-retrieval/top-1": 871,
    "digits-softmax/identity": 100,
    "digits-softmax/top-65": 89,
    "digits-softmax/top-6": 48,
    "digits-mlp/identity": 110,
    "digits-mlp/top-481": 105,
    "digits-mlp/top-48": 154,
}
"""Median rounds of the tuned constant over 3 seeds: ``python -m sims.auto_bench``."""


def test_every_case_has_its_tuned_constant():
    assert MEASURED.keys() == CASES.keys()


@pytest.mark.parametrize("name", MEASURED)
def test_auto_takes_at_most_twice_the_rounds_of_the_tuned_constant(name):
    case = CASES[name]
    hits = [
        first_hit(run, case, auto(run), case.max_rounds)
        for run in (build(case, seed=seed) for seed in (0, 1, 2))
    ]
    assert np.median(hits) <= 2 * MEASURED[name]


def test_the_comparison_tunes_the_constant_itself():
    comparison = compare(CASES["synthetic/identity"], seeds=(0,), grid=(0.02, 0.0884, 1.0))
    assert comparison.tuned_step == 0.0884
    assert comparison.tuned == (36,)
    assert comparison.ratio == comparison.auto[0] / 36


def test_a_leap_to_where_the_regularizer_is_flat_does_not_count():
    """||grad f||^2 < 1e-4 far from every minimum, at a loss above the first."""
    case = CASES["breast_cancer/top-1"]
    run = build(case, seed=0)
    assert first_hit(run, case, lambda k, x, g: 2.0**3.5, 300) is None


@pytest.mark.filterwarnings("error")
def test_a_diverging_constant_never_hits():
    case = CASES["polynomial-L1=1/identity"]
    run = build(case, seed=0, normalized=False)
    assert first_hit(run, case, lambda k, x, g: 1.0, 300) is None
    assert first_hit(run, case, auto(run), 300) is not None


def in_the_engine(case, **extra):
    settings = {**case.settings, "method": "norm-ef21", "seed": 1, **extra}
    return InlineEngine(Experiment.build(Config.from_flat(settings)))


def small(name, max_rounds):
    whole = CASES[name]
    return Case(whole.name, whole.settings, -1.0, whole.by_loss, max_rounds)


@pytest.mark.parametrize("name", ["synthetic/top-1", "polynomial-L1=4/top-1"])
def test_the_bench_takes_the_engines_steps(name):
    """The same models as messages carry, for a constant step and for auto."""
    case, rounds = small(name, 25), 25
    for extra in ({"schedule": "constant", "step-size": 0.05}, {"schedule": "auto"}):
        run, seen = build(case, seed=1), []
        rule = auto(run) if extra["schedule"] == "auto" else lambda k, x, g: 0.05

        def choose(k, x, g, rule=rule, seen=seen):
            seen.append(x)
            return rule(k, x, g)

        first_hit(run, case, choose, rounds)
        engine = in_the_engine(case, **extra)
        for k in range(rounds):
            np.testing.assert_allclose(engine.server.x, seen[k], rtol=1e-9, atol=1e-12)
            engine.round()
