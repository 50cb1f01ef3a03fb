"""Compressors: the contraction E||C(v) - v||^2 <= (1 - alpha) ||v||^2 and what surrounds it."""

from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from math import floor, log, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import chi2

from fedef.codec import decode, encode
from fedef.compressors import (
    NAMES,
    NonFiniteVector,
    RandK,
    TopK,
    drawn_indices,
    make_compressor,
    top_k_indices,
)
from fedef.errors import ConfigError
from fedef.value_formats import native_format


@dataclass(frozen=True)
class Row:
    """What holds for a compressor besides the contraction."""

    random: bool
    idempotent: bool
    needs_k: bool


TABLE = {
    "identity": Row(random=False, idempotent=True, needs_k=False),
    "top-k": Row(random=False, idempotent=True, needs_k=True),
    # Idempotent for one seed: the same positions are kept again.
    "rand-k": Row(random=True, idempotent=True, needs_k=True),
}
DTYPES = {"float32": np.float32, "float64": np.float64}
each_compressor = pytest.mark.parametrize("name", TABLE)
each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
NOT_FINITE = (np.nan, -np.nan, np.inf, -np.inf)


def vectors(dtype, *, max_size=12, ties=False):
    width = 8 * np.dtype(dtype).itemsize
    finite = st.floats(width=width, allow_nan=False, allow_infinity=False)
    info = np.finfo(dtype)
    few = [0.0, -0.0, 1.0, -1.0, 2.0, -2.0, float(info.smallest_subnormal), float(info.max)]
    few += [-x for x in few[-2:]]
    elements = st.sampled_from(few) if ties else finite
    return arrays(dtype, st.integers(1, max_size), elements=elements)


@st.composite
def cases(draw, **kwargs):
    dtype = draw(st.sampled_from(list(DTYPES.values())))
    vector = draw(vectors(dtype, **kwargs))
    return vector, draw(st.integers(1, vector.size)), draw(st.integers(0, 2**64 - 1))


def energy(vector):
    """||v||^2 without rounding: no overflow, no tolerance."""
    return sum((Fraction(float(x)) ** 2 for x in vector), Fraction(0))


def same_bits(a, b):
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


def reference_top_k(vector, k):
    """The specification: argsort(-|v|, stable), without the zeros."""
    first = np.argsort(-np.abs(vector), kind="stable")[:k]
    return np.sort(first[vector[first] != 0])


def test_the_table_has_every_compressor():
    assert set(TABLE) == set(NAMES)


# --- contraction ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if not row.random])
@given(case=cases())
def test_contraction(name, case):
    vector, k, seed = case
    compressor = make_compressor(name, vector.size, k=k)
    lost = energy(compressor.compress(vector, seed=seed).dense() - vector)
    kept = Fraction(compressor.max_entries, vector.size)
    assert lost <= (1 - kept) * energy(vector)
    assert compressor.alpha == pytest.approx(float(kept), rel=1e-15)


@each_dtype
@given(st.integers(1, 30), st.data())
def test_top_k_contraction_is_tight_on_equal_entries(dtype, d, data):
    k = data.draw(st.integers(1, d))
    vector = data.draw(arrays(dtype, d, elements=st.sampled_from([0.1, -0.1])))
    lost = energy(TopK(k, d).compress(vector).dense() - vector)
    assert lost == (1 - Fraction(k, d)) * energy(vector)


@each_dtype
@pytest.mark.parametrize(("k", "d"), [(1, 2), (1, 7), (3, 7), (6, 7), (2, 40)])
def test_rand_k_contracts_with_equality_in_expectation(dtype, k, d):
    # One draw loses a share in [0, 1] of ||v||^2 with mean 1 - k/d. Hoeffding: the mean of N
    # draws is off by more than sqrt(log(2/p) / 2N) with probability p = 1e-9.
    draws = 3000
    bound = sqrt(log(2 / 1e-9) / (2 * draws))
    compressor = RandK(k, d)
    for vector in (np.ones(d, dtype), np.eye(1, d, dtype=dtype)[0], dtype(0.5) ** np.arange(d)):
        vector = vector.astype(dtype)
        total = float(energy(vector))
        shares = []
        for seed in range(draws):
            lost = compressor.compress(vector, seed=seed).dense() - vector
            shares.append(float(np.sum(np.square(lost, dtype=np.float64))) / total)
        assert abs(np.mean(shares) - (1 - k / d)) <= bound
        assert max(shares) <= 1.0


# --- what is sent --------------------------------------------------------------------------------


@each_compressor
@given(case=cases())
def test_update_is_the_vector_at_its_positions(name, case):
    vector, k, seed = case
    before = vector.tobytes()
    compressor = make_compressor(name, vector.size, k=k)
    update = compressor.compress(vector, seed=seed)
    assert vector.tobytes() == before
    assert update.dimension == vector.size
    assert update.values.size <= compressor.max_entries
    assert same_bits(update.values, vector[update.where])
    if update.indices is not None:
        assert update.indices.dtype == np.int64
        assert (np.diff(update.indices) > 0).all()
    assert (update.seed is not None) == (compressor.kind == "seeded")
    data = encode(update, native_format(vector.dtype))
    decoded = decode(data, dimension=vector.size, max_entries=compressor.max_entries)
    assert decoded.kind == compressor.kind
    np.testing.assert_array_equal(decoded.update.dense(), update.dense())


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.idempotent])
@given(case=cases())
def test_idempotence(name, case):
    vector, k, seed = case
    compressor = make_compressor(name, vector.size, k=k)
    once = compressor.compress(vector, seed=seed).dense()
    twice = compressor.compress(once, seed=seed).dense()
    assert same_bits(once, twice)


@each_compressor
@given(case=cases())
def test_k_equal_to_d_loses_nothing(name, case):
    vector, _, seed = case
    compressor = make_compressor(name, vector.size, k=vector.size)
    assert compressor.alpha == 1.0
    np.testing.assert_array_equal(compressor.compress(vector, seed=seed).dense(), vector)


@each_compressor
@given(case=cases())
def test_the_same_seed_gives_the_same_update(name, case):
    vector, k, seed = case
    compressor = make_compressor(name, vector.size, k=k)
    first, second = (compressor.compress(vector, seed=seed) for _ in range(2))
    assert same_bits(first.values, second.values)
    assert first.indices is None or same_bits(first.indices, second.indices)


@each_compressor
@each_dtype
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_the_zero_vector_comes_back_as_zero(name, dtype, zero):
    for k in (1, 3, 5):
        vector = np.full(5, zero, dtype=dtype)
        update = make_compressor(name, 5, k=k).compress(vector, seed=1)
        assert not update.dense().any()
        if name == "top-k":
            assert update.values.size == update.indices.size == 0


@each_dtype
@pytest.mark.parametrize("scale", ["tiny", "subnormal", "max"])
@each_compressor
def test_extreme_magnitudes_are_exact(name, dtype, scale):
    info = np.finfo(dtype)
    size = {"tiny": info.tiny, "subnormal": info.smallest_subnormal, "max": info.max}[scale]
    vector = np.array([size, -size, 0, size], dtype=dtype)
    update = make_compressor(name, 4, k=4).compress(vector, seed=0)
    np.testing.assert_array_equal(update.dense(), vector)
    if name == "top-k":
        np.testing.assert_array_equal(TopK(2, 4).compress(vector).indices, [0, 1])


# --- top-k: positions ----------------------------------------------------------------------------


@given(case=cases(max_size=30))
def test_top_k_is_the_stable_argsort(case):
    vector, k, _ = case
    np.testing.assert_array_equal(top_k_indices(vector, k), reference_top_k(vector, k))


@given(case=cases(max_size=30, ties=True))
def test_top_k_with_ties_is_the_stable_argsort(case):
    vector, k, _ = case
    np.testing.assert_array_equal(top_k_indices(vector, k), reference_top_k(vector, k))


@each_dtype
def test_top_k_of_a_long_vector_with_many_ties(dtype):
    draws = np.random.default_rng(0)
    vector = draws.integers(-20, 21, size=50_000).astype(dtype)
    for k in (1, 500, 20_000, 49_999):
        np.testing.assert_array_equal(top_k_indices(vector, k), reference_top_k(vector, k))


def test_top_k_ties_go_to_the_lower_index_whatever_the_sign():
    vector = np.array([1.0, -3.0, 3.0, -3.0, 2.0, 3.0])
    np.testing.assert_array_equal(top_k_indices(vector, 3), [1, 2, 3])
    np.testing.assert_array_equal(top_k_indices(vector, 5), [1, 2, 3, 4, 5])


def test_top_k_reads_strided_and_read_only_vectors():
    wide = np.arange(20.0)
    strided = wide[::-2]
    strided.flags.writeable = False
    np.testing.assert_array_equal(top_k_indices(strided, 3), [0, 1, 2])


# --- rand-k: positions ---------------------------------------------------------------------------


@given(st.integers(0, 2**64 - 1), st.integers(1, 40), st.data())
def test_drawn_indices_are_distinct_increasing_and_below_d(seed, d, data):
    k = data.draw(st.integers(1, d))
    indices = drawn_indices(seed, k, d)
    assert indices.shape == (k,)
    assert (np.diff(indices) > 0).all()
    assert indices[0] >= 0
    assert indices[-1] < d


@pytest.mark.parametrize(
    ("k", "d", "cells"),
    [(5, 50, 50), (30, 40, 40), (10, 20_000, 25)],
    ids=["few", "most", "sparse: numpy's other algorithm"],
)
def test_drawn_positions_are_uniform(k, d, cells):
    draws = 2000
    counts = np.zeros(cells)
    for seed in range(draws):
        np.add.at(counts, drawn_indices(seed, k, d) * cells // d, 1)
    expected = draws * k / cells
    # Draws without replacement vary less than multinomial ones: by (d - k) / (d - 1).
    statistic = np.sum((counts - expected) ** 2 / expected) * (d - 1) / (d - k)
    assert chi2.ppf(1e-4, cells - 1) < statistic < chi2.ppf(1 - 1e-4, cells - 1)


def test_drawn_sets_are_uniform_over_all_subsets():
    draws, subsets = 6000, dict.fromkeys(combinations(range(5), 2), 0)
    for seed in range(draws):
        subsets[tuple(drawn_indices(seed, 2, 5).tolist())] += 1
    expected = draws / len(subsets)
    statistic = sum((count - expected) ** 2 / expected for count in subsets.values())
    assert statistic < chi2.ppf(1 - 1e-4, len(subsets) - 1)


def test_drawn_indices_are_part_of_the_wire_format():
    # Both ends draw them: another stream or algorithm needs a new codec version.
    assert drawn_indices(7, 4, 20).tolist() == [2, 5, 15, 18]
    assert drawn_indices(7, 4, 100_000).tolist() == [16372, 29536, 87205, 97225]
    assert drawn_indices(2**64 - 1, 3, 5).tolist() == [0, 1, 3]


# --- what is refused -----------------------------------------------------------------------------


@each_compressor
@each_dtype
@pytest.mark.parametrize("bad", NOT_FINITE)
def test_one_entry_that_is_not_finite_is_refused_anywhere(name, dtype, bad):
    d = 5
    for background in (np.zeros(d), np.arange(1.0, d + 1), np.full(d, np.finfo(dtype).max)):
        for position in range(d):
            vector = background.astype(dtype)
            vector[position] = bad
            for k in range(1, d + 1):
                with pytest.raises(NonFiniteVector, match=f"{name}: .* NaN or infinite"):
                    make_compressor(name, d, k=k).compress(vector, seed=3)


@pytest.mark.parametrize("pattern", [0x7F800001, 0xFFC00000, 0x7FFFFFFF, 0x7F800000, 0xFF800000])
def test_top_k_refuses_every_pattern_above_the_finite_ones(pattern):
    vector = np.array([0, pattern, 0x7F7FFFFF], dtype=np.uint32).view(np.float32)
    for k in (1, 2, 3):
        with pytest.raises(NonFiniteVector):
            top_k_indices(vector, k)


@each_compressor
@pytest.mark.parametrize("shape", [(4,), (6,), (5, 1), (1, 5), ()])
def test_another_shape_is_refused(name, shape):
    with pytest.raises(ConfigError) as caught:
        make_compressor(name, 5, k=2).compress(np.ones(shape), seed=0)
    assert str(caught.value) == (
        f"{name}: vector must have shape (5,), got {shape}; "
        "make the compressor for the dimension of the vector"
    )


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.needs_k])
@pytest.mark.parametrize("k", [0, -1, 6, 10**12])
def test_k_out_of_range_is_refused(name, k):
    with pytest.raises(ConfigError) as caught:
        make_compressor(name, 5, k=k)
    assert str(caught.value) == (
        f"{name}: k must be in [1, d=5], got {k}; use compressor=identity to send everything"
    )


@given(st.integers(1, 10**6), st.floats(0, 1, exclude_min=True))
def test_k_fraction_gives_its_share_but_at_least_one_entry(d, fraction):
    for name in ("top-k", "rand-k"):
        compressor = make_compressor(name, d, k_fraction=fraction)
        assert compressor.max_entries == max(1, floor(fraction * d))
        assert make_compressor(name, d, k=1, k_fraction=fraction).max_entries == 1
