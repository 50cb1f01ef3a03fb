"""The step sizes of partial participation, momentum and AN-GD: special cases and refusals."""

from math import log, sqrt

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fedef import theory
from fedef.compressors import make_compressor
from fedef.errors import ConfigError

alphas = st.floats(1e-6, 1.0)
probabilities = st.floats(0.01, 1.0)


@given(alphas, alphas)
def test_a_better_compressor_never_has_a_smaller_step(alpha, other):
    worse, better = sorted((alpha, other))
    steps = [
        lambda a: theory.ef21_step_size(2.0, 3.0, a),
        lambda a: theory.norm_ef21_gamma0(1.0, a),
        lambda a: theory.norm_ef21_single_node_step(1.0, a),
        lambda a: theory.norm_ef21_pp_gamma0(1.0, a, participation=0.3),
        lambda a: theory.norm_sgdm_gamma0(1000, 1.0, a),
    ]
    for step in steps:
        assert step(worse) <= step(better) * (1 + 1e-12)


@given(alphas)
def test_full_participation_gives_the_formulas_without_it(alpha):
    assert theory.participating_alpha(alpha, 1.0) == alpha
    assert theory.norm_ef21_pp_gamma0(2.0, alpha, participation=1.0) == theory.norm_ef21_gamma0(
        2.0, alpha
    )
    whole = theory.ef21_pp_best_step_size(2.0, 3.0, alpha, participation=1.0)
    assert whole == theory.ef21_step_size(2.0, 3.0, alpha)


@given(st.floats(0.001, 0.999))
def test_ef21_pp_with_everybody_and_the_best_s_is_ef21(alpha):
    """s = 1/r - 1 gives theta = 1 - r and beta = r^2/(1-r): sqrt(beta/theta) = r/(1-r)."""
    s = 1 / sqrt(1 - alpha) - 1
    step = theory.ef21_pp_step_size(2.0, 3.0, alpha, participation=1.0, s=s, rho=0.5)
    assert step == pytest.approx(theory.ef21_step_size(2.0, 3.0, alpha), rel=1e-9)


def test_ef21_pp_by_hand():
    """alpha = 1/2, p = 1/2, s = 1/2, rho = 1/10: theta = 1/4, beta = 3/2, theta_p = 3/40, B = 6.25.

    sqrt(B/theta_p) = sqrt(250/3); L = 1, L~ = 2.
    """
    step = theory.ef21_pp_step_size(1.0, 2.0, 0.5, participation=0.5, s=0.5, rho=0.1)
    assert step == pytest.approx(1 / (1 + 2 * sqrt(250 / 3)), rel=1e-14)


@given(st.floats(0.01, 1.0), st.floats(0.05, 0.999), st.floats(0.01, 2), st.floats(0.001, 1))
def test_the_best_s_and_rho_are_as_good_as_any_but_for_the_grid(alpha, p, s, rho):
    best = theory.ef21_pp_best_step_size(1.0, 1.0, alpha, participation=p)
    try:
        step = theory.ef21_pp_step_size(1.0, 1.0, alpha, participation=p, s=s, rho=rho)
    except ConfigError:
        assume(False)
    assert best >= 0.98 * step


@given(st.floats(0.001, 1.0), probabilities)
def test_participation_costs_what_the_definition_says(alpha, p):
    r = sqrt(1 - alpha)
    assert theory.participating_alpha(alpha, p) == pytest.approx(1 - (1 - p + p * r) ** 2, rel=1e-9)
    assert theory.participating_alpha(alpha, p) <= alpha


@pytest.mark.parametrize("p", [0.2, 0.7, 1.0])
def test_the_mean_error_shrinks_by_r_p_and_no_faster_on_equal_entries(p):
    """Absent with probability 1-p, else compressed: E||e|| = p ||v - C(v)|| + (1-p) ||v||."""
    compressor = make_compressor("top-k", 8, k=2)
    r_p = sqrt(1 - theory.participating_alpha(compressor.alpha, p))
    draws = np.random.default_rng(0)
    for v, tight in [(np.ones(8), True), *((draws.standard_normal(8), False) for _ in range(20))]:
        kept = np.linalg.norm(v - compressor.compress(v).dense())
        after = (p * kept + (1 - p) * np.linalg.norm(v)) / np.linalg.norm(v)
        assert after <= r_p * (1 + 1e-12)
        assert not tight or after == pytest.approx(r_p, rel=1e-12)


@pytest.mark.parametrize(("rounds", "root_gap"), [(99, 1.0), (3, 2 * 0.25 / (1 + sqrt(0.75)))])
def test_momentum_parameters_of_theorem_2(rounds, root_gap):
    """1 - r = alpha/(1+r) at alpha = 1/4; sqrt(100) of it is above 1, sqrt(4) of it below."""
    gamma0 = root_gap / (16 * 2.0)
    assert theory.norm_sgdm_gamma0(rounds, 2.0, 0.25) == pytest.approx(gamma0, rel=1e-14)
    chosen = theory.norm_sgdm_parameters(rounds, l1=2.0, alpha=0.25)
    assert chosen.eta == pytest.approx((rounds + 1) ** -0.5, rel=1e-15)
    assert chosen.step_size == pytest.approx(gamma0 * (rounds + 1) ** -0.75, rel=1e-14)


def test_theorem_2_refuses_a_larger_gamma0():
    largest = theory.norm_sgdm_gamma0(10, 1.0, 0.5)
    theory.norm_sgdm_parameters(10, l1=1.0, alpha=0.5, gamma0=largest)
    with pytest.raises(ConfigError, match=r"Th\. 2 needs gamma_0 <="):
        theory.norm_sgdm_parameters(10, l1=1.0, alpha=0.5, gamma0=1.01 * largest)


@pytest.mark.parametrize(
    ("beta", "rho", "exponent", "logarithm"),
    [
        (0.5, 1.0, 1.0, False),
        (0.9, 1.0, 1.0, False),
        (1.0, 1.0, 1.0, True),
        (0.5, 1.5, 1 / 3, True),
        (2 / 3, 2.0, 1 / 3, False),
        (1.0, 2.0, 0.5, False),
        (0.0, 2.0, 0.0, True),
        (1.0, None, 2.0, False),
    ],
)
def test_regimes_of_an_gd(beta, rho, exponent, logarithm):
    rate = theory.an_gd_rate(beta, rho)
    assert (rate.exponent, rate.logarithm) == (pytest.approx(exponent), logarithm)


@pytest.mark.parametrize(("beta", "rho"), [(0.5, 1.0), (0.9, 1.0), (1.0, 1.0), (2 / 3, 2.0)])
def test_the_iteration_bound_grows_at_the_regimes_rate(beta, rho):
    """Between eps = 1e-8 and 1e-10, once the logarithm is divided out."""
    rate = theory.an_gd_rate(beta, rho)

    def iterations(eps):
        bound = theory.an_gd_iterations(eps, 1.0, mu=0.5, rho=rho, beta=beta, l0=1.0, l1=1.0)
        return bound / log(1 / eps) if rate.logarithm else bound

    slope = log(iterations(1e-10) / iterations(1e-8)) / log(100)
    assert slope == pytest.approx(rate.exponent, abs=0.02)


def test_an_gd_steps_by_hand():
    """(2 mu eps)^{beta/rho}/(2K) with mu = 1/2, eps = 1/100, K = 4; the cap is 1/(4 L1)."""
    step = theory.an_gd_step_size(0.01, mu=0.5, rho=2, beta=1.0, l0=3.0, l1=1.0)
    assert step == pytest.approx(0.1 / 8, rel=1e-14)
    assert theory.an_gd_step_size(1e9, mu=0.5, rho=2, beta=1.0, l0=3.0, l1=1.0) == 0.25
    stationary = theory.an_gd_stationary_step_size(0.01, beta=0.5, l0=3.0, l1=1.0)
    assert stationary == pytest.approx(0.1 / 8, rel=1e-14)


def test_ef21_bound_by_hand():
    """alpha = 3/4: r = 1/2, theta = 1/2; gamma = 1/4, T = 10: 2*3/(10/4) + 2/(10/2)."""
    bound = theory.ef21_bound(
        step_size=0.25,
        num_rounds=10,
        loss_gap=3.0,
        initial_error=2.0,
        lipschitz=2.0,
        client_lipschitz=2.0,
        alpha=0.75,
    )
    assert bound == pytest.approx(2.4 + 0.4, rel=1e-14)


REFUSED = {
    "theta_p": lambda: theory.ef21_pp_step_size(1, 1, 0.1, participation=0.1, s=1.0, rho=0.1),
    "participation p must be": lambda: theory.participating_alpha(0.5, 0.0),
    "rho must be positive": lambda: theory.an_gd_rate(0.5, 0.0),
    "beta in": lambda: theory.an_gd_rate(1.1, 2.0),
    "beta must be in": lambda: theory.an_gd_iterations(0.1, 1.0, mu=1, rho=2, beta=0.0, l0=1, l1=0),
    "gamma <= 1/": lambda: theory.an_gd_descent(1.0, 1.0, step_size=0.3, beta=1, l0=1, l1=1),
    "L0 \\+ L1 must be": lambda: theory.an_gd_stationary_step_size(0.1, beta=1, l0=0, l1=0),
    "q = c_1": lambda: theory.norm_ef21_single_node_bound(
        step_size=1.0, num_rounds=9, loss_gap=1, initial_error=0, l0=1, l1=1, alpha=0.5
    ),
    "EF21 Th. 1 needs gamma": lambda: theory.ef21_bound(
        step_size=1.0,
        num_rounds=9,
        loss_gap=1,
        initial_error=0,
        lipschitz=2,
        client_lipschitz=2,
        alpha=1,
    ),
    "f\\^0 - f\\^inf must be": lambda: theory.ef21_bound(
        step_size=0.1,
        num_rounds=9,
        loss_gap=-1,
        initial_error=0,
        lipschitz=2,
        client_lipschitz=2,
        alpha=1,
    ),
    "K must be at least": lambda: theory.norm_sgdm_gamma0(-1, 1.0, 0.5),
}


@pytest.mark.parametrize("message", REFUSED)
def test_inadmissible_input_is_refused(message):
    with pytest.raises(ConfigError, match=message):
        REFUSED[message]()
