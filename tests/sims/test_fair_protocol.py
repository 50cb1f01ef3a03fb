"""The fair protocol: equal grids, separate seeds, selection, intervals, controls, its section."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from fedef.errors import ConfigError
from sims.fair_protocol import (
    BETAS,
    INSTANCES,
    REPORTED_SEEDS,
    STEPS,
    TUNING_SEEDS,
    Row,
    at_edge,
    controls,
    grids,
    median_interval,
    published,
    report,
    sign_test,
    tune,
)
from sims.ian_loop import Settings, Trajectory, arena, run
from sims.reproduce import fair
from sims.reproduce import study as pieces

PROBLEMS = list(INSTANCES)


def phase(budget=27_000):
    return replace(arena("phase-retrieval", 2024), budget=budget)


def made_row(method="x", finals=(), values=None, where=None):
    runs = [Trajectory(np.array([0, 64]), np.array([99.0, final]), 128) for final in finals]
    for path in values or ():
        runs.append(Trajectory(64 * np.arange(len(path)), np.array(path), 128))
    return Row(method, Settings(1.0), where or replace(phase(), target=None), tuple(runs))


# --- grids ------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("steps", [2, STEPS])
def test_every_method_may_choose_among_as_many_settings(problem, steps):
    for method, grid in grids(problem, steps=steps).items():
        assert len(set(grid)) == len(grid) == 12 * steps, method
        assert {s.beta for s in grid} == ({0.0} if method == "SGD" else set(BETAS))
        assert {s.delta for s in grid} == {0.0}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_methods_with_a_threshold_have_the_same_grid(problem):
    grid = grids(problem)
    shapes = [{(s.step_size, s.beta, s.tau) for s in grid[m]} for m in ("Clip SGD", "IAN-SGD")]
    assert shapes[0] == shapes[1]
    plain = [s.step_size / s.tau**s.beta for s in grid["IAN-SGD"]]
    rates = [s.step_size for s in grid["SGD"]]
    assert (min(plain), max(plain)) == pytest.approx((min(rates), max(rates)))


def test_seeds_that_tune_are_not_reported():
    assert not set(TUNING_SEEDS) & set(REPORTED_SEEDS)
    assert len(REPORTED_SEEDS) >= 20
    assert all(len(set(instances)) >= 3 for instances in INSTANCES.values())
    with pytest.raises(ConfigError, match=r"seeds 100 to 119 tune"):
        report({"SGD": Settings(1e-4)}, phase(), seeds=[99, 100])


@pytest.mark.parametrize("problem", PROBLEMS)
def test_ends_of_the_grid_are_found(problem):
    """Among 6 thresholds and 12 steps the inner 4 and 10 are not ends."""
    grid = grids(problem)["IAN-SGD"]
    inner = [s for s in grid if not at_edge(s, grid)]
    assert len(inner) == len(BETAS) * 4 * (STEPS - 2)
    steps = grids(problem)["NSGD"]
    assert sum(at_edge(s, steps) for s in steps) == 2 * len(BETAS)
    assert not at_edge(grid[0], ())


# --- selection --------------------------------------------------------------------------------


def test_tuning_takes_the_setting_whose_worst_seed_is_best():
    """Computed again from the runs, on a short budget without a target."""
    where = replace(phase(6_000), target=None)
    grid = grids("phase-retrieval", steps=2)["Clip SGD"]
    chosen = tune(grid, where, seeds=range(100, 103))
    worst = [max(t.final for t in runs) for runs in run(grid, where, range(100, 103))]
    assert chosen == grid[int(np.argmin(worst))]
    assert min(worst) < 0.5 * np.median(worst)


def test_a_target_is_reached_early_before_it_ends_low():
    where = phase()
    early = made_row(values=[[99, 9, 9.5], [99, 9, 9.6]], where=where)
    low = made_row(values=[[99, 20, 8.0], [99, 20, 8.0]], where=where)
    lost = made_row(values=[[99, 9, 8.0], [99, 9, math.inf]], where=where)
    assert early.scores == (64, 64)
    assert low.scores == (128, 128)
    assert (lost.diverged, lost.finals) == (1, (8.0, math.inf))


def test_tuning_avoids_what_diverges_on_one_seed():
    """SGD between a step that is safe and one that leaps off."""
    grid = [Settings(5e-2), Settings(5e-4)]
    assert tune(grid, phase(), seeds=range(100, 102)) == grid[1]


# --- numbers ----------------------------------------------------------------------------------


def test_the_interval_of_the_median_covers_it():
    """20 values: the 6th and the 15th, 95.86 %; checked by counting, with the binomial's tails."""
    assert median_interval(list(range(20, 0, -1))) == (10.5, 6, 15)
    assert 1 - 2 * binom.cdf(5, 20, 0.5) == pytest.approx(0.9586, abs=1e-4)
    draws = np.random.default_rng(0).random((500, 20))
    covered = [low <= 0.5 <= high for _, low, high in map(median_interval, draws.tolist())]
    assert np.mean(covered) == pytest.approx(0.9586, abs=0.03)
    assert median_interval([1.0, math.inf, 2.0]) == (2.0, 1.0, math.inf)
    assert median_interval([1.0, math.inf, math.inf])[0] == math.inf


def test_a_row_counts_divergence_arrival_and_the_worst_transient():
    where = phase()
    ends = [8.0, 9.0, math.inf, 2e5]
    row = made_row(values=[[3e5, 12.0, end] for end in ends], where=where)
    assert (row.diverged, row.worst, row.computed) == (2, math.inf, 128)
    assert row.arrivals == (128, 128, math.inf, math.inf)
    assert median_interval(row.finals)[0] == math.inf


def test_the_sign_test_pairs_seeds_and_leaves_ties_out():
    ours = made_row(finals=[1.0] * 9 + [5.0, 3.0])
    other = made_row(finals=[2.0] * 9 + [4.0, 3.0])
    lower, higher, p = sign_test(ours, other)
    assert (lower, higher) == (9, 1)
    assert p == pytest.approx(2 * (1 + 10) / 2**10)
    assert sign_test(ours, ours) == (0, 0, 1.0)


# --- controls and the section -----------------------------------------------------------------


def test_controls_take_as_many_steps_as_ian_sgd_and_change_the_norm_alone():
    where, ian = phase(4_000), published("phase-retrieval")
    steps = len(run([ian], where, [0])[0][0].evaluations)
    for settings in controls(ian, where).values():
        done = run([settings], where, [0])[0][0]
        assert len(done.evaluations) == steps
        assert settings.rows(where)[1] == 0
        changed = {k for k in vars(ian) if vars(ian)[k] != vars(settings)[k]}
        assert changed == {"norm", "idle_rows"}


def outcome(problem="dro", instance=7, tuned=(), own=(), full=(), published=()):
    """Made-up finals of IAN-SGD, Clip SGD and ours, and of the controls."""
    methods = ("SGD", "NSGD", "Clip SGD", "IAN-SGD", *fair._OURS)
    rows = {m: made_row(m, finals) for m, finals in zip(methods, tuned, strict=True)}
    names = ("IAN-SGD", fair._OWN, fair._FULL, *fair._OURS)
    of_tuned = [rows["IAN-SGD"].finals, own, full, [1.0], [1.0]]
    of_published = [published, own, full, [1.0], [1.0]]
    kinds = {"tuned": of_tuned, "published": of_published}
    made = {
        kind: {m: made_row(m, finals) for m, finals in zip(names, lists, strict=True)}
        for kind, lists in kinds.items()
    }
    return fair.Outcome(problem, instance, rows, made)


def test_findings_follow_from_the_numbers():
    ten = 10
    wins = outcome(
        tuned=[[5] * ten, [4.5] * ten, [4] * ten, [3] * ten, [3] * ten, [3] * ten],
        own=[4.0] * ten,
        full=[3.0] * ten,
        published=[3.0] * ten,
    )
    loses = outcome(
        tuned=[[1] * ten, [4] * ten, [2] * ten, [3] * 9 + [math.inf], [3] * ten, [4] * ten],
        own=[3.0] * ten,
        full=[3.0] * ten,
        published=[math.inf] * ten,
    )
    good, bad = ([f.holds for f in fair._findings([o])] for o in (wins, loses))
    # No instance of phase retrieval here: that finding holds of none.
    assert good == [True] * len(good)
    assert bad[1:] == [False, False, False, False, False, False, True, False]
    (_, lead, *_) = fair._findings([wins, loses])
    assert not lead.holds
    assert "on 1 of 2 instances" in lead.text


def test_the_study_on_a_small_scale(data_dir):
    extent = fair.Extent(instances=1, steps=2, tuning_seeds=2, reported_seeds=3, budget_share=0.15)
    study = fair.study(pieces.Settings(quick=True, data_dir=data_dir), extent=extent)
    assert [panel.name for panel in study.panels] == ["fair-phase-retrieval", "fair-dro"]
    assert len(study.comparisons) == 5
    assert all(check.agrees is None and check.ours for check in study.checks)
    text = " ".join(f.text for f in study.findings) + " ".join(study.settings)
    for words in (
        "on 0 of 1 instances",
        "IAN-SGD, capped (ours)",
        "instances phase-retrieval: 2024",
    ):
        assert words in text
    evaluations = {c.ours for c in study.checks if c.part == "evaluations" and "full" in c.what}
    assert all(int(count.replace(",", "")) > 100_000 for count in evaluations)


def test_constants_are_described_by_what_is_not_default():
    assert fair.describe(Settings(0.5, 2 / 3, 40, norm="independent")) == "γ=0.5 β=0.667 τ=40"
