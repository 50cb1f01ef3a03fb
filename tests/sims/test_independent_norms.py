"""The sketch is the only one of three ways that is unbiased under heterogeneity."""

import pytest

from sims.independent_norms import compare


@pytest.fixture(scope="module")
def rows():
    return {(row.rounds, row.way.split()[0]): row for row in compare(draws=200)}


@pytest.mark.parametrize("rounds", [0, 50])
def test_the_sketch_is_unbiased_with_the_stated_error(rows, rounds):
    """||Sv||: about -1/(4m) of bias and sqrt(1/(2m)) = 4.4 % of rms error at m = 256."""
    row = rows[rounds, "sketch"]
    assert row.mean_ratio == pytest.approx(1.0, abs=4 * 0.044 / row.n**0.5)
    assert row.rms_error == pytest.approx(0.0442, rel=0.25)
    assert row.client_bytes == 1048


@pytest.mark.parametrize("rounds", [0, 50])
def test_the_other_ways_overestimate(rows, rounds):
    assert rows[rounds, "mean"].mean_ratio > 2.5
    assert rows[rounds, "independent"].mean_ratio > 1.2
    assert rows[rounds, "independent"].rms_error > 5 * rows[rounds, "sketch"].rms_error
