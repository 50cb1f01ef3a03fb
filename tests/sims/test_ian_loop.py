"""The loop that runs many seeds and settings at once: equal to the engine, and its accounts."""

import math
from dataclasses import replace

import numpy as np
import pytest

from fedef.config import Config
from fedef.experiment import Experiment
from sims.engine import InlineEngine
from sims.ian_loop import Settings, arena, draw_rows, run

EVERY_KIND = {
    "sgd": Settings(5e-4),
    "nsgd": Settings(0.02, 2 / 3),
    "nsgdm": Settings(0.02, 1.0, momentum=0.6),
    "clip": Settings(0.3, 2 / 3, 2025, 15),
    "amplified": Settings(0.3, 2 / 3, 2025, 15, amplification=2.0),
    "spider": Settings(0.03, 2 / 3, spider_period=5),
    "ian": Settings(0.3, 2 / 3, 2025, 15, norm="independent", amplification=2.0),
    "ian-capped": Settings(0.3, 2 / 3, 10, norm="independent", amplification=2.0, cap=1.0),
    "memory": Settings(0.3, 2 / 3, 10, norm="previous", amplification=2.0, cap=1.0),
    "full": Settings(0.3, 2 / 3, 2025, norm="full", amplification=2.0, idle_rows=4),
}


def phase(budget=27_000):
    return replace(arena("phase-retrieval", 2024), budget=budget)


def engine_keys(s, where):
    """The engine's configuration of these settings."""
    keys = {"beta": s.beta, "tau": s.tau, "delta": s.delta, "amplification": s.amplification}
    step = s.step_size
    if s.beta == 0:
        keys, method = {}, {"method": "sgd"}
    elif s.norm in ("independent", "full"):
        method = {"method": "ian-sgd", "independent-batch-size": s.rows(where)[1]}
    elif s.norm == "previous":
        method = {"method": "sgd", "direction": "remembered"}
    else:
        # max(A N + delta, tau)^beta = A^beta max(N + delta/A, tau/A)^beta
        a = s.amplification
        keys = {"beta": s.beta, "tau": s.tau / a, "delta": s.delta / a}
        step, method = step / a**s.beta, {"method": "sgd", "direction": "clip"}
    if s.cap < math.inf:
        method["cap"] = s.cap
    if s.momentum > 0:
        method |= {"method": "nsgdm", "momentum-eta": 1 - s.momentum}
    if s.spider_period is not None:
        method |= {"method": "spider", "spider-period": s.spider_period}
    common = {"problem": where.problem, "instance-seed": where.instance_seed, "num-clients": 1}
    common |= {"schedule": "constant", "step-size": step, "num-rounds": 1000}
    return {**common, "local-batch-size": s.rows(where)[0], **keys, **method}


def on_engine(settings, where, seed, steps, path):
    """The measure before each step of the inline engine, on the loop's rows."""
    batch, second = settings.rows(where)
    rows = draw_rows(seed, where.rows, (batch, second), steps)
    recorded = {"minibatch": rows[:, :batch]}
    if second:
        recorded["independent"] = rows[:, batch:]
    np.savez(path, **recorded)
    keys = {**engine_keys(settings, where), "replay": str(path)}
    engine = InlineEngine(Experiment.of(Config.from_flat(keys), where.built))
    values = [float(where.stack.measure(engine.server.x[None, None])[0, 0])]
    for _ in range(steps - 1):
        engine.round()
        values.append(float(where.stack.measure(engine.server.x[None, None])[0, 0]))
    return values


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_the_loop_runs_what_the_engine_runs(kind, tmp_path):
    """Two settings and two seeds at once; the second setting of the second seed is compared."""
    settings, where = EVERY_KIND[kind], phase(7_000)
    other = replace(settings, step_size=settings.step_size / 2)
    expected = run([other, settings], where, [5, 3])[1][1].values[:20]
    ours = on_engine(settings, where, 3, len(expected), tmp_path / "rows.npz")
    np.testing.assert_allclose(expected, ours, rtol=1e-7)


@pytest.mark.parametrize("kind", ["ian", "memory", "spider"])
def test_the_loop_runs_what_the_engine_runs_on_dro(kind, tmp_path, data_dir):
    settings = replace(EVERY_KIND[kind], step_size=0.01)
    where = replace(arena("dro", 2024, str(data_dir)), budget=9_000)
    expected = run([settings], where, [3])[0][0].values[:20]
    ours = on_engine(settings, where, 3, len(expected), tmp_path / "rows.npz")
    np.testing.assert_allclose(expected, ours, rtol=1e-7)


def test_settings_of_different_kinds_keep_their_places():
    where = phase(5_000)
    together = run(list(EVERY_KIND.values()), where, [0, 1])
    for runs, settings in zip(together, EVERY_KIND.values(), strict=True):
        (alone,) = run([settings], where, [1])
        np.testing.assert_allclose(runs[1].values, alone[0].values, rtol=1e-9)


def test_rows_are_those_of_the_published_code():
    """RandomState(seed): B of n, then B' of n, without replacement, each iteration."""
    draws = np.random.RandomState(3)
    expected = [
        np.concatenate([draws.choice(50, 7, replace=False), draws.choice(50, 2, replace=False)])
        for _ in range(4)
    ]
    np.testing.assert_array_equal(draw_rows(3, 50, (7, 2), 4), expected)


def test_methods_of_one_batch_size_see_the_same_batches():
    with_second, without = draw_rows(3, 50, (7, 2), 4), draw_rows(3, 50, (7, 0), 4)
    np.testing.assert_array_equal(with_second[:, :7], without)


@pytest.mark.parametrize(
    ("settings", "charged", "computed"),
    [
        (Settings(1e-4), 64, 64),
        (Settings(0.1, 1.0, norm="independent"), 68, 68),
        (Settings(0.1, 1.0, norm="independent", independent_batch=16), 80, 80),
        (Settings(0.1, 1.0, idle_rows=4), 68, 64),
        (Settings(0.1, 1.0, norm="full", idle_rows=4), 68, 64 + 3000),
    ],
)
def test_what_a_step_costs(settings, charged, computed):
    """And runs stop before they would exceed the budget."""
    done = run([settings], phase(10 * charged + 5), [0])[0][0]
    np.testing.assert_array_equal(done.evaluations, charged * np.arange(11))
    assert done.computed == 10 * computed


def test_what_spider_costs():
    """All rows every third step, and two gradients of each row between."""
    settings = Settings(0.03, 2 / 3, spider_period=3)
    done = run([settings], phase(6700), [0])[0][0]
    np.testing.assert_array_equal(done.evaluations, [0, 3000, 3128, 3256, 6256, 6384, 6512])
    assert done.computed == 6512


def test_a_run_that_leaps_off_ends_at_infinity_beside_one_that_does_not():
    wild, tame = run([Settings(1.0), Settings(5e-5)], phase(), [0])
    assert wild[0].final == wild[0].worst == math.inf
    assert tame[0].final == pytest.approx(952, abs=60)
