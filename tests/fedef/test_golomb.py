"""Golomb-coded index sets: a bijection between sets of k positions and their encodings."""

from itertools import combinations
from math import comb, lgamma, log

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedef.errors import CorruptPayload
from fedef.golomb import (
    decode_indices,
    decode_many_indices,
    encode_indices,
    golomb_parameter,
    max_index_bytes,
)

LARGEST = 2**32 - 1


def as_indices(positions):
    return np.array(sorted(positions), dtype=np.int64)


def round_trip(indices, d):
    data = encode_indices(indices, d)
    back = decode_indices(memoryview(data), indices.size, d)
    assert back.dtype == np.int64
    np.testing.assert_array_equal(back, indices)
    assert len(data) <= max_index_bytes(d, indices.size)
    return data


@st.composite
def index_sets(draw):
    d = draw(st.one_of(st.integers(1, 60), st.integers(1, LARGEST)))
    return d, draw(st.sets(st.integers(0, d - 1), max_size=60))


@given(index_sets())
@example((1, {0}))
@example((LARGEST, {LARGEST - 1}))
@example((LARGEST, {0, LARGEST - 1}))
@example((LARGEST, set(range(50))))
@example((10**6, set(range(10**6 - 300, 10**6))))
def test_round_trip(case):
    d, positions = case
    round_trip(as_indices(positions), d)


@given(st.integers(1, 3000))
def test_round_trip_of_everything_and_of_one(d):
    assert len(round_trip(np.arange(d), d)) == (d + 7) // 8
    round_trip(as_indices([0]), d)
    round_trip(as_indices([d - 1]), d)


@pytest.mark.parametrize("k", [1, 2, 59, 1000, 30_000])
@pytest.mark.parametrize("shape", ["first", "last", "both ends", "spread", "only the last far"])
def test_adversarial_sets_stay_within_the_bound(k, shape):
    d = 65_537
    half = k // 2
    positions = {
        "first": range(k),
        "last": range(d - k, d),
        "both ends": [*range(half), *range(d - (k - half), d)],
        "spread": [i * d // k for i in range(k)],
        "only the last far": [*range(k - 1), d - 1],
    }[shape]
    round_trip(as_indices(positions), d)


@pytest.mark.parametrize(("d", "most"), [(1, 1), (2, 2), (7, 7), (11, 11), (40, 2), (90, 2)])
def test_every_set_of_a_small_dimension_has_an_encoding_of_its_own(d, most):
    for k in range(1, most + 1):
        encodings = {round_trip(as_indices(s), d) for s in combinations(range(d), k)}
        assert len(encodings) == comb(d, k)
        # The bound is what the worst set takes, or one byte more: the receiver reserves no more.
        assert max_index_bytes(d, k) - max(map(len, encodings)) in (0, 1)


@pytest.mark.parametrize(
    ("d", "k"), [(4, 4), (6, 2), (9, 2), (10, 3), (14, 2), (41, 1), (82, 2), (100, 2)]
)
def test_exactly_the_encodings_are_accepted(d, k):
    """All strings of up to two bytes: what is decoded is each index set once, nothing else."""
    assert max_index_bytes(d, k) <= 2
    accepted = set()
    for length in range(3):
        for number in range(256**length):
            data = number.to_bytes(length, "big")
            try:
                indices = decode_indices(memoryview(data), k, d)
            except CorruptPayload:
                continue
            assert encode_indices(indices, d) == data
            accepted.add(tuple(indices.tolist()))
    assert accepted == set(combinations(range(d), k))


@pytest.mark.parametrize(("d", "k"), [(10, 3), (41, 1), (100, 2)])
def test_many_are_decoded_together_exactly_where_each_of_them_would_be(d, k):
    """Strings of up to two bytes, every seventh of two, each between two good ones; both codes."""
    good = [encode_indices(as_indices(s), d) for s in (range(k), range(d - k, d))]
    for length in range(3):
        for number in range(0, 256**length, 7 if length == 2 else 1):
            parts = [memoryview(p) for p in (good[0], number.to_bytes(length, "big"), good[1])]
            try:
                alone = [decode_indices(part, k, d) for part in parts]
            except CorruptPayload:
                with pytest.raises(CorruptPayload):
                    decode_many_indices(parts, k, d)
            else:
                together = decode_many_indices(parts, k, d)
                assert together.dtype == np.int64
                np.testing.assert_array_equal(together, alone)


@given(st.integers(1, LARGEST), st.integers(0, 40), st.integers(0, 5), st.data())
def test_many_index_sets_of_one_size_come_back_together(d, k, n, data):
    k = min(k, d)
    sets = st.sets(st.integers(0, d - 1), min_size=k, max_size=k)
    wanted = [as_indices(data.draw(sets)) for _ in range(n)]
    parts = [memoryview(encode_indices(indices, d)) for indices in wanted]
    together = decode_many_indices(parts, k, d)
    assert together.shape == (n, k)
    np.testing.assert_array_equal(together, np.array(wanted).reshape(n, k))


@given(st.binary(max_size=60), st.integers(0, 40), st.integers(1, LARGEST))
def test_arbitrary_bytes_never_crash(data, count, d):
    try:
        indices = decode_indices(memoryview(data), min(count, d), d)
    except CorruptPayload:
        return
    assert encode_indices(indices, d) == data


@given(st.binary(min_size=1, max_size=12), st.integers(1, 40))
def test_arbitrary_bytes_of_a_small_dimension_never_crash(data, d):
    for count in range(d + 1):
        try:
            indices = decode_indices(memoryview(data), count, d)
        except CorruptPayload:
            continue
        assert indices.size == count
        assert encode_indices(indices, d) == data


@pytest.mark.parametrize(
    ("data", "count", "d", "message"),
    [
        (b"\x00", 0, 9, "bytes where none are expected"),
        (b"\x80\x00\x00", 1, 9, "3 bytes for 1 of 9 positions, at most 1 fit"),
        (b"", 1, 9, "0 of 1 gaps are present"),
        (b"\x00", 1, 9, "0 of 1 gaps are present"),
        (b"\xe1", 3, 3, "the padding is not canonical"),
        (b"\xff\x80", 2, 9, "the padding is not canonical"),
        (b"\xc3", 2, 9, "the remainders are cut off"),
        (b"\x20", 3, 3, "gaps are present"),
        (b"\x38", 3, 3, "position 4 is not below d=3"),
    ],
)
def test_refusals_say_why(data, count, d, message):
    with pytest.raises(CorruptPayload, match=message):
        decode_indices(memoryview(data), count, d)


@given(st.integers(1, LARGEST), st.data())
def test_the_parameter_is_near_ln_2_times_the_mean_gap(d, data):
    """A power of two for sparse sets, a floor for dense ones: at most a factor sqrt(2) off."""
    k = data.draw(st.integers(1, d))
    m, best = golomb_parameter(d, k), log(2) * d / k
    if 40 * k < d:
        assert m.bit_count() == 1
        assert 0.694 * best <= m <= 1.389 * best
    else:
        assert max(1.0, best * (1 - 3e-6) - 1) <= m <= max(1.0, best)


@given(st.integers(1, LARGEST), st.data())
def test_the_bound_is_close_to_the_number_of_sets(d, data):
    """At most 2.5 bits an index and a byte above log2 C(d, k): no room for over-allocation."""
    k = data.draw(st.integers(1, min(d, 10**6)))
    free_bits = (lgamma(d + 1) - lgamma(k + 1) - lgamma(d - k + 1)) / log(2)
    assert 8 * max_index_bytes(d, k) <= free_bits + 2.5 * k + 8 + 1e-3
