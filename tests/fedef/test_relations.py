"""The relations between the methods (spec section 1), each as an equality of bits or a bound."""

import numpy as np
import pytest

from fedef.config import Config
from fedef.experiment import Experiment
from sims.engine import InlineEngine

LOGISTIC = {
    "problem": "logistic",
    "data": "synthetic",
    "num-clients": 5,
    "partitioner": "iid",
    "schedule": "inv-sqrt",
    "step-size": 0.5,
}
METHODS = ["ef21", "norm-ef21", "ef21-sgdm", "norm-ef21-sgdm"]
COMPRESSORS = [
    {"compressor": "identity"},
    {"compressor": "top-k", "k": 3},
    {"compressor": "rand-k", "k": 3},
]


def engine(**settings) -> InlineEngine:
    flat = {key.replace("_", "-"): value for key, value in settings.items()}
    return InlineEngine(Experiment.build(Config.from_flat({**LOGISTIC, **flat})))


def after(rounds: int, **settings) -> np.ndarray:
    run = engine(**settings)
    for _ in range(rounds):
        run.round()
    return run.server.x


def full_gradient(run: InlineEngine, x: np.ndarray) -> np.ndarray:
    problem, weights = run.experiment.problem, np.array(run.experiment.weights)
    parts = [problem.local(i, x, buffers=np.empty(0)).gradient for i in range(len(weights))]
    return np.average(parts, axis=0, weights=weights)


@pytest.mark.parametrize("problem", [{"problem": "polynomial"}, {}])
def test_one_client_without_compression_is_normalized_gradient_descent(problem):
    """x^{k+1} = x^k - gamma/sqrt(k+1) grad f(x^k) / ||grad f(x^k)||."""
    run = engine(num_clients=1, method="norm-ef21", compressor="identity", **problem)
    x = run.server.x.copy()
    for k in range(30):
        gradient = full_gradient(run, x)
        x = x - 0.5 / np.sqrt(k + 1) * gradient / np.linalg.norm(gradient)
        run.round()
        np.testing.assert_allclose(run.server.x, x, rtol=1e-10)


def test_without_compression_ef21_is_gradient_descent():
    run = engine(method="ef21", compressor="identity", schedule="constant")
    x = run.server.x.copy()
    for _ in range(30):
        x = x - 0.5 * full_gradient(run, x)
        run.round()
        np.testing.assert_allclose(run.server.x, x, rtol=1e-10)


def test_without_compression_norm_sgdm_is_normalized_gradient_descent_with_momentum():
    """v <- (1-eta) v + eta grad, x <- x - gamma v/||v||, v^0 = grad f(x^0)."""
    run = engine(method="norm-ef21-sgdm", compressor="identity", momentum_eta=0.3)
    x, v = run.server.x.copy(), full_gradient(run, run.server.x)
    for k in range(30):
        v = 0.7 * v + 0.3 * full_gradient(run, x)
        x = x - 0.5 / np.sqrt(k + 1) * v / np.linalg.norm(v)
        run.round()
        np.testing.assert_allclose(run.server.x, x, rtol=1e-9)


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=lambda c: c["compressor"])
@pytest.mark.parametrize("norm", ["", "norm-"])
def test_sgdm_with_eta_one_is_sgd(norm, compressor):
    """Same bits: momentum with eta = 1 keeps nothing of the past."""
    common = {"local_batch_size": 2, **compressor}
    with_momentum = after(20, method=f"{norm}ef21-sgdm", momentum_eta=1.0, **common)
    without = after(20, method=f"{norm}ef21", **common)
    assert with_momentum.tobytes() == without.tobytes()


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=lambda c: c["compressor"])
@pytest.mark.parametrize("method", METHODS)
def test_asking_everybody_is_full_participation(method, compressor):
    run = engine(method=method, **compressor)
    for _ in range(15):
        run.round(range(5))
    assert run.server.x.tobytes() == after(15, method=method, **compressor).tobytes()


def test_top_k_with_k_equal_to_d_is_the_identity():
    """Up to the rounding of g_i + (v - g_i), which both do in the same way."""
    assert (
        after(20, method="norm-ef21", compressor="top-k", k=10).tobytes()
        == after(20, method="norm-ef21", compressor="identity").tobytes()
    )


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
@pytest.mark.parametrize("participation", [1.0, 0.4])
@pytest.mark.parametrize("value_format", ["auto", "float16"])
@pytest.mark.parametrize("compressor", COMPRESSORS, ids=lambda c: c["compressor"])
@pytest.mark.parametrize("method", METHODS)
def test_conservation(method, compressor, value_format, participation, weighting):
    """Server's g = weighted mean of all clients' g_i, absent clients and lossy formats included."""
    run = engine(
        method=method,
        participation=participation,
        value_format=value_format,
        weighting=weighting,
        num_clients=7,
        **compressor,
    )
    for _ in range(25):
        run.round()
        mean = np.zeros(10)
        for client, session in run.clients.items():
            record = run.server.state.records.get(client)
            if record:
                session.state = session.state.settled(record.version, record.digest)
            mean += run.experiment.weights[client] * session.state.g
        mean /= sum(run.experiment.weights)
        np.testing.assert_allclose(run.server.g, mean, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("compressor", ["top-k", "rand-k"])
def test_conservation_in_float32(compressor):
    """|g - mean g_i| <= (commits) 2^-24 max|g_i| per entry: each commit rounds g_i + delta once.

    The server adds the decoded delta in float64, the client rounds the sum to float32, by at most
    half a unit in the last place, 2^-24 |g_i|. Over 150 rounds the errors add up to no more than
    their number; the bound is on what float32 costs, a commit that is lost once costs |delta|.
    """
    run = InlineEngine(
        Experiment.build(
            Config.from_flat(
                {
                    "problem": "digits-softmax",
                    "num-clients": 8,
                    "participation": 0.75,
                    "method": "norm-ef21-sgdm",
                    "compressor": compressor,
                    "k-fraction": 0.2,
                    "local-batch-size": 16,
                }
            )
        )
    )
    weights = np.array(run.experiment.weights) / sum(run.experiment.weights)
    largest, worst = np.zeros((8, 650)), 0.0
    for round in range(1, 151):
        run.round()
        mean = np.zeros(650)
        for client, session in run.clients.items():
            record = run.server.state.records.get(client)
            session.state = session.state.settled(record.version, record.digest)
            g_i = session.state.g.astype(np.float64)
            largest[client] = np.maximum(largest[client], np.abs(g_i))
            mean += weights[client] * g_i
        error = np.abs(run.server.g - mean)
        assert (error <= round * 2.0**-24 * (weights @ largest) + 1e-18).all()
        worst = max(worst, error.max() / np.abs(mean).max())
    assert 0 < worst < 1e-6  # float32 does show, and does not grow


def test_absent_clients_stay_in_the_mean():
    """EF21-PP: after a round of client 0 alone, g still holds what the others sent before."""
    run = engine(method="ef21", compressor="identity", schedule="constant")
    run.round()
    before = run.server.g
    own = {i: run.clients[i].state.pending.g.values.copy() for i in range(5)}
    run.round([0])
    x1_gradient = run.clients[0].state.pending.g.values
    weights = np.array(run.experiment.weights) / sum(run.experiment.weights)
    np.testing.assert_allclose(
        run.server.g, before + weights[0] * (x1_gradient - own[0]), rtol=1e-12
    )


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_replies_does_not_matter(method):
    """Reduced in client order: shuffled replies give the same bits."""
    settings = {"method": method, "compressor": "top-k", "k": 3, "num_clients": 12}
    expected = engine(**settings)
    shuffled = engine(**settings)
    rng = np.random.default_rng(0)
    for _ in range(15):
        expected.round()
        shuffled.round(
            rng.permutation(12).tolist(),
            network=lambda replies: [replies[i] for i in rng.permutation(12)],
        )
    assert shuffled.server.x.tobytes() == expected.server.x.tobytes()
    assert shuffled.server.state.total.tobytes() == expected.server.state.total.tobytes()


def test_uniform_and_example_weights_differ_only_where_sizes_do():
    equal = [after(10, method="ef21", weighting=w) for w in ("uniform", "examples")]
    np.testing.assert_allclose(equal[0], equal[1], rtol=1e-12)
    unequal = [
        after(10, method="ef21", weighting=w, num_clients=3) for w in ("uniform", "examples")
    ]
    assert np.abs(unequal[0] - unequal[1]).max() > 1e-6


def test_the_first_message_is_dense_with_full_init_and_counted():
    full = engine(method="norm-ef21", compressor="top-k", k=1, init="full")
    zero = engine(method="norm-ef21", compressor="top-k", k=1)
    dense, sparse = full.round(), zero.round()
    assert dense.uplink_bytes == 5 * (24 + 10 * 8)
    assert sparse.uplink_bytes < 5 * (24 + 10 * 8) / 2
    np.testing.assert_allclose(
        full.server.g, full_gradient(full, zero.experiment.problem.initial_point())
    )
    assert full.round().uplink_bytes < dense.uplink_bytes / 2


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=lambda c: c["compressor"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_descends(method, compressor):
    run = engine(method=method, step_size=0.3, **compressor)
    weights = np.array(run.experiment.weights) / sum(run.experiment.weights)
    losses = []
    for _ in range(60):
        losses.append(
            run.experiment.problem.evaluate(run.server.x, weights=weights, buffers=np.empty(0)).loss
        )
        run.round()
    assert losses[-1] < 0.8 * losses[0]
