"""The table that ``fedef theory`` prints: the theorems' own numbers, or why there are none."""

import pytest

from fedef import theory
from fedef.compressors import make_compressor
from fedef.config import Config
from fedef.errors import ConfigError
from fedef.problems.registry import build_problem
from sims.theory_table import describe


def table(settings, *, k, **options):
    problem = build_problem(Config.from_flat(settings))
    compressor = make_compressor("top-k", problem.dimension, k=k)
    return problem, describe(problem, compressor, **{"num_rounds": 1000, **options})


def values(rows, theorem, quantity):
    return [row.value for row in rows if (row.theorem, row.quantity) == (theorem, quantity)]


def test_polynomial_on_one_node():
    _, rows = table({"problem": "polynomial", "num-clients": 1, "l1": 4}, k=1, participation=0.5)
    assert values(rows, "EF21 Th. 1", "gamma") == [pytest.approx(5.4156e-4, rel=1e-4)]
    assert values(rows, "||EF21|| Th. 3", "gamma") == [pytest.approx(9.3088e-3, rel=1e-4)]
    assert values(rows, "||EF21|| Th. 1", "gamma_0") == [theory.norm_ef21_gamma0(4.0, 0.25)]
    assert values(rows, "||EF21-PP|| (ours)", "gamma_0") == [
        theory.norm_ef21_pp_gamma0(4.0, 0.25, participation=0.5)
    ]
    published, best = values(rows, "EF21-PP Th. 7", "gamma")
    assert 0 < published < best < values(rows, "EF21 Th. 1", "gamma")[0]


def test_bounds_shrink_with_more_rounds():
    quantities = ("mean ||grad f||^2 <=", "min ||grad f|| <=")
    settings = {"problem": "logistic", "data": "synthetic", "num-clients": 20}
    bounds = {
        rounds: [row.value for row in rows if row.quantity in quantities and row.value is not None]
        for rounds in (100, 10000)
        for _, rows in [table(settings, k=2, num_rounds=rounds)]
    }
    assert len(bounds[100]) == 3
    assert all(late < early for early, late in zip(bounds[100], bounds[10000], strict=True))


def test_every_missing_value_says_why():
    settings = {"problem": "logistic", "data": "synthetic", "num-clients": 20}
    _, rows = table(settings, k=1, participation=0.005)
    missing = {(row.theorem, row.quantity): row.note for row in rows if row.value is None}
    assert "20" in missing["||EF21|| Th. 3", "gamma"]
    assert "not known" in missing["||EF21-SGDM|| Th. 2", "min ||grad f|| <="]
    assert "theta_p" in missing["EF21-PP Th. 7", "gamma"]
    assert all(missing.values())


def test_a_problem_without_constants_names_the_way_out():
    problem, rows = table({"problem": "phase-retrieval", "num-clients": 1}, k=3)
    assert problem.smoothness is None
    unknown = [row for row in rows if row.value is None]
    assert len(unknown) == 7
    assert all("problem=phase-retrieval are unknown" in row.note for row in unknown)
    assert values(rows, "compressor top-k", "alpha") == [3 / 100]


def test_a_lower_bound_above_the_loss_is_refused():
    with pytest.raises(ConfigError, match="lower-bound"):
        table({"problem": "polynomial", "num-clients": 1}, k=1, lower_bound=1e9)
