"""The single-machine methods, run by the engine, against the published loops step by step."""

from dataclasses import replace

import numpy as np
import pytest
from reference_ian import (
    PHASE_RETRIEVAL_DETERMINISTIC,
    Loop,
    PhaseRetrievalArrays,
    draw_rows,
    run,
)

from fedef.config import Config
from fedef.errors import ConfigError
from fedef.experiment import Experiment
from sims.engine import InlineEngine

ROUNDS = 40
ONE_CLIENT = {"num-clients": 1, "schedule": "constant", "problem": "phase-retrieval"}
LOOPS = {
    "sgd": Loop(gamma=5e-5, batch=64),
    "nsgd": Loop(gamma=0.028, beta=2 / 3, batch=64),
    "nsgdm": Loop(gamma=0.03, beta=2 / 3, theta=0.2, batch=64),
    "clip-sgd": Loop(gamma=0.3, beta=2 / 3, tau=2025, delta=15, batch=64),
    "spider": Loop(gamma=0.03, beta=1.0, batch=64, spider_period=7),
    "ian-sgd": Loop(
        gamma=0.3, beta=2 / 3, tau=2025, delta=15, batch=64, independent_batch=4, amplify=2.0
    ),
}


def settings_of(method: str, loop: Loop) -> dict[str, object]:
    """The configuration that says what the loop does."""
    settings = {**ONE_CLIENT, "method": method, "step-size": loop.gamma}
    if loop.beta:
        settings |= {"beta": loop.beta, "delta": loop.delta, "tau": loop.tau}
    if loop.theta:
        settings["momentum-eta"] = 1 - loop.theta
    if loop.batch:
        settings["local-batch-size"] = loop.batch
    if loop.spider_period:
        settings["spider-period"] = loop.spider_period
    if loop.independent_batch:
        settings |= {
            "independent-batch-size": loop.independent_batch,
            "amplification": loop.amplify,
            "independent-summary": "norm",
        }
    return settings


def path_of(settings: dict[str, object], rounds: int) -> np.ndarray:
    engine = InlineEngine(Experiment.build(Config.from_flat(settings)))
    points = [engine.server.x]
    for _ in range(rounds):
        engine.round()
        points.append(engine.server.x)
    return np.array(points)


@pytest.mark.parametrize("method", LOOPS)
def test_replayed_rows_give_the_published_path(method, tmp_path):
    """Same recorded rows, two programs: equal to rounding over 40 iterations."""
    loop, arrays = LOOPS[method], PhaseRetrievalArrays()
    recorded = draw_rows(loop, np.random.RandomState(5), arrays.n, ROUNDS)
    rows = {"minibatch": [r if r is not None else np.zeros(64, int) for r, _ in recorded]}
    if loop.independent_batch:
        rows["independent"] = [r for _, r in recorded]
    np.savez(tmp_path / "rows.npz", **{name: np.array(r) for name, r in rows.items()})
    start = path_of(settings_of(method, loop), 0)[0]
    expected = run(loop, arrays.gradient, start, recorded)
    path = path_of({**settings_of(method, loop), "replay": str(tmp_path / "rows.npz")}, ROUNDS)
    np.testing.assert_allclose(path, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", PHASE_RETRIEVAL_DETERMINISTIC)
def test_deterministic_methods_reach_the_printed_values(name):
    """f at the tenth evaluation from z0, to 1e-4 relative (spec section 4)."""
    loop, printed = PHASE_RETRIEVAL_DETERMINISTIC[name]
    method = {"gd": "gd", "clipped-gd": "clip-gd"}.get(name, "an-gd")
    settings = {**settings_of(method, loop), "warm-start": False}
    tenth = path_of(settings, 9)[-1]
    assert PhaseRetrievalArrays().value(tenth) == pytest.approx(printed, rel=1e-4)


@pytest.mark.parametrize("method", LOOPS)
def test_gradient_evaluations_are_counted(method):
    """SPIDER's difference costs two gradients a row, IAN's step B + B'."""
    engine = InlineEngine(Experiment.build(Config.from_flat(settings_of(method, LOOPS[method]))))
    counts = [engine.round().gradient_evaluations for _ in range(3)]
    expected = {"spider": [3000, 128, 128], "ian-sgd": [68] * 3}.get(method, [64] * 3)
    assert counts == expected


def test_adam_and_adagrad_norm_in_closed_form():
    """Against the formulas, full gradients."""
    for method in ("adam", "adagrad-norm"):
        settings = {
            "problem": "logistic",
            "data": "synthetic",
            "num-clients": 1,
            "partitioner": "contiguous",
            "schedule": "constant",
            "step-size": 0.1,
            "method": method,
        }
        path = path_of(settings, 20)
        problem = Experiment.build(Config.from_flat(settings)).problem
        x, m, v, squares = path[0].copy(), 0.0, 0.0, 0.0
        for t in range(1, 21):
            g = problem.local(0, x, buffers=np.empty(0)).gradient
            m, v, squares = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2, squares + g @ g
            adam = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)
            x = x - 0.1 * (adam if method == "adam" else g / np.sqrt(squares))
            np.testing.assert_allclose(path[t], x, rtol=1e-9)


def test_a_step_is_never_longer_than_max_step():
    settings = {**settings_of("sgd", LOOPS["sgd"]), "step-size": 1.0, "max-step": 0.25}
    path = path_of(settings, 20)
    lengths = np.linalg.norm(np.diff(path, axis=0), axis=1)
    np.testing.assert_allclose(lengths, 0.25, rtol=1e-10)


def test_independent_batches_are_drawn_apart_from_the_minibatch():
    experiment = Experiment.build(Config.from_flat(settings_of("ian-sgd", LOOPS["ian-sgd"])))
    sampler = experiment.method.sampler
    batch = sampler.rows("minibatch", 0, 1, available=3000)
    independent = sampler.rows("independent", 0, 1, available=3000)
    assert (batch.size, independent.size) == (64, 4)
    assert not np.array_equal(np.sort(batch)[:4], np.sort(independent))


def federated(**changes) -> InlineEngine:
    settings = {
        "problem": "digits-softmax",
        "method": "norm-ef21",
        "direction": "independent",
        "dirichlet-alpha": 0.05,
        "k-fraction": 0.05,
        "tau": 0.01,
        "amplification": 1.0,
        "schedule": "constant",
        "step-size": 0.5,
        "seed": 0,
    }
    flat = {key.replace("_", "-"): value for key, value in changes.items()}
    return InlineEngine(Experiment.build(Config.from_flat({**settings, **flat})))


def exact_norm(engine: InlineEngine, x: np.ndarray) -> float:
    problem, weights = engine.experiment.problem, np.array(engine.experiment.weights)
    parts = [problem.local(i, x, buffers=np.empty(0)).gradient for i in range(len(weights))]
    return float(np.linalg.norm(np.average(parts, axis=0, weights=weights)))


def test_the_servers_norm_is_unbiased_from_sketches_and_far_off_from_norms():
    """Full independent gradients under Dirichlet 0.05: the truth is ||grad f(x)||."""
    sketched, averaged = [], []
    for seed in range(12):
        for summary, ratios in (("sketch", sketched), ("norm", averaged)):
            engine = federated(independent_summary=summary, seed=seed)
            for _ in range(4):
                truth = exact_norm(engine, engine.server.x)
                ratios.append(engine.round().independent_norm / truth)
    error = np.std(sketched) / np.sqrt(len(sketched))
    assert abs(np.mean(sketched) - 1) < 4 * error
    assert error < 0.01
    assert np.mean(averaged) > 2.5


def test_the_sketch_is_in_the_uplink():
    with_sketch, without = federated(), federated(direction="unit")
    difference = with_sketch.round().uplink_bytes - without.round().uplink_bytes
    assert difference == 10 * (24 + 256 * 4)


def test_federated_independent_normalization_descends_with_top_k():
    engine = federated(local_batch_size=16, independent_batch_size=16, step_size=0.2)
    weights = np.array(engine.experiment.weights) / sum(engine.experiment.weights)

    def loss() -> float:
        return engine.experiment.problem.evaluate(
            engine.server.x, weights=weights, buffers=np.empty(0, np.float32)
        ).loss

    before = loss()
    for _ in range(80):
        engine.round()
    assert loss() < 0.6 * before


def test_a_forged_or_missing_sketch_is_refused():
    engine = federated()
    assert engine.round(
        network=lambda replies: [replace(replies[0], sketch=b""), *replies[1:]]
    ).refusals == {"malformed": 1}
    plain = federated(direction="unit")
    assert plain.round(
        network=lambda replies: [replace(replies[0], sketch=b"x"), *replies[1:]]
    ).refusals == {"malformed": 1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "gd", "local-batch-size": 8}, "method=gd takes all rows"),
        ({"method": "ian-sgd", "schedule": "auto"}, "needs direction=plain or unit"),
        ({"replay": "nowhere.npz"}, "nowhere.npz"),
        ({"method": "sgd", "schedule": "theory"}, "schedule=theory"),
    ],
)
def test_pieces_that_do_not_fit(settings, message):
    with pytest.raises(ConfigError, match=message):
        Experiment.build(Config.from_flat({**ONE_CLIENT, **settings}))


def test_a_replay_that_does_not_fit_is_an_error(tmp_path):
    path = tmp_path / "rows.npz"
    settings = {**settings_of("sgd", LOOPS["sgd"]), "replay": str(path)}
    np.savez(path, minibatch=np.full((1, 4), 3000))
    with pytest.raises(ConfigError, match="names rows up to 3000"):
        path_of(settings, 1)
    np.savez(path, minibatch=np.zeros((1, 4), int))
    with pytest.raises(ConfigError, match="recorded for 1 rounds"):
        path_of(settings, 2)
    np.savez(path, minibatch=np.zeros((1, 4)))
    with pytest.raises(ConfigError, match="must hold integers"):
        path_of(settings, 1)


@pytest.mark.parametrize("cap", [1.0, 2.0])
def test_a_capped_step_is_bounded_by_the_first(cap):
    loop = replace(LOOPS["ian-sgd"], gamma=3.0)
    path = path_of({**settings_of("ian-sgd", loop), "cap": cap}, 30)
    lengths = np.linalg.norm(np.diff(path, axis=0), axis=1)
    assert lengths.max() <= cap * lengths[0] * (1 + 1e-9)


def test_a_cap_that_is_not_reached_gives_the_published_path():
    settings = settings_of("ian-sgd", LOOPS["ian-sgd"])
    np.testing.assert_allclose(
        path_of({**settings, "cap": 1e6}, 20), path_of(settings, 20), rtol=1e-7
    )


def test_remembered_normalization_needs_no_second_batch():
    """x - gamma g_t / max(A ||g_{t-1}|| + delta, tau)^beta, full gradients in closed form."""
    settings = {
        "problem": "logistic",
        "data": "synthetic",
        "num-clients": 1,
        "partitioner": "contiguous",
        "schedule": "constant",
        "step-size": 0.3,
        "method": "sgd",
        "direction": "remembered",
        "beta": 0.5,
        "tau": 0.01,
    }
    path = path_of(settings, 15)
    problem = Experiment.build(Config.from_flat(settings)).problem
    x, last = path[0].copy(), None
    for t in range(1, 16):
        g = problem.local(0, x, buffers=np.empty(0)).gradient
        length = np.linalg.norm(g)
        x = x - 0.3 * g / max(2 * (length if last is None else last), 0.01) ** 0.5
        last = length
        np.testing.assert_allclose(path[t], x, rtol=1e-9)


def test_a_cap_is_for_independent_directions():
    with pytest.raises(ConfigError, match="use max-step"):
        path_of({**settings_of("sgd", LOOPS["sgd"]), "cap": 2.0}, 1)
