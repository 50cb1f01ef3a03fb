"""From a configuration to a problem, and every message for what cannot be built."""

from pathlib import Path

import numpy as np
import pytest

from fedef.config import Config
from fedef.errors import ConfigError
from fedef.problems.registry import build_problem

POLYNOMIAL = {"problem": "polynomial", "num-clients": 2}
LOGISTIC = {"problem": "logistic", "num-clients": 2}
FEATURES = np.arange(8.0).reshape(4, 2) / 8
LABELS = np.array([1, -1, 1, -1])


def build(settings, **changes):
    return build_problem(Config.from_flat({**settings, **changes}))


@pytest.fixture
def npz(tmp_path):
    def write(**arrays):
        path = tmp_path / f"{'-'.join(arrays) or 'empty'}.npz"
        np.savez(path, **arrays)
        return str(path)

    return write


@pytest.mark.parametrize(
    ("settings", "dimension", "clients"),
    [
        ({"problem": "polynomial", "num-clients": 3}, 4, 3),
        ({"problem": "logistic", "partitioner": "iid"}, 30, 10),
        ({"problem": "logistic", "data": "synthetic", "num-clients": 20}, 10, 20),
        ({"problem": "digits-softmax"}, 650, 10),
        ({"problem": "digits-mlp"}, 4810, 10),
    ],
)
def test_every_problem_keeps_the_protocol(settings, dimension, clients):
    problem = build(settings)
    assert problem.name == settings["problem"]
    assert problem.dimension == dimension
    assert len(problem.num_examples) == clients
    x, buffers = problem.initial_point(), problem.initial_buffers()
    assert x.shape == (dimension,)
    assert x.dtype == buffers.dtype == problem.dtype
    result = problem.local(0, x, buffers=buffers)
    assert result.gradient.shape == (dimension,)
    assert result.gradient.dtype == problem.dtype
    named = problem.named_arrays(x, buffers)
    np.testing.assert_array_equal(np.concatenate([a.ravel() for a in named.values()]), x)
    weights = np.full(clients, 1 / clients)
    evaluation = problem.evaluate(x, weights=weights, buffers=buffers)
    assert np.isfinite([evaluation.loss, evaluation.gradient_norm]).all()
    assert (evaluation.test_accuracy is None) == (problem.dtype == np.float64)


def test_as_many_clients_as_rows_gives_client_i_row_i(npz):
    path = npz(features=FEATURES, labels=LABELS)
    problem = build(LOGISTIC, **{"num-clients": 4, "instance": path, "regularization": 0})
    for client in range(4):
        slope = problem.local(client, np.zeros(2), buffers=np.empty(0)).gradient
        np.testing.assert_allclose(slope, -LABELS[client] * FEATURES[client] / 2)


def test_an_instance_says_which_client_holds_a_row(npz):
    path = npz(features=FEATURES, labels=LABELS, client=np.array([1, 0, 1, 1]))
    problem = build(LOGISTIC, instance=path, regularization=0)
    assert problem.num_examples == (1, 3)
    slope = problem.local(1, np.zeros(2), buffers=np.empty(0)).gradient
    held = [0, 2, 3]
    np.testing.assert_allclose(slope, -(LABELS[held] @ FEATURES[held]) / 6)


@pytest.mark.parametrize("a", [np.array([1.0, 2, 3]), np.array([[1.0, 2, 3], [4, 5, 6]])])
def test_a_polynomial_instance_gives_every_client_its_coefficients(npz, a):
    problem = build(POLYNOMIAL, instance=npz(a=a, lam=0.0))
    assert problem.dimension == 3
    assert problem.smoothness is None
    for client, row in enumerate(np.broadcast_to(a, (2, 3))):
        result = problem.local(client, np.ones(3), buffers=np.empty(0))
        assert result.loss == row.sum()
        np.testing.assert_allclose(result.gradient, 4 * row)


@pytest.mark.parametrize(
    ("settings", "dimension"),
    [(POLYNOMIAL, 4), (LOGISTIC, 30), ({"problem": "digits-softmax"}, 650)],
)
def test_an_initial_point_from_a_file(npz, settings, dimension):
    x0 = np.linspace(-1, 1, dimension)
    problem = build(settings, **{"initial-point": npz(x0=x0)})
    np.testing.assert_array_equal(problem.initial_point(), x0.astype(problem.dtype))
    with pytest.raises(ConfigError, match=rf"x0 must have shape \({dimension},\) .*got \(3,\)"):
        build(settings, **{"initial-point": npz(x0=np.zeros(3))})


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros(4)}, r"holds arrays \['x'\], expected \['x0'\]"),
        ({}, "missing or unknown: .'x0'"),
        ({"x0": np.array([0, np.nan, 0, 0])}, "must hold finite numbers"),
        ({"x0": np.array([0, np.inf, 0, 0])}, "must hold finite numbers"),
        ({"x0": np.array(list("abcd"))}, "must hold finite numbers"),
        ({"x0": np.array([None] * 4)}, "not a readable npz file .*plain numeric arrays"),
        ({"x0": np.zeros((4, 1))}, r"got \(4, 1\)"),
    ],
)
def test_bad_initial_points_are_refused(npz, arrays, message):
    with pytest.raises(ConfigError, match=f"initial-point: .*{message}"):
        build(POLYNOMIAL, **{"initial-point": npz(**arrays)})


@pytest.mark.parametrize("key", ["initial-point", "instance"])
def test_unreadable_files_are_refused(tmp_path, npz, key):
    with pytest.raises(ConfigError, match=f"{key}: no file '.*nowhere.npz'; check the path"):
        build(POLYNOMIAL, **{key: str(tmp_path / "nowhere.npz")})
    good = npz(a=np.ones(4), lam=1.0, x0=np.zeros(4))
    whole = Path(good).read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(b"NUMPY") + 140] ^= 1
    broken = tmp_path / "broken.npz"
    single = tmp_path / "single.npy"
    np.save(single, np.zeros(4))
    for content in (b"", b"text", whole[:100], whole[:-30], bytes(flipped), single.read_bytes()):
        broken.write_bytes(content)
        with pytest.raises(ConfigError, match=f"{key}: .*broken.npz' is not a readable npz file"):
            build(POLYNOMIAL, **{key: str(broken)})
    with pytest.raises(ConfigError, match=f"{key}: .* is not a readable npz file"):
        build(POLYNOMIAL, **{key: str(tmp_path)})


@pytest.mark.parametrize(
    ("settings", "arrays", "message"),
    [
        (POLYNOMIAL, {"a": np.ones((3, 4)), "lam": 1.0}, "holds 3 clients, .*set num-clients=3"),
        (POLYNOMIAL, {"a": np.ones((1, 2, 4)), "lam": 1.0}, "a of shape .*got shapes"),
        (POLYNOMIAL, {"a": np.ones(()), "lam": 1.0}, "a of shape .*got shapes"),
        (POLYNOMIAL, {"a": np.ones(0), "lam": 1.0}, "a of shape .*got shapes"),
        (POLYNOMIAL, {"a": np.ones(4), "lam": np.ones(2)}, "a scalar lam"),
        (POLYNOMIAL, {"a": np.ones(4)}, "missing or unknown: .'lam'"),
        (LOGISTIC, {"features": FEATURES}, "missing or unknown: .'labels'"),
        (LOGISTIC, {"features": FEATURES, "labels": LABELS[:3]}, r"shapes \(4, 2\) and \(3,\)"),
        (LOGISTIC, {"features": FEATURES[0], "labels": LABELS}, r"shapes \(2,\) and \(4,\)"),
        (LOGISTIC, {"features": FEATURES[:0], "labels": LABELS[:0]}, r"shapes \(0, 2\)"),
        (LOGISTIC, {"features": FEATURES, "labels": np.arange(4)}, "must be -1 or \\+1, got"),
        (
            LOGISTIC,
            {"features": FEATURES, "labels": LABELS, "client": np.arange(4)},
            "holds 4 clients, .*set num-clients=4",
        ),
        (
            LOGISTIC,
            {"features": FEATURES, "labels": LABELS, "client": np.arange(4) - 1},
            "integers from 0",
        ),
        (
            LOGISTIC,
            {"features": FEATURES, "labels": LABELS, "client": np.ones(4)},
            "integers from 0",
        ),
        ({"problem": "digits-mlp"}, {"a": np.ones(1)}, "digits-mlp takes none"),
    ],
)
def test_bad_instances_are_refused(npz, settings, arrays, message):
    with pytest.raises(ConfigError, match=f"instance: .*{message}"):
        build(settings, instance=npz(**arrays))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"problem": "logistic", "num-clients": 570}, "num-clients=570 .* the data has 569"),
        ({"problem": "digits-mlp", "num-clients": 1439}, "num-clients=1439 .* the data has 1438"),
        ({"problem": "logistic", "data": "nowhere"}, "no file for 'nowhere'"),
    ],
)
def test_data_that_cannot_serve_the_clients_are_refused(settings, message, monkeypatch):
    monkeypatch.delenv("FEDEF_DATA", raising=False)
    with pytest.raises(ConfigError, match=message):
        build(settings)
