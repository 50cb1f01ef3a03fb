"""The step sizes against the numbers of spec/ef21.md and against their definitions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedef.errors import ConfigError
from fedef.theory import (
    ef21_step_size,
    error_ratio,
    norm_ef21_constant,
    norm_ef21_gamma0,
    norm_ef21_single_node_step,
)

TOP_1_OF_4 = 0.25


def lipschitz_of_polynomial(l1: float) -> float:
    """402 lambda, lambda = L0/(9 d^2/(2 L1^2) + 2), at L0 = d = 4."""
    return 402 * 4 / (72 / l1**2 + 2)


def test_error_ratio_of_top_1_of_4():
    assert error_ratio(TOP_1_OF_4) == pytest.approx(6.4641, abs=5e-5)


def test_constant_of_top_1_of_4_is_13_4282_l1():
    assert norm_ef21_constant(1.0, TOP_1_OF_4) == pytest.approx(13.4282, abs=5e-5)
    assert norm_ef21_constant(3.0, TOP_1_OF_4) == 3 * norm_ef21_constant(1.0, TOP_1_OF_4)


@pytest.mark.parametrize(
    ("l1", "ef21", "single_node", "gamma0"),
    [
        (1, 6.1655e-3, 3.7235e-2, 9.3088e-3),
        (4, 5.4156e-4, 9.3088e-3, 2.3272e-3),
        (8, 2.6037e-4, 4.6544e-3, 1.1636e-3),
    ],
)
def test_steps_of_the_polynomial(l1, ef21, single_node, gamma0):
    lipschitz = lipschitz_of_polynomial(l1)
    assert ef21_step_size(lipschitz, lipschitz, TOP_1_OF_4) == pytest.approx(ef21, rel=2e-5)
    assert norm_ef21_single_node_step(l1, TOP_1_OF_4) == pytest.approx(single_node, rel=2e-5)
    assert norm_ef21_gamma0(l1, TOP_1_OF_4) == pytest.approx(gamma0, rel=2e-5)


def test_without_compression_the_steps_are_those_of_gradient_descent():
    assert ef21_step_size(5.0, 9.0, 1.0) == 1 / 5
    assert norm_ef21_constant(4.0, 1.0) == 2.0


def test_theorem_3_scales_with_b():
    assert norm_ef21_single_node_step(2.0, 0.5, b=6) == pytest.approx(
        norm_ef21_single_node_step(2.0, 0.5) / 3, rel=1e-15
    )


@given(st.floats(1e-300, 1.0))
def test_error_ratio_respects_its_bound(alpha):
    assert 0 <= error_ratio(alpha) <= (2 / alpha - 1) * (1 + 1e-15)


@given(st.floats(0.01, 0.99))
def test_error_ratio_is_r_over_1_minus_r(alpha):
    r = (1 - alpha) ** 0.5
    assert error_ratio(alpha) == pytest.approx(r / (1 - r), rel=1e-12)


@pytest.mark.parametrize("alpha", [0.0, -0.1, 1.0000001, float("nan"), float("inf")])
def test_alpha_outside_0_1_is_refused(alpha):
    with pytest.raises(ConfigError, match=r"alpha in \(0, 1\], got"):
        error_ratio(alpha)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_constants_must_be_positive_and_finite(bad):
    for call in (
        lambda: ef21_step_size(bad, 1.0, 0.5),
        lambda: ef21_step_size(1.0, bad, 0.5),
        lambda: norm_ef21_constant(bad, 0.5),
        lambda: norm_ef21_gamma0(bad, 0.5),
    ):
        with pytest.raises(ConfigError, match="must be positive and finite, got"):
            call()


@pytest.mark.parametrize("b", [1.99, float("nan"), float("inf")])
def test_theorem_3_needs_b_of_at_least_2(b):
    with pytest.raises(ConfigError, match="b >= 2, got"):
        norm_ef21_single_node_step(1.0, 0.5, b=b)
