"""The sketch's expectation, variance, linearity and bytes; what averaging norms costs instead."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedef import sketch as sketch_module
from fedef.codec import encode
from fedef.compressors.base import NonFiniteVector
from fedef.config import Config
from fedef.errors import ConfigError, CorruptPayload
from fedef.experiment import Experiment
from fedef.randomness import stream_seed
from fedef.sketch import DEFAULT_SIZE, decode_sketch, encode_sketch, sketch, squared_norm
from fedef.updates import Update
from fedef.value_formats import FORMATS
from fedef.vectors import norm

DRAWS = 10_000
# Bounds on 10,000 draws are 4 standard errors wide: a correct sketch passes with probability
# 99.994 %, and the seeds below are fixed.
WIDTH = 4.0


def seed_of(draw):
    return stream_seed(0, "test-sketch", draw)


def gaussian(dimension):
    return np.random.default_rng(dimension).standard_normal(dimension)


def estimates(vector, size, draws=DRAWS):
    """Return (draws,) estimates of ||v||^2 relative to it."""
    drawn = [squared_norm(sketch(vector, seed=seed_of(i), size=size)) for i in range(draws)]
    return np.array(drawn) / (vector @ vector)


def relative_variance(vector, size):
    """Var ||Sv||^2 / ||v||^4 = 2 (1 - ||v||_4^4 / ||v||_2^4) / m."""
    return 2 * (1 - np.sum(vector**4) / (vector @ vector) ** 2) / size


def test_the_stated_moments_are_those_of_all_tables():
    """Over every (bucket, sign) of d = 3 coordinates and m = 2: the formulas hold exactly."""
    v, m = np.array([3.0, -1.0, 2.0]), 2
    squares = []
    for cells in product(range(2 * m), repeat=3):
        sums = np.bincount(cells, weights=v, minlength=2 * m)
        squares.append(squared_norm(sums[:m] - sums[m:]))
    np.testing.assert_allclose(np.mean(squares), v @ v, rtol=1e-14)
    np.testing.assert_allclose(np.var(squares) / (v @ v) ** 2, relative_variance(v, m), rtol=1e-14)


@pytest.mark.parametrize(
    ("vector", "size"),
    [(gaussian(64), DEFAULT_SIZE), (gaussian(20) ** 3, 8), (np.ones(30), 1)],
    ids=["gaussian", "heavy-tailed", "one number (AMS)"],
)
def test_unbiased_with_the_stated_variance_over_10000_draws(vector, size):
    relative = estimates(vector, size)
    variance = relative_variance(vector, size)
    assert abs(relative.mean() - 1) < WIDTH * np.sqrt(variance / DRAWS)
    fourth = np.mean((relative - 1) ** 4)
    error_of_variance = np.sqrt((fourth - variance**2) / DRAWS)
    assert abs(np.mean((relative - 1) ** 2) - variance) < WIDTH * error_of_variance


def test_below_10_percent_rms_at_256():
    errors = estimates(gaussian(2000), DEFAULT_SIZE, draws=2000) - 1
    assert np.sqrt(np.mean(errors**2)) < 0.10
    assert np.sqrt(2 / DEFAULT_SIZE) < 0.0884


def test_the_norm_itself_is_biased_by_a_quarter_of_one_over_m():
    size = 16
    lengths = np.sqrt(estimates(gaussian(200), size))
    standard_error = lengths.std() / np.sqrt(DRAWS)
    assert abs(lengths.mean() - 1 + 1 / (4 * size)) < WIDTH * standard_error + 1 / size**2
    assert lengths.mean() < 1 - WIDTH * standard_error


@given(st.integers(0, 2**64 - 1), st.integers(1, 40), st.integers(1, 9))
def test_linear_up_to_rounding(seed, dimension, clients):
    vectors = np.random.default_rng(clients).standard_normal((clients, dimension))
    weights = np.arange(1.0, clients + 1) / np.arange(1.0, clients + 1).sum()
    of_mean = sketch(weights @ vectors, seed=seed, size=7)
    mean_of = weights @ np.stack([sketch(v, seed=seed, size=7) for v in vectors])
    np.testing.assert_allclose(mean_of, of_mean, rtol=0, atol=1e-13)


def test_whole_numbers_are_added_exactly():
    vectors = np.random.default_rng(0).integers(-1000, 1000, (4, 5000)).astype(np.float32)
    of_mean = sketch(vectors.mean(axis=0), seed=5)
    mean_of = np.mean([sketch(v, seed=5) for v in vectors], axis=0)
    np.testing.assert_array_equal(mean_of, of_mean)


def test_the_same_bits_on_every_machine():
    """Numbers from Philox's raw bits, written down once."""
    np.testing.assert_array_equal(sketch(np.arange(1.0, 13.0), seed=2024, size=4), [-15, 7, -7, 7])


def test_a_table_drawn_again_is_the_same_and_only_two_are_kept():
    v = gaussian(50)
    first = sketch(v, seed=1)
    for seed in range(2, 6):
        assert not np.array_equal(sketch(v, seed=seed), first)
    assert sketch_module._cells.cache_info().currsize <= 2
    np.testing.assert_array_equal(sketch(v, seed=1), first)


def test_float32_and_strided_vectors_have_the_sketch_of_their_values():
    v = gaussian(100).astype(np.float32)
    expected = sketch(v.astype(np.float64), seed=3)
    np.testing.assert_array_equal(sketch(v, seed=3), expected)
    np.testing.assert_array_equal(sketch(np.repeat(v, 2)[::2], seed=3), expected)


def test_zero_and_empty_vectors():
    assert squared_norm(sketch(np.zeros(9), seed=0)) == 0.0
    np.testing.assert_array_equal(sketch(np.zeros(0), seed=0, size=3), np.zeros(3))


@pytest.mark.parametrize(
    ("value_format", "sent_bytes", "tolerance"),
    [("float32", 1048, 2**-24), ("bfloat16", 536, 2**-8)],
)
def test_bytes(value_format, sent_bytes, tolerance):
    sketched = sketch(gaussian(1000), seed=9)
    data = encode_sketch(sketched, round=7, value_format=FORMATS[value_format])
    assert len(data) == sent_bytes
    received = decode_sketch(data)
    np.testing.assert_allclose(received, sketched, rtol=tolerance)
    np.testing.assert_allclose(squared_norm(received), squared_norm(sketched), rtol=2 * tolerance)


def test_payloads_that_are_no_sketch_are_refused():
    data = encode_sketch(sketch(gaussian(10), seed=0, size=4), round=0)
    with pytest.raises(CorruptPayload, match="d=4, expected d=5"):
        decode_sketch(data, size=5)
    with pytest.raises(CorruptPayload, match="checksum"):
        decode_sketch(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:], size=4)
    sparse = encode(Update(4, np.ones(1), np.array([2])), FORMATS["float32"])
    with pytest.raises(CorruptPayload, match="expected a dense payload, got a sparse one"):
        decode_sketch(sparse, size=4)


@pytest.mark.parametrize(
    ("vector", "changes", "message"),
    [
        (
            np.ones((2, 3)),
            {},
            r"vector must be flat and floating point, got float64 of shape \(2, 3\)",
        ),
        (np.ones(3, dtype=int), {}, "vector must be flat and floating point, got int64"),
        (np.ones(3), {"seed": -1}, r"seed must be in \[0, 2\^64\), got -1"),
        (np.ones(3), {"seed": 2**64}, "seed must be in"),
        (np.ones(3), {"size": 0}, r"size must be in \[1, 16777216\], got 0"),
        (np.ones(3), {"size": 2**24 + 1}, "size must be in"),
    ],
)
def test_bad_arguments_are_refused(vector, changes, message):
    with pytest.raises(ConfigError, match=f"sketch: {message}"):
        sketch(vector, **{"seed": 0, **changes})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_is_refused(bad):
    with pytest.raises(NonFiniteVector, match="sketch"):
        sketch(np.array([1.0, bad, 2.0]), seed=0)


@pytest.fixture(scope="module")
def skewed():
    """Weights and gradients of 10 clients with few digits each: at x^0, and after 200 GD steps."""
    experiment = Experiment.build(
        Config.from_flat({"problem": "digits-softmax", "dirichlet-alpha": 0.05})
    )
    problem, weights = experiment.problem, np.array(experiment.weights)
    weights = weights / weights.sum()
    x, buffers = problem.initial_point(), problem.initial_buffers()
    kept = []
    for step in range(201):
        gradients = [problem.local(i, x, buffers=buffers).gradient for i in range(len(weights))]
        stacked = np.stack(gradients).astype(np.float64)
        if step in (0, 200):
            kept.append(stacked)
        x = (x - 0.5 * (weights @ stacked)).astype(x.dtype)
    return weights, kept


@pytest.mark.parametrize(("point", "factor"), [(0, 4.22), (1, 13.7)], ids=["start", "200 steps"])
def test_under_label_skew_averaged_norms_are_off_and_the_sketch_is_not(skewed, point, factor):
    """Dirichlet 0.05: mean ||g_i|| is 4.2 times ||mean g_i|| at the start and 13.7 times later."""
    weights, gradients = skewed[0], skewed[1][point]
    length = norm(weights @ gradients)
    averaged = weights @ [norm(g) for g in gradients]
    np.testing.assert_allclose(averaged / length, factor, rtol=0.02)

    draws = 500
    squares = []
    for draw in range(draws):
        sketches = np.stack([sketch(g, seed=seed_of(draw)) for g in gradients])
        squares.append(squared_norm(weights @ sketches) / length**2)
    standard_error = np.sqrt(2 / DEFAULT_SIZE / draws)
    assert abs(np.mean(squares) - 1) < WIDTH * standard_error
    assert abs(np.mean(np.sqrt(squares)) - 1) < 0.001 + WIDTH * standard_error / 2
