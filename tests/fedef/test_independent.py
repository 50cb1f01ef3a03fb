"""Independent normalization: closed forms, the published steps, the bound, memory, DRO's claim."""

import math
import warnings
from functools import cache
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference_ian import DRO_BUDGET, DroArrays, Loop, draw_rows, iterations_within, run

from fedef.datasets import find_file
from fedef.errors import ConfigError
from fedef.independent import NormalizerState, init, step
from fedef.problems.dro import inner_minimum, make_instance
from fedef.problems.life_expectancy import FILE, read_life_expectancy

PUBLISHED = Loop(
    gamma=0.16, beta=2 / 3, tau=1225, delta=25, batch=128, independent_batch=8, amplify=2.0
)
"""What fits the paper's main DRO figure, instance 2024."""


def constants_of(loop):
    return {
        "step_size": loop.gamma,
        "beta": loop.beta,
        "tau": loop.tau,
        "delta": loop.delta,
        "amplification": loop.amplify,
    }


def three_four(scale=1.0):
    """Norm 5 scale."""
    return scale * np.array([3.0, 0.0, -4.0])


def test_closed_forms():
    """Independent norm 3, A = 2, delta = 2: h = max(8, tau), and h^(2/3) = 4 below tau = 8."""
    given_norm = {"step_size": 0.4, "beta": 2 / 3, "delta": 2.0, "cap": math.inf}
    dx, state = step(init(), three_four(), 3.0, tau=8.0, **given_norm)
    np.testing.assert_allclose(dx, -0.1 * three_four(), rtol=1e-14)
    assert (state.last_norm, state.steps, state.capped_steps) == (5.0, 1, 0)
    assert state.first_length == pytest.approx(0.5, rel=1e-14)
    dx, _ = step(state, three_four(), 3.0, tau=64.0, **given_norm)
    np.testing.assert_allclose(dx, -0.4 / 16 * three_four(), rtol=1e-14)
    dx, _ = step(init(), three_four(), 3.0, amplification=31.0, tau=8.0, step_size=0.4, beta=0.0)
    np.testing.assert_array_equal(dx, -0.4 * three_four())


def test_the_cap_is_twice_the_first_step_that_is_not_zero():
    """Tau = 8 above all norms and beta = 1: steps are gamma ||g|| / 8, the bound 2 * 5/8 gamma."""
    constants = {"step_size": 0.4, "beta": 1.0, "tau": 8.0, "independent_norm": 1.0}
    dx, state = step(init(), np.zeros(3), **constants)
    assert not dx.any()
    lengths, scales = [], [1.0, 1.9, 2.1, 1e9, 0.5]
    for scale in scales:
        dx, state = step(state, three_four(scale), **constants)
        lengths.append(np.linalg.norm(dx))
        assert np.linalg.norm(dx - lengths[-1] * three_four(-0.2)) < 1e-15
    np.testing.assert_allclose(lengths, 0.25 * np.array([1.0, 1.9, 2.0, 2.0, 0.5]), rtol=1e-14)
    assert state == NormalizerState(2.5, 0.25, 6, 2)


def test_memory_is_the_norm_of_the_step_before():
    """The first call takes its own norm; a cap that acts does not change what is remembered."""
    constants = {"step_size": 0.1, "beta": 1.0, "tau": 1.0, "amplification": 2.0}
    first, state = step(init(), three_four(), **constants)
    np.testing.assert_allclose(first, -0.1 * three_four() / 10, rtol=1e-14)
    second, state = step(state, three_four(100.0), **constants)
    np.testing.assert_allclose(second, -0.1 * three_four() / 5, rtol=1e-14)
    assert state == NormalizerState(500.0, 0.05, 2, 1)
    third, _ = step(state, three_four(), **constants)
    np.testing.assert_allclose(third, -0.1 * three_four() / 1000, rtol=1e-14)


vectors = st.lists(st.floats(-1e200, 1e200), min_size=1, max_size=4).map(np.array)
norms = st.none() | st.floats(0, 1e200)
betas = st.sampled_from([0.0, 1 / 3, 2 / 3, 1.0])
positive = st.floats(1e-6, 1e6)


@given(vectors, norms, positive, betas, positive, st.floats(1, 1e6))
def test_no_step_is_longer_than_the_bound(g, independent_norm, gamma, beta, first, cap):
    """And one that is shorter is the published one."""
    state = NormalizerState(last_norm=1.0, first_length=first, steps=1)
    constants = {"step_size": gamma, "beta": beta, "tau": 1.0}
    dx, after = step(state, g, independent_norm, **constants, cap=cap)
    free, _ = step(state, g, independent_norm, **constants, cap=math.inf)
    assert np.linalg.norm(dx / (cap * first)) <= 1 + 1e-12
    if not after.capped_steps:
        np.testing.assert_array_equal(dx, free)
    assert (np.sign(dx) * np.sign(g) <= 0).all()


def test_the_published_loop_where_the_cap_is_off_and_where_it_does_not_act(data_dir):
    """The first 30 iterations from recorded rows: with a wide cap the published path."""
    arrays, x1 = instance(data_dir)
    recorded = draw_rows(PUBLISHED, np.random.RandomState(0), arrays.n, 30)
    expected = run(PUBLISHED, arrays.gradient, x1, recorded)
    for cap, acts in ((math.inf, False), (50.0, False), (1.0, True)):
        path, state = replayed(arrays, x1, recorded, cap=cap)
        assert (state.capped_steps > 0) == acts
        if not acts:
            np.testing.assert_allclose(path, expected, rtol=1e-9, atol=1e-10)


def test_given_the_past_the_mean_step_is_along_the_full_gradient():
    """All 2-row batches of 6 rows: with memory their mean step is -gamma grad F/h^beta, exactly.

    Dividing by the batch's own norm turns it: the long row counts less than it does in grad F.
    """
    rows = np.array([[100.0, 0.0]] + 5 * [[0.0, 3.0]])
    batches = [rows[list(pair)].mean(axis=0) for pair in combinations(range(6), 2)]
    state = NormalizerState(last_norm=7.0)
    constants = {"step_size": 0.5, "beta": 2 / 3, "tau": 1.0, "cap": math.inf}
    full = rows.mean(axis=0)
    with_memory = np.mean([step(state, g, **constants)[0] for g in batches], axis=0)
    np.testing.assert_allclose(with_memory, -0.5 * full / 14 ** (2 / 3), rtol=1e-12)
    own = np.mean([step(state, g, np.linalg.norm(g), **constants)[0] for g in batches], axis=0)
    assert own[1] / own[0] > 3 * full[1] / full[0]


def test_zeros_leave_x_and_what_is_not_finite_comes_out_as_nan():
    constants = {"step_size": 1.0, "beta": 1.0, "tau": 0.0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not step(init(), np.zeros(3), **constants)[0].any()
        assert not step(init(), three_four(), 0.0, **constants)[0].any()
        for bad in (math.inf, -math.inf, math.nan):
            for given_norm in (None, 1.0, math.inf):
                g = np.array([1.0, bad])
                assert not np.isfinite(step(init(), g, given_norm, **constants)[0]).all()
        state = NormalizerState(first_length=0.5, steps=1)
        dx, _ = step(state, np.array([1e300, 1e300]), 1.0, step_size=1e3, beta=2 / 3, tau=1.0)
        np.testing.assert_allclose(dx, -np.sqrt([0.5, 0.5]), rtol=1e-12)


@pytest.mark.parametrize(
    "bad",
    [
        {"step_size": 0.0},
        {"step_size": math.inf},
        {"beta": -0.1},
        {"beta": 1.1},
        {"tau": -1.0},
        {"tau": math.nan},
        {"delta": math.nan},
        {"delta": -1.0},
        {"amplification": math.inf},
        {"cap": 0.5},
        {"cap": math.nan},
    ],
)
def test_constants_out_of_range_are_refused(bad):
    constants = {"step_size": 0.1, "beta": 0.5, "tau": 1.0, **bad}
    with pytest.raises(ConfigError, match=r"step_size must be > 0.*cap=inf is no cap"):
        step(init(), three_four(), **constants)


@pytest.mark.parametrize("state", [init(), NormalizerState(0.1 + 0.2, 0.7, 9, 2)])
def test_the_state_survives_a_checkpoint(state):
    assert NormalizerState.from_arrays(state.to_arrays()) == state


def test_a_damaged_state_is_refused():
    for damaged in ({}, {"normalizer": np.zeros(2)}, {"normalizer": np.array(3.0)}):
        with pytest.raises(ConfigError, match=r"missing or malformed"):
            NormalizerState.from_arrays(damaged)


@cache
def instance_in(folder):
    made = make_instance(read_life_expectancy(find_file(FILE, folder)), 2024)
    arrays = DroArrays(made.features, made.targets)
    loop = Loop(gamma=0.2, beta=1)
    return arrays, run(loop, arrays.gradient, made.start, [(None, None)] * 30)[-1]


def instance(data_dir):
    return instance_in(str(data_dir))


def replayed(arrays, x1, recorded, *, memory=False, **changes):
    """Path of `step` from recorded rows; with memory it takes the batches alone."""
    x, path, state = x1, [x1], init()
    for rows, independent in recorded:
        n = None if memory else np.linalg.norm(arrays.gradient(x, independent))
        dx, state = step(state, arrays.gradient(x, rows), n, **constants_of(PUBLISHED), **changes)
        x = x + dx
        path.append(x)
    return np.array(path), state


@pytest.mark.slow
def test_0_of_20_seeds_diverge_where_6_do_as_published_at_no_worse_median(data_dir):
    """DRO, instance 2024, 128,000 samples each, the same batches. Chosen on the seeds 100 to 399.

    The published rule does 941 steps in them, ours 1000 with the same batches and none beside.
    """
    arrays, x1 = instance(data_dir)
    weights = np.full(arrays.n, 1 / arrays.n)

    def psi(x):
        return inner_minimum(arrays.losses(x[:-1]), weights)[0]

    published, ours, capped, steps = [], [], 0, 0
    its, ours_its = iterations_within(PUBLISHED, arrays.n, DRO_BUDGET), DRO_BUDGET // 128
    with np.errstate(all="ignore"):
        for seed in range(20):
            recorded = draw_rows(PUBLISHED, np.random.RandomState(seed), arrays.n, ours_its)
            published.append(psi(run(PUBLISHED, arrays.gradient, x1, recorded[:its])[-1]))
            path, state = replayed(arrays, x1, recorded, memory=True)
            ours.append(psi(path[-1]))
            capped, steps = capped + state.capped_steps, steps + state.steps
    survives = np.array(published) <= 50
    assert 5 <= np.count_nonzero(~survives) <= 7
    assert max(ours) < 5
    best = np.median(np.array(published)[survives])
    assert best == pytest.approx(3.972, abs=0.005)
    assert np.median(ours) <= best
    assert np.median(np.array(ours)[survives]) <= best
    assert capped / steps < 0.005
