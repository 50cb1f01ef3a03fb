"""What the theorems say about a problem and a compressor: constants, step sizes, bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt

import numpy as np

from fedef import theory
from fedef.compressors import Compressor
from fedef.errors import ConfigError
from fedef.problems.base import Problem, Smoothness
from fedef.randomness import stream_seed
from fedef.vectors import norm

FL_PYTORCH_S = 0.001
"""s = rho of EF21-PP's authors' code."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    theorem: str
    quantity: str
    value: float | None
    """None: not available, and the note says why."""
    note: str = ""


@dataclass(frozen=True)
class _Start:
    """What the bounds need to know of x^0."""

    loss_gap: float
    """f(x^0) - lower bound >= f(x^0) - f^inf."""
    client_gap: float
    """At least Delta^inf."""
    mean_error: float
    """sum_i w_i E||grad f_i(x^0) - g_i^0||, init=zero: g_i^0 = C(grad f_i(x^0)), or 0 if absent."""
    mean_square: float
    """sum_i w_i ||grad f_i(x^0) - C(grad f_i(x^0))||^2: everybody takes part."""
    full_error: float
    """mean_error if everybody takes part."""


def describe(
    problem: Problem,
    compressor: Compressor,
    *,
    num_rounds: int,
    weights: Sequence[float] | None = None,
    participation: float = 1.0,
    eps: float = 1e-2,
    lower_bound: float = 0.0,
    seed: int = 0,
) -> list[Row]:
    """Rows of the table; a row without a value says why in its note.

    Parameters
    ----------
    problem, compressor
        Of the run.
    num_rounds
        K; EF21's bound is for T = K.
    weights
        (n,) of the clients, not normalized; None: equal.
    participation
        p of the EF21-PP rows.
    eps
        Accuracy of the AN-GD rows.
    lower_bound
        Of f and of every f_i; all losses of this package with known constants are positive.
        Delta^inf is bounded by f(x^0) minus this, so bounds for several clients are loose.
    seed
        Of random compressors.

    Raises
    ------
    ConfigError
        If a setting is out of range.
    """
    raw = np.ones(len(problem.num_examples)) if weights is None else np.array(weights, float)
    constants = problem.smoothness
    rows = _facts(problem, compressor, constants)
    if constants is None:
        reason = (
            f"the constants of problem={problem.name} are unknown; estimate (L0, L1) with "
            "fedef.smoothness, or use schedule=inv-sqrt"
        )
        return rows + [Row(name, "gamma", None, reason) for name in _THEOREMS]
    alpha, n = compressor.alpha, len(raw)
    start = _start(problem, compressor, raw / raw.sum(), participation, lower_bound, seed)
    return [
        *rows,
        *_ef21(constants, alpha, num_rounds, start),
        *_norm_ef21(constants, alpha, num_rounds, start),
        *_single_node(constants, alpha, num_rounds, start, n),
        *_sgdm(constants, alpha, num_rounds),
        *_pp(constants, alpha, participation),
        *_norm_pp(constants, alpha, num_rounds, start, participation),
        *_an_gd(constants, eps),
    ]


_THEOREMS = (
    "EF21 Th. 1",
    "||EF21|| Th. 1",
    "||EF21|| Th. 3",
    "||EF21-SGDM|| Th. 2",
    "EF21-PP Th. 7",
    "||EF21-PP|| (ours)",
    "AN-GD",
)
_EF21, _NORM, _NODE, _SGDM, _PP, _NORM_PP, _AN = _THEOREMS


def _facts(problem: Problem, compressor: Compressor, constants: Smoothness | None) -> list[Row]:
    about = f"problem {problem.name}"
    rows = [
        Row(about, "d", float(problem.dimension)),
        Row(about, "n", float(len(problem.num_examples))),
    ]
    if constants is not None:
        rows += [
            Row(about, "L", constants.lipschitz),
            Row(about, "L~", constants.client_lipschitz),
            Row(about, "L0", constants.l0),
            Row(about, "L1", constants.l1),
        ]
    about = f"compressor {compressor.name}"
    return [
        *rows,
        Row(about, "alpha", compressor.alpha),
        Row(about, "r/(1-r)", theory.error_ratio(compressor.alpha), "r = sqrt(1-alpha)"),
    ]


def _start(
    problem: Problem,
    compressor: Compressor,
    weights: np.ndarray[tuple[int], np.dtype[np.float64]],
    participation: float,
    lower_bound: float,
    seed: int,
) -> _Start:
    x, buffers = problem.initial_point(), problem.initial_buffers()
    loss, sent, absent, square = 0.0, 0.0, 0.0, 0.0
    for client, weight in enumerate(weights.tolist()):
        result = problem.local(client, x, buffers=buffers)
        draw = stream_seed(seed, "compressor", client, 1)
        error = norm(result.gradient - compressor.compress(result.gradient, seed=draw).dense())
        loss += weight * result.loss
        sent += weight * error
        absent += weight * norm(result.gradient)
        square += weight * error**2
    gap = loss - lower_bound
    if gap < 0:
        raise ConfigError(
            f"lower-bound: f(x^0) = {loss:.6g} is below it, got {lower_bound}; use a smaller one"
        )
    return _Start(
        loss_gap=gap,
        client_gap=0.0 if len(weights) == 1 else gap,
        mean_error=participation * sent + (1 - participation) * absent,
        mean_square=square,
        full_error=sent,
    )


def _ef21(constants: Smoothness, alpha: float, rounds: int, start: _Start) -> list[Row]:
    gamma = theory.ef21_step_size(constants.lipschitz, constants.client_lipschitz, alpha)
    bound = theory.ef21_bound(
        step_size=gamma,
        num_rounds=rounds,
        loss_gap=start.loss_gap,
        initial_error=start.mean_square,
        lipschitz=constants.lipschitz,
        client_lipschitz=constants.client_lipschitz,
        alpha=alpha,
    )
    return [
        Row(_EF21, "gamma", gamma, "stated"),
        Row(_EF21, "mean ||grad f||^2 <=", bound, f"over {rounds} rounds"),
    ]


def _norm_ef21(constants: Smoothness, alpha: float, rounds: int, start: _Start) -> list[Row]:
    gamma0 = theory.norm_ef21_gamma0(constants.l1, alpha)
    bound = theory.norm_ef21_bound(
        gamma0=gamma0,
        num_rounds=rounds,
        loss_gap=start.loss_gap,
        initial_error=start.full_error,
        client_gap=start.client_gap,
        l0=constants.l0,
        l1=constants.l1,
        alpha=alpha,
    )
    return [
        Row(_NORM, "gamma_0", gamma0, "reconstructed; any gamma_0 > 0 is allowed"),
        Row(_NORM, "gamma", gamma0 / sqrt(rounds + 1), "gamma_0/sqrt(K+1)"),
        _bound(_NORM, "min ||grad f|| <=", bound, f"within {rounds} rounds"),
    ]


def _single_node(
    constants: Smoothness, alpha: float, rounds: int, start: _Start, n: int
) -> list[Row]:
    if n > 1:
        return [Row(_NODE, "gamma", None, f"for one client, here are {n}")]
    gamma = theory.norm_ef21_single_node_step(constants.l1, alpha)
    bound = _try(
        lambda: theory.norm_ef21_single_node_bound(
            step_size=gamma,
            num_rounds=rounds,
            loss_gap=start.loss_gap,
            initial_error=start.full_error,
            l0=constants.l0,
            l1=constants.l1,
            alpha=alpha,
        ),
        _NODE,
        "min ||grad f|| <=",
        f"within {rounds} rounds",
    )
    return [Row(_NODE, "gamma", gamma, "reconstructed; b = 2"), bound]


def _sgdm(constants: Smoothness, alpha: float, rounds: int) -> list[Row]:
    chosen = theory.norm_sgdm_parameters(rounds, l1=constants.l1, alpha=alpha)
    return [
        Row(_SGDM, "eta", chosen.eta, "stated; (K+1)^(-1/2)"),
        Row(_SGDM, "gamma", chosen.step_size, "the largest allowed"),
        Row(_SGDM, "min ||grad f|| <=", None, "O((K+1)^(-1/4)); its constants are not known to us"),
    ]


def _pp(constants: Smoothness, alpha: float, participation: float) -> list[Row]:
    lipschitz, of_clients = constants.lipschitz, constants.client_lipschitz
    published = _try(
        lambda: theory.ef21_pp_step_size(
            lipschitz,
            of_clients,
            alpha,
            participation=participation,
            s=FL_PYTORCH_S,
            rho=FL_PYTORCH_S,
        ),
        _PP,
        "gamma",
        f"read in code; s = rho = {FL_PYTORCH_S}, p = {participation:g}",
    )
    best = theory.ef21_pp_best_step_size(lipschitz, of_clients, alpha, participation=participation)
    return [published, Row(_PP, "gamma", best, "the best s and rho of a grid")]


def _norm_pp(
    constants: Smoothness, alpha: float, rounds: int, start: _Start, participation: float
) -> list[Row]:
    gamma0 = theory.norm_ef21_pp_gamma0(constants.l1, alpha, participation=participation)
    bound = theory.norm_ef21_pp_bound(
        gamma0=gamma0,
        num_rounds=rounds,
        loss_gap=start.loss_gap,
        initial_error=start.mean_error,
        client_gap=start.client_gap,
        l0=constants.l0,
        l1=constants.l1,
        alpha=alpha,
        participation=participation,
    )
    note = f"derived here; p = {participation:g}"
    return [
        Row(_NORM_PP, "gamma_0", gamma0, note),
        Row(_NORM_PP, "gamma", gamma0 / sqrt(rounds + 1), "gamma_0/sqrt(K+1)"),
        _bound(_NORM_PP, "min ||grad f|| <=", bound, f"in the mean, within {rounds} rounds"),
    ]


def _an_gd(constants: Smoothness, eps: float) -> list[Row]:
    rows = []
    for beta in (1.0, 2 / 3):
        gamma = theory.an_gd_stationary_step_size(eps, beta=beta, l0=constants.l0, l1=constants.l1)
        rows.append(Row(_AN, "gamma", gamma, f"derived here; beta = {beta:.3g}, eps = {eps:g}"))
        rate = theory.an_gd_rate(beta, 2.0)
        rows.append(
            Row(
                _AN,
                "exponent",
                rate.exponent,
                f"eps^-exponent iterations under PL (rho = 2), beta = {beta:.3g}; 2 without PL",
            )
        )
    return rows


def _bound(theorem: str, quantity: str, value: float, note: str) -> Row:
    if not isfinite(value):
        return Row(theorem, quantity, None, "vacuous: its exponential overflows")
    return Row(theorem, quantity, value, note)


def _try(value: Callable[[], float], theorem: str, quantity: str, note: str) -> Row:
    """Return the row, or the theorem's own reason why it does not apply."""
    try:
        return Row(theorem, quantity, value(), note)
    except ConfigError as error:
        return Row(theorem, quantity, None, str(error).removeprefix("theory: "))
