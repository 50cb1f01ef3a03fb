"""Step sizes: closed forms."""

from math import sqrt

import pytest

from fedef.schedules import constant, horizon, inverse_sqrt


def test_constant():
    assert [constant(0.3)(k) for k in (0, 1, 10**6)] == [0.3] * 3


def test_inverse_sqrt():
    gamma = inverse_sqrt(2.0)
    assert [gamma(k) for k in (0, 3, 8, 99)] == [2.0, 1.0, pytest.approx(2 / 3), 0.2]


@pytest.mark.parametrize("rounds", [1, 3, 100])
def test_horizon_is_constant_and_ends_where_inverse_sqrt_does(rounds):
    gamma = horizon(2.0, rounds)
    assert {gamma(k) for k in range(rounds)} == {2.0 / sqrt(rounds + 1)}
    assert gamma(0) == inverse_sqrt(2.0)(rounds)


def test_the_sum_of_the_steps_grows_like_the_root():
    """2 (sqrt(K+1) - 1) <= sum 1/sqrt(k+1) <= 2 sqrt(K), by integrals."""
    for rounds in (1, 10, 1000):
        travelled = sum(map(inverse_sqrt(1.0), range(rounds)))
        assert 2 * (sqrt(rounds + 1) - 1) <= travelled <= 2 * sqrt(rounds)
