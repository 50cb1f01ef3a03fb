"""The codec: a bijection between updates and accepted bytes, and every refusal."""

import struct
import tracemalloc
from collections import Counter
from fractions import Fraction
from math import isfinite, lgamma, log
from random import Random
from zlib import crc32

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedef.codec import (
    FRAME_BYTES,
    decode,
    decode_dense,
    decode_many,
    encode,
    encode_dense,
    index_bytes,
    quantized,
)
from fedef.compressors import drawn_indices
from fedef.errors import CorruptPayload
from fedef.golomb import encode_indices
from fedef.updates import Update
from fedef.value_formats import FORMATS, native_format

KINDS = ("dense", "sparse", "seeded")
DTYPES = (np.float32, np.float64)
each_kind = pytest.mark.parametrize("kind", KINDS)
each_format = pytest.mark.parametrize("name", FORMATS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
HEADER_BYTES = 20


def finite(dtype, **kwargs):
    width = 8 * np.dtype(dtype).itemsize
    return st.floats(width=width, allow_nan=False, allow_infinity=False, **kwargs)


@st.composite
def updates(draw, kind=None, dtype=None):
    """Updates as compressors make them: a sparse one holds no zeros."""
    kind = kind or draw(st.sampled_from(KINDS))
    dtype = dtype or draw(st.sampled_from(DTYPES))
    d = draw(st.integers(1, 40))
    if kind == "dense":
        return Update(d, draw(arrays(dtype, d, elements=finite(dtype))))
    k = draw(st.integers(0 if kind == "sparse" else 1, d))
    values = draw(arrays(dtype, k, elements=finite(dtype)))
    if kind == "seeded":
        seed = draw(st.integers(0, 2**64 - 1))
        return Update(d, values, drawn_indices(seed, k, d), seed=seed)
    positions = draw(st.permutations(range(d)))[:k]
    values[values == 0] = 1
    return Update(d, values, np.array(sorted(positions), dtype=np.int64))


def assert_same(a, b):
    """Same entries at the same places, bit for bit, -0.0 included."""
    assert a.dimension == b.dimension
    assert a.seed == b.seed
    np.testing.assert_array_equal(a.values, b.values)
    np.testing.assert_array_equal(np.signbit(a.values), np.signbit(b.values))
    assert (a.indices is None) == (b.indices is None)
    if a.indices is not None:
        np.testing.assert_array_equal(a.indices, b.indices)


# --- round trip ----------------------------------------------------------------------------------


@each_kind
@each_format
@each_dtype
@given(data=st.data(), round=st.integers(0, 2**32 - 1))
def test_round_trip(kind, name, dtype, data, round):
    """decode(encode(q)) = q, encode(decode(b)) = b, and quantized is idempotent."""
    value_format = FORMATS[name]
    update = quantized(data.draw(updates(kind, dtype)), value_format)
    assert update.values.dtype == dtype
    encoded = encode(update, value_format, round=round)
    decoded = decode(encoded, dimension=update.dimension)
    assert decoded.kind == kind
    assert decoded.round == round
    assert decoded.value_format is value_format
    assert decoded.update.values.dtype == (np.float64 if name == "float64" else np.float32)
    assert_same(decoded.update, update)
    assert encode(decoded.update, value_format, round=round) == encoded
    assert_same(quantized(update, value_format), update)
    assert_same(quantized(decoded.update, value_format), update)
    assert decode(encoded, dimension=update.dimension, max_entries=update.values.size)


@each_format
@given(data=st.data())
def test_bytes_follow_the_documented_layout(name, data):
    value_format = FORMATS[name]
    update = quantized(data.draw(updates()), value_format)
    encoded = encode(update, value_format, round=3)
    k, d = update.values.size, update.dimension
    positions = (
        b""
        if update.indices is None or update.seed is not None
        else (encode_indices(update.indices, d))
    )
    seed = b"" if update.seed is None else update.seed.to_bytes(8, "little")
    kind = 2 if seed else 0 if update.indices is None else 1
    assert FRAME_BYTES == HEADER_BYTES + 4
    assert len(encoded) == 24 + len(seed) + k * value_format.value_bytes + len(positions)
    assert index_bytes(update) == len(positions)
    assert encoded[:8] == b"FDF\x01" + bytes([kind, value_format.code, 0, 0])
    assert struct.unpack_from("<III", encoded, 8) == (d, k, 3)
    body = encoded[HEADER_BYTES:-4]
    assert body.startswith(seed)
    assert body.endswith(positions)
    assert encoded[-4:] == crc32(encoded[:-4]).to_bytes(4, "little")


def test_the_format_is_pinned():
    """A change of these bytes needs a new version in the magic."""
    values = np.array([1.0, -2.5], dtype=np.float32)
    dense, sparse = Update(2, values), Update(9, values, np.array([3, 7]))
    seeded = Update(9, values, drawn_indices(5, 2, 9), seed=5)
    assert encode(dense, FORMATS["float32"], round=7) == bytes.fromhex(
        "46444601 00010000 02000000 02000000 07000000 0000803f 000020c0 02597ae4"
    )
    assert encode(sparse, FORMATS["bfloat16"], round=7) == bytes.fromhex(
        "46444601 01020000 09000000 02000000 07000000 803f20c0 14 4b269749"
    )
    # m = 256: the gaps 3 and 966 = 3 * 256 + 198 leave the remainders 00000011 and 11000110, bit
    # by bit in turn 01010000 00011110, then the quotients 1 and 0001: 50 1e 88.
    sparser = Update(1000, values, np.array([3, 970]))
    assert encode(sparser, FORMATS["float16"], round=7) == bytes.fromhex(
        "46444601 01030000 e8030000 02000000 07000000 003c00c1 501e88 21f2c66c"
    )
    assert encode(seeded, FORMATS["float16"], round=7) == bytes.fromhex(
        "46444601 02030000 09000000 02000000 07000000 05000000 00000000 003c00c1 b69e726e"
    )
    assert seeded.indices.tolist() == [1, 6]


@each_dtype
def test_dense_vectors_travel_unrounded_and_come_back_read_only(dtype):
    vector = np.array([0.1, -0.0, 5e-324, 1e30], dtype=dtype)
    back = decode_dense(encode_dense(vector, round=1), 4)
    assert back.dtype == dtype
    assert back.tobytes() == vector.tobytes()
    with pytest.raises(ValueError, match="read-only"):
        back[0] = 1.0


def test_the_native_format_does_not_round():
    assert native_format(np.dtype(np.float32)) is FORMATS["float32"]
    assert native_format(np.dtype(np.float64)) is FORMATS["float64"]


# --- rounding ------------------------------------------------------------------------------------

# Significand bits, least exponent of a normal number, largest finite number.
GRIDS = {
    "float64": (53, -1022, float(np.finfo(np.float64).max)),
    "float32": (24, -126, float(np.finfo(np.float32).max)),
    "bfloat16": (8, -126, (2 - 2.0**-7) * 2.0**127),
    "float16": (11, -14, 65504.0),
}


def nearest(value, name):
    """The nearest number of the format, ties to even, saturating: in exact arithmetic."""
    bits, least, largest = GRIDS[name]
    exact = Fraction(value)
    if exact == 0:
        return value
    magnitude = abs(exact)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    exponent -= magnitude < Fraction(2) ** exponent
    unit = Fraction(2) ** (max(exponent, least) - bits + 1)
    rounded = min(round(magnitude / unit) * unit, Fraction(largest))
    return float(np.copysign(float(rounded), value))


def sent(values, name):
    """What arrives when a dense update of these values is sent."""
    update = Update(values.size, values)
    encoded = encode(quantized(update, FORMATS[name]), FORMATS[name])
    return decode(encoded, dimension=values.size).update.values


@each_format
@each_dtype
@given(data=st.data())
def test_values_are_rounded_to_the_nearest_ties_to_even(name, dtype, data):
    values = data.draw(arrays(dtype, 8, elements=finite(dtype)))
    arrived = sent(values, name)
    expected = np.array([nearest(float(x), name) for x in values])
    np.testing.assert_array_equal(arrived, expected)
    np.testing.assert_array_equal(np.signbit(arrived), np.signbit(values))


def around(name):
    """Numbers at, just below and just above the ties of a format, over its whole range."""
    bits, least, largest = GRIDS[name]
    numbers = []
    for exponent in (least - bits, least - bits + 1, least - 1, least, -1, 0, 1, 14):
        for steps in (0.5, 1, 1.5, 2.5, 2 ** (bits - 1) - 0.5, 2 ** (bits - 1) + 0.5):
            unit = 2.0 ** (max(exponent, least) - bits + 1)
            numbers += [steps * unit, steps * unit * (1 + 2.0**-40), steps * unit * (1 - 2.0**-40)]
    numbers += [largest, largest * (1 + 2.0**-20), largest * 1.01, largest * 2]
    return np.array([x for x in numbers if isfinite(x)] + [-x for x in numbers if isfinite(x)])


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_rounding_around_ties_and_at_the_ends(name):
    wide = around(name)
    np.testing.assert_array_equal(sent(wide, name), [nearest(float(x), name) for x in wide])
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float32)
    narrow = narrow[np.isfinite(narrow)]
    np.testing.assert_array_equal(sent(narrow, name), [nearest(float(x), name) for x in narrow])


def every_upper_half():
    """All float32 numbers with a few lower halves: each bfloat16, its ties and its neighbours."""
    upper = np.arange(2**16, dtype=np.uint32) << np.uint32(16)
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=np.uint32)
    values = (upper[:, None] | lower).reshape(-1).view(np.float32)
    return values[np.isfinite(values)]


def test_bfloat16_is_torch_s_but_saturates():
    values = every_upper_half()
    expected = torch.from_numpy(values.copy()).to(torch.bfloat16).to(torch.float32).numpy()
    largest = float(torch.finfo(torch.bfloat16).max)
    assert np.isinf(expected).any()
    np.testing.assert_array_equal(sent(values, "bfloat16"), np.clip(expected, -largest, largest))


def test_float16_is_numpy_s_but_saturates():
    values = every_upper_half()
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    assert np.isinf(expected).any()
    np.testing.assert_array_equal(sent(values, "float16"), np.clip(expected, -65504, 65504))


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_values_that_round_to_zero_leave_a_sparse_update(name):
    bits, least, _ = GRIDS[name]
    tiny = 2.0 ** (least - bits)  # Half of the smallest number: the tie goes to zero.
    values = np.array([1.0, tiny, -tiny, tiny * 1.01, -2.0])
    indices = np.array([0, 3, 4, 6, 8])
    kept = quantized(Update(9, values, indices), FORMATS[name])
    assert kept.indices.tolist() == [0, 6, 8]
    assert kept.values.tolist() == [1.0, 2 * tiny, -2.0]
    arrived = decode(encode(kept, FORMATS[name]), dimension=9).update
    assert_same(arrived, kept)
    # A seeded update keeps its places: they are drawn, not sent.
    seeded = Update(9, values, drawn_indices(1, 5, 9), seed=1)
    assert quantized(seeded, FORMATS[name]).values.size == 5


def test_an_update_whose_values_all_vanish_is_empty():
    update = quantized(Update(3, np.array([1e-30]), np.array([2])), FORMATS["float16"])
    assert update.values.size == update.indices.size == 0
    assert len(encode(update, FORMATS["float16"])) == FRAME_BYTES


# --- bytes against the entropy -------------------------------------------------------------------


@pytest.mark.parametrize("density", [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 0.03, 0.056, 0.059, 0.1])
def test_index_bits_are_within_2_percent_of_the_entropy(density):
    d = 1_000_000
    k = round(density * d)
    free_bits = (lgamma(d + 1) - lgamma(k + 1) - lgamma(d - k + 1)) / log(2)
    draws = 10 if k < 10_000 else 1
    sizes = []
    for seed in range(draws):
        drawn = np.random.default_rng(seed).choice(d, size=k, replace=False, shuffle=False)
        sizes.append(8 * index_bytes(Update(d, np.ones(k), np.sort(drawn))))
    assert 0.98 * free_bits < np.mean(sizes) <= 1.02 * free_bits


# --- refusals ------------------------------------------------------------------------------------

D = 9
VALUES = np.array([1.0, -2.5], dtype=np.float32)
SPARSE = encode(Update(D, VALUES, np.array([3, 7])), FORMATS["float32"], round=1)
DENSE = encode(Update(D, np.arange(D, dtype=np.float32)), FORMATS["float32"], round=1)
SEEDED = encode(Update(D, VALUES, drawn_indices(5, 2, D), seed=5), FORMATS["float32"], round=1)


def resealed(framed):
    """The bytes with a checksum that matches, so that the checks behind it are reached."""
    return framed + crc32(framed).to_bytes(4, "little")


def patched(data, offset, replacement):
    framed = data[:-4]
    return resealed(framed[:offset] + replacement + framed[offset + len(replacement) :])


def u32(number):
    return number.to_bytes(4, "little")


def f32(number):
    return struct.pack("<f", number)


REFUSALS = {
    "nothing": (b"", "0 bytes, a frame has at least 24"),
    "a short frame": (SPARSE[:23], "23 bytes, a frame has at least 24"),
    "magic": (patched(SPARSE, 0, b"PK"), "not with fedef's version 1"),
    "another version": (patched(SPARSE, 3, b"\x02"), "not with fedef's version 1"),
    "first reserved byte": (patched(SPARSE, 6, b"\x01"), "not with fedef's version 1"),
    "second reserved byte": (patched(SPARSE, 7, b"\x80"), "not with fedef's version 1"),
    "kind": (patched(SPARSE, 4, b"\x03"), "unknown kind 3 or value format 1"),
    "value format": (patched(SPARSE, 5, b"\x04"), "unknown kind 1 or value format 4"),
    "another d": (patched(SPARSE, 8, u32(8)), "d=8, expected d=9"),
    "more entries than d": (patched(SPARSE, 12, u32(10)), "10 entries, at most 9 of d=9 fit"),
    "4e9 entries": (patched(SPARSE, 12, u32(4 * 10**9)), "4000000000 entries, at most 9"),
    "a dense part": (patched(SPARSE, 4, b"\x00"), "2 entries, at most 9 of d=9 fit"),
    "one entry more": (patched(SPARSE, 12, u32(4)), "do not hold 4 entries"),
    "truncated": (SPARSE[:-1], "the checksum does not match"),
    "truncated values": (SPARSE[:-8], "25 bytes do not hold 2 entries"),
    "extended": (SPARSE + b"\x00", "the checksum does not match"),
    "extended much": (SPARSE + bytes(50), "83 bytes do not hold 2 entries"),
    "a flipped bit": (SPARSE[:22] + bytes([SPARSE[22] ^ 1]) + SPARSE[23:], "the checksum does not"),
    "a flipped checksum": (SPARSE[:-1] + bytes([SPARSE[-1] ^ 1]), "the checksum does not match"),
    "another round": (SPARSE[:16] + b"\x02" + SPARSE[17:], "the checksum does not match"),
    "NaN": (patched(SPARSE, 20, f32(np.nan)), "values that are NaN or infinite"),
    "infinity": (patched(SPARSE, 24, f32(-np.inf)), "values that are NaN or infinite"),
    "zero": (patched(SPARSE, 20, f32(0.0)), "a sparse update holds no zeros"),
    "minus zero": (patched(SPARSE, 24, f32(-0.0)), "a sparse update holds no zeros"),
    "index beyond d": (patched(SPARSE, 28, b"\x03"), "position 13 is not below d=9"),
    "no index": (resealed(SPARSE[:28]), "0 of 2 gaps are present"),
    "cut remainders": (patched(SPARSE, 28, b"\xc3"), "the remainders are cut off"),
    "padding": (patched(SPARSE, 28, b"\x0b"), "the padding is not canonical"),
    "padding byte": (resealed(SPARSE[:-4] + b"\x00"), "the padding is not canonical"),
    "dense with too few": (patched(DENSE, 12, u32(1)), "1 entries, at most 9 of d=9"),
    "dense extended": (resealed(DENSE[:-4] + b"\x00"), "do not hold 9 entries"),
    "dense truncated": (resealed(DENSE[:-5]), "do not hold 9 entries"),
    "dense NaN": (patched(DENSE, 20, f32(np.nan)), "values that are NaN or infinite"),
    "seeded extended": (resealed(SEEDED[:-4] + b"\x00"), "do not hold 2 entries"),
    "seeded truncated": (resealed(SEEDED[:-5]), "do not hold 2 entries"),
    "seeded infinity": (patched(SEEDED, 28, f32(np.inf)), "values that are NaN or infinite"),
}


@pytest.mark.parametrize(("data", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refusal(data, message):
    with pytest.raises(CorruptPayload, match=message):
        decode(data, dimension=D)


def test_what_the_refused_payloads_were_made_from_is_accepted():
    for data in (SPARSE, DENSE, SEEDED, resealed(SPARSE[:-4])):
        assert decode(data, dimension=D).round == 1


def test_the_receiver_s_bounds_hold():
    assert decode(SPARSE, dimension=D, max_entries=2)
    with pytest.raises(CorruptPayload, match="2 entries, at most 1 of d=9 fit"):
        decode(SPARSE, dimension=D, max_entries=1)
    with pytest.raises(CorruptPayload, match="9 entries, at most 8 of d=9 fit"):
        decode(DENSE, dimension=D, max_entries=8)
    with pytest.raises(CorruptPayload, match="expected d=10"):
        decode(SPARSE, dimension=10)
    with pytest.raises(CorruptPayload, match="expected a dense one, got a sparse one"):
        decode_dense(SPARSE, D)


@each_format
@pytest.mark.parametrize("bits", ["NaN", "infinity"])
def test_no_format_carries_numbers_that_are_not_finite(name, bits):
    value_format = FORMATS[name]
    exponent_bits = {"float64": 11, "float32": 8, "bfloat16": 8, "float16": 5}[name]
    width = 8 * value_format.value_bytes
    infinity = (2**exponent_bits - 1) << (width - 1 - exponent_bits)
    pattern = infinity + (bits == "NaN")
    data = encode(Update(2, VALUES), value_format)
    for number in (pattern, pattern | 1 << (width - 1)):
        raw = number.to_bytes(value_format.value_bytes, "little")
        with pytest.raises(CorruptPayload, match="NaN or infinite"):
            decode(patched(data, HEADER_BYTES, raw), dimension=2)
        with pytest.raises(CorruptPayload, match="NaN or infinite"):
            decode(patched(data, HEADER_BYTES + len(raw), raw), dimension=2)


def allocated_by(action):
    """Peak of the bytes that Python and NumPy allocate meanwhile."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("value_format", [0, 1, 2, 3])
@pytest.mark.parametrize("dimension", [D, 2**32 - 1])
def test_a_header_that_promises_4e9_entries_allocates_nothing(kind, value_format, dimension):
    header = struct.pack("<4sBBHIII", b"FDF\x01", kind, value_format, 0, dimension, 4 * 10**9, 0)

    def receive():
        for body in (b"", bytes(100)):
            with pytest.raises(CorruptPayload):
                decode(resealed(header + body), dimension=dimension)

    receive()
    assert allocated_by(receive) < 20_000


def test_decoding_takes_memory_in_proportion_to_what_arrived():
    d, k = 2**32 - 1, 1000
    indices = np.linspace(0, d - 1, k).astype(np.int64)
    data = encode(Update(d, np.ones(k), indices), FORMATS["float64"])
    assert allocated_by(lambda: decode(data, dimension=d)) < 40 * len(data)


# --- mutated payloads ----------------------------------------------------------------------------


def seeds_of_mutation(seed=0):
    """Small payloads of every kind and format; few entries, so that decoding is quick."""
    draws = np.random.default_rng(seed)
    for value_format in FORMATS.values():
        for d, k in ((3, 3), (12, 2), (70, 9), (4000, 5)):
            values = draws.normal(size=k).astype(np.float32)
            indices = np.sort(draws.choice(d, size=k, replace=False))
            stream = int(draws.integers(2**63))
            made = [
                Update(d, values, indices),
                Update(d, values, drawn_indices(stream, k, d), stream),
            ]
            if d <= 12:
                made.append(Update(d, draws.normal(size=d).astype(np.float32)))
            for update in made:
                yield d, encode(quantized(update, value_format), value_format, round=5)


def mutant_of(data, draws):
    """One to three edits of a payload; seven of eight mutants carry a checksum that matches."""
    framed = bytearray(data[:-4])
    for _ in range(draws.randint(1, 3)):
        edit = draws.randrange(16)
        at = draws.randrange(len(framed)) if framed else 0
        if edit < 4 and len(framed) > HEADER_BYTES:  # a bit of the body
            framed[draws.randrange(HEADER_BYTES, len(framed))] ^= 1 << draws.randrange(8)
        elif edit < 8 and framed:  # a bit of the last bytes, where the positions are
            framed[-draws.randint(1, min(5, len(framed)))] ^= 1 << draws.randrange(8)
        elif edit < 10 and framed:  # a byte of the exponents or of the header
            framed[at] = draws.choice((0, 0x7F, 0x80, 0xFF))
        elif edit == 10 and framed:
            framed[at] ^= 1 << draws.randrange(8)
        elif edit == 11:
            del framed[at:]
        elif edit == 12:
            framed += draws.randbytes(draws.randint(1, 5))
        elif edit == 13 and len(framed) >= HEADER_BYTES:
            framed[draws.choice((4, 5, 6, 8, 12, 16))] = draws.randrange(5)
    return resealed(bytes(framed)) if draws.randrange(8) else bytes(framed) + data[-4:]


@pytest.mark.parametrize("mutants", [20_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_mutants_are_refused_or_canonical(mutants):
    draws = Random(1)
    originals = list(seeds_of_mutation())
    fates = Counter()

    def receive_all():
        for number in range(mutants):
            d, data = originals[number % len(originals)]
            mutant = mutant_of(data, draws)
            try:
                decoded = decode(mutant, dimension=d)
            except CorruptPayload as error:
                message = str(error)
                fates[next((reason for reason in REASONS if reason in message), message)] += 1
                continue
            assert encode(decoded.update, decoded.value_format, round=decoded.round) == mutant
            assert np.isfinite(decoded.update.values).all()
            fates["accepted"] += 1

    peak = allocated_by(receive_all)
    # No payload has 200 bytes and no vector more than 4000 entries.
    assert peak < 60_000
    # The mutants reach every check, so none of them passes for want of a case; a zero is rare.
    rare = {"holds no zeros"} if mutants < 100_000 else set()
    assert set(fates) | rare == {"accepted", *REASONS}
    assert fates["accepted"] > mutants / 4


def test_many_payloads_are_decoded_exactly_where_each_of_them_would_be(monkeypatch):
    """Groups of eight of one dimension, of all kinds, formats and sizes; of some, one a mutant."""
    monkeypatch.setattr("fedef.codec._ENTRIES_AT_ONCE", 20)
    draws = Random(2)
    originals = [data for seed in range(5) for data in seeds_of_mutation(seed)]
    fates = Counter()
    for _ in range(2000):
        d = draws.choice((3, 12, 70, 4000))
        group = draws.choices([data for of, data in originals if of == d], k=8)
        if draws.randrange(2):
            group[3] = mutant_of(group[3], draws)
        try:
            alone = [decode(data, dimension=d, largest=3.0) for data in group]
        except CorruptPayload:
            fates["refused"] += 1
            with pytest.raises(CorruptPayload):
                decode_many(group, dimension=d, largest=3.0)
            continue
        fates["accepted"] += 1
        together = decode_many(group, dimension=d, largest=3.0)
        for one, other in zip(alone, together, strict=True):
            assert (one.round, one.value_format) == (other.round, other.value_format)
            assert one.update.values.dtype == other.update.values.dtype
            assert_same(one.update, other.update)
    assert min(fates["refused"], fates["accepted"]) > 500


def test_many_empty_updates_and_none_at_all():
    empty = encode(Update(9, VALUES[:0], np.empty(0, dtype=np.int64)), FORMATS["float32"])
    assert [one.update.values.size for one in decode_many([empty] * 3, dimension=9)] == [0, 0, 0]
    assert decode_many([], dimension=9) == []


REASONS = (
    "a frame has at least",
    "not with fedef's version",
    "unknown kind",
    "expected d=",
    "entries, at most",
    "bytes do not hold",
    "checksum does not match",
    "NaN or infinite",
    "holds no zeros",
    "gaps are present",
    "remainders are cut off",
    "padding is not canonical",
    "is not below d=",
)
