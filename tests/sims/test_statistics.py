"""Statistics against scipy and statsmodels on tables made by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fedef.errors import ConfigError
from sims.statistics import cost_to_target, estimate, paired_differences, summarize, t_interval

A = [0.80, 0.82, 0.79, 0.85, 0.81]
B = [0.75, 0.80, 0.77, 0.78, 0.79]
C = [0.80, 0.83, 0.78, 0.86, 0.80]


def table(**methods):
    """One cell per method; None: that seed's run diverged."""
    return pd.DataFrame(
        [
            {
                "run": f"{method}{seed}",
                "phase": "report",
                "method": method,
                "alpha": 0.1,
                "seed": seed,
                "status": "diverged" if value is None else "completed",
                "test-accuracy": value,
            }
            for method, values in methods.items()
            for seed, value in enumerate(values)
        ]
    )


def test_the_t_interval_is_scipys():
    found = estimate(A)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(A), scale=stats.sem(A))
    assert (found.n, found.mean) == (5, pytest.approx(0.814))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    # By hand: s = 0.0230217, t_{0.975, 4} = 2.776445, half = 0.0285850.
    assert found.high - found.mean == pytest.approx(2.776445 * 0.0230217 / 5**0.5, rel=1e-5)


def test_the_bootstrap_interval_is_scipys_and_the_same_at_every_call():
    expected = stats.bootstrap(
        (np.array(A),), np.mean, n_resamples=9999, rng=np.random.default_rng(0)
    ).confidence_interval
    found = estimate(A)
    assert (found.bootstrap_low, found.bootstrap_high) == (expected.low, expected.high)
    assert found == estimate(A)
    assert found.low < found.bootstrap_low < found.mean < found.bootstrap_high < found.high


def test_few_or_equal_values_have_no_wrong_interval():
    one, none, same = estimate([0.5]), estimate([]), estimate([2.0, 2.0, 2.0])
    assert (one.n, one.mean, none.n) == (1, 0.5, 0)
    assert np.isnan([one.low, one.bootstrap_high, none.mean, none.low]).all()
    # No spread was seen: 0.3 on every seed is not known to be exact; rounding is no spread either.
    for found in (same, estimate([0.1 + 0.2, 0.3, 0.3])):
        assert np.isnan([found.low, found.high, found.bootstrap_low, found.bootstrap_high]).all()
    assert (same.n, same.mean) == (3, 2.0)
    zero = estimate([0.0, 0.0])
    assert (zero.low, zero.high, zero.bootstrap_low) == (0.0, 0.0, 0.0)


def test_intervals_of_curves_are_those_of_their_points():
    values = np.array([[1.0, 2.0, 0.0], [3.0, 2.0, 0.0], [4.0, 2.0, 0.0]])
    mean, low, high = t_interval(values)
    for column, point in enumerate(values.T):
        found = estimate(point)
        np.testing.assert_array_equal(
            (mean[column], low[column], high[column]), (found.mean, found.low, found.high)
        )
    assert np.isnan(low).tolist() == [False, True, False]


def test_one_diverged_run_in_three_is_counted_and_the_rest_has_its_interval():
    row = summarize(table(a=[0.8, None, 0.9]), ["method"]).iloc[0]
    low, high = stats.t.interval(0.95, 1, loc=0.85, scale=stats.sem([0.8, 0.9]))
    assert (row["runs"], row["n"], row["diverged"], row["complete"]) == (3, 2, 1, False)
    assert (row["mean"], row["low"], row["high"]) == pytest.approx((0.85, low, high))
    whole = summarize(table(a=A), ["method"]).iloc[0]
    assert (whole["n"], whole["diverged"], whole["complete"]) == (5, 0, True)


def test_a_diverged_runs_last_value_is_no_result():
    rough = table(a=[0.8, 0.9, 0.1])
    rough.loc[2, "status"] = "diverged"
    assert summarize(rough, ["method"]).iloc[0]["mean"] == pytest.approx(0.85)


def test_tuning_runs_are_not_reported():
    both = table(a=A)
    both.loc[0, "phase"] = "tune"
    assert summarize(both, ["method"]).iloc[0]["runs"] == 4


def test_a_null_is_a_group_like_any_other():
    cells = table(a=A, b=B).assign(k=lambda t: t["method"].map({"a": 0.01}))
    assert summarize(cells, ["k"])["n"].tolist() == [5, 5]


def test_paired_differences_are_scipys_with_holms_correction():
    found = paired_differences(table(a=A, b=B, c=C), metric="test-accuracy")
    samples = {"a": A, "b": B, "c": C}
    p = [stats.ttest_rel(samples[f], samples[s]).pvalue for f, s in ("ab", "ac", "bc")]
    assert found[["first", "second"]].agg("".join, axis=1).tolist() == ["ab", "ac", "bc"]
    assert found["p"].tolist() == pytest.approx(p)
    # Holm by hand: the smallest p times 3, the next times 2, the last times 1, never decreasing.
    order, largest = np.argsort(p), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, p[index] * (3 - rank)))
        assert found["p-holm"][index] == pytest.approx(largest)
    interval = stats.ttest_rel(A, B).confidence_interval(0.95)
    assert (found["low"][0], found["high"][0]) == pytest.approx((interval.low, interval.high))
    assert found["difference"][0] == pytest.approx(np.mean(np.subtract(A, B)))


def test_pairs_need_both_runs_and_say_how_many_there_are():
    found = paired_differences(table(a=[*A[:4], None], b=[None, *B[1:]])).iloc[0]
    assert (found["pairs"], found["n"], found["complete"]) == (5, 3, False)
    assert found["p"] == pytest.approx(stats.ttest_rel(A[1:4], B[1:4]).pvalue)


def test_equal_runs_differ_in_nothing():
    found = paired_differences(table(a=A, b=A)).iloc[0]
    assert (found["difference"], found["p"], found["p-holm"]) == (0.0, 1.0, 1.0)


def test_one_difference_on_every_seed_is_no_proof():
    discrete = table(a=[0.9, 0.8, 0.7], b=[0.8, 0.7, 0.6], c=[0.1, 0.5, 0.6])
    found = paired_differences(discrete)
    assert found["difference"][0] == pytest.approx(0.1)
    assert np.isnan(found.loc[0, ["low", "high", "p", "p-holm"]].astype(float)).all()
    # Holm's family are the two tests that there are.
    assert found["p-holm"][1:].min() == pytest.approx(2 * found["p"][1:].min())


def test_a_seed_counts_once():
    twice = pd.concat([table(a=A), table(a=A)])
    with pytest.raises(ConfigError, match=r"several runs share a seed within \['method'\]"):
        summarize(twice, ["method"])
    with pytest.raises(ConfigError, match="share a seed"):
        cost_to_target(twice, pd.DataFrame(curve("a0", 0.9)), ["method"], target=0.8)


def test_a_reference_and_groups_within():
    cells = pd.concat([table(a=A, b=B, c=C), table(a=B, b=A, c=C).assign(alpha=1.0)])
    found = paired_differences(cells, within=["alpha"], reference="b")
    assert found[["alpha", "first", "second"]].to_numpy().tolist() == [
        [0.1, "a", "b"],
        [0.1, "c", "b"],
        [1.0, "a", "b"],
        [1.0, "c", "b"],
    ]
    assert found["difference"][2] == pytest.approx(-found["difference"][0])
    with pytest.raises(ConfigError, match="share a seed"):
        paired_differences(cells)
    with pytest.raises(ConfigError, match="no method is 'd'"):
        paired_differences(cells, within=["alpha"], reference="d")


def test_a_missing_column_is_named():
    with pytest.raises(ConfigError, match="no column 'alpha2'; there are run, phase"):
        summarize(table(a=A), ["alpha2"])


def curve(run, *accuracies):
    return [
        {"run": run, "round": k, "test-accuracy": value, "loss": None, "total-uplink-bytes": 10 * k}
        for k, value in enumerate(accuracies, start=1)
    ]


def test_the_cost_to_a_target_counts_the_censored():
    """Kaplan-Meier by hand: events at 1, 2 and 4, one censored at 3: S = 3/4, 1/2, 0."""
    results = table(a=[0.9, 0.9, 0.1, 0.9])
    lines = [
        *curve("a0", 0.9),
        *curve("a1", None, 0.9, 0.1),
        *curve("a2", 0.1, 0.1, 0.1),
        *curve("a3", 0.1, 0.2, 0.3, 0.8),
    ]
    row = cost_to_target(results, pd.DataFrame(lines), ["method"], target=0.8, cost="round").iloc[0]
    assert (row["reached"], row["censored"], row["median"]) == (3, 1, 2)
    assert row["text"] == "3 of 4 reached; median 2"
    up = cost_to_target(results, pd.DataFrame(lines), ["method"], target=0.8).iloc[0]
    assert up["median"] == 20


def test_a_censored_run_is_not_one_that_failed():
    """Censored at 1 leaves the risk set, S = 1/2 at round 2; diverged at 1 stays in it."""
    lines = pd.DataFrame([*curve("a0", 0.1, 0.9), *curve("a1", 0.1, 0.1, 0.9), *curve("a2", 0.1)])
    censored = table(a=[0.9, 0.9, 0.1])
    diverged = table(a=[0.9, 0.9, None])
    medians = [
        cost_to_target(results, lines, ["method"], target=0.8, cost="round").iloc[0]["median"]
        for results in (censored, diverged)
    ]
    assert medians == [2, 3]


@pytest.mark.parametrize("status", ["interrupted", "unfinished"])
def test_an_unfinished_run_might_have_reached_the_target(status):
    """Its risk ends with it: censored at 1, S = 1/2 at round 2; without a round, at 0."""
    lines = pd.DataFrame([*curve("a0", 0.1, 0.9), *curve("a1", 0.1, 0.1, 0.9), *curve("a2", 0.1)])
    results = table(a=[0.9, 0.9, 0.1, 0.1])
    results.loc[[2, 3], "status"] = status
    row = cost_to_target(results, lines, ["method"], target=0.8, cost="round").iloc[0]
    assert (row["censored"], row["unfinished"], row["median"]) == (2, 2, 2)


def test_a_target_that_too_few_reach_has_no_median():
    lines = pd.DataFrame([*curve("a0", 0.9), *curve("a1", 0.1, 0.1), *curve("a2", 0.1, 0.1)])
    found = cost_to_target(table(a=[0.9, 0.1, None]), lines, ["method"], target=0.8)
    assert np.isnan(found["median"][0])
    assert found["text"][0] == "1 of 3 reached; median beyond what was run"
    assert (found["censored"][0], found["diverged"][0]) == (1, 1)


def test_a_loss_is_reached_from_above():
    lines = pd.DataFrame(curve("a0", 0.1, 0.2)).assign(loss=[2.0, 1.0])
    found = cost_to_target(
        table(a=[0.9]), lines, ["method"], target=1.0, metric="loss", cost="round"
    )
    assert found["median"][0] == 2
