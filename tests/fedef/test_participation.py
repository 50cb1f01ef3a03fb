"""Who takes part: pure, sorted, of the right size, each client equally often."""

from math import ceil, floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from fedef.participation import participants, round_half_up

shares = st.floats(0, 1, exclude_min=True)


@given(st.integers(0, 2**63 - 1), st.integers(1, 10**6), st.integers(1, 60), shares)
def test_sorted_distinct_clients_of_the_right_number(seed, round, n, share):
    chosen = participants(seed, round, n, share)
    assert all(type(client) is int for client in chosen)
    assert list(chosen) == sorted(set(chosen))
    assert set(chosen) <= set(range(n))
    assert len(chosen) >= 1
    assert max(1, floor(share * n)) <= len(chosen) <= max(1, ceil(share * n))
    assert participants(seed, round, n, share) == chosen


@pytest.mark.parametrize(
    ("n", "share", "count"),
    [(10, 0.3, 3), (10, 0.25, 3), (10, 0.24, 2), (10, 0.01, 1), (3, 0.5, 2), (1, 0.1, 1)],
)
def test_the_number_is_the_nearest_and_at_least_one(n, share, count):
    assert len(participants(0, 1, n, share)) == count


def test_halves_go_up():
    assert [round_half_up(x) for x in (0.49, 0.5, 1.5, 2.5, 2.4)] == [0, 1, 2, 3, 2]


def test_all_take_part_without_a_draw():
    for round in range(3):
        assert participants(round, round, 7, 1.0) == tuple(range(7))
        assert participants(round, round, 10, 0.96) == tuple(range(10))


def test_the_order_of_calls_does_not_matter():
    forwards = [participants(4, round, 20, 0.3) for round in range(30)]
    np.random.default_rng(0).random(10)
    backwards = [participants(4, round, 20, 0.3) for round in reversed(range(30))]
    assert forwards == backwards[::-1]


def test_rounds_and_seeds_draw_differently():
    assert len({participants(0, round, 40, 0.5) for round in range(50)}) == 50
    assert len({participants(seed, 0, 40, 0.5) for seed in range(50)}) == 50


def test_the_draws_are_pinned():
    """A change of these changes the bits of every run with partial participation."""
    assert participants(0, 1, 10, 0.3) == (5, 6, 9)
    assert participants(0, 2, 10, 0.3) == (1, 3, 8)


@pytest.mark.parametrize(("n", "share"), [(10, 0.3), (7, 0.5), (25, 0.04)])
def test_each_client_takes_part_equally_often(n, share):
    rounds = 4000
    counts = np.zeros(n)
    for round in range(rounds):
        counts[list(participants(1, round, n, share))] += 1
    size = max(1, round_half_up(share * n))
    expected = rounds * size / n
    # Without replacement the counts vary by the factor (n - size) / (n - 1).
    statistic = np.sum((counts - expected) ** 2 / expected) * (n - 1) / (n - size)
    assert chi2.ppf(1e-4, n - 1) < statistic < chi2.ppf(1 - 1e-4, n - 1)
