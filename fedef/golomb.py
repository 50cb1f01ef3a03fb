"""Sorted index sets as Golomb-coded gaps, vectorized.

Golomb (1966): a gap is ``q m + r``; q in unary (q zeros, then a one), r in truncated binary. For
k random positions out of d the optimal m is about ln(2) d/k (Gallager and van Voorhis, 1975).
Rice codes restrict m to powers of two and lose up to 2.1 % near k/d = 0.059; a general m stays
within 1 % of log2 C(d, k), for one more bit section. m follows from (d, k) in integer
arithmetic, so both ends agree and each index set has exactly one encoding.

Layout of the bit string: k short remainders of w bits, k unary quotients, the last bits of the
long remainders, zero padding to a full byte. The sum of the gaps is below d, so the unary section
has at most k + d/m bits whatever the indices are.
"""

import numpy as np
from numpy.typing import NDArray

from fedef.errors import CorruptPayload
from fedef.vectors import IntVector

Bits = NDArray[np.uint8]


def golomb_parameter(dimension: int, count: int) -> int:
    """M = max(1, floor(ln 2 * d / k)), with ln 2 as 45426/65536."""
    return max(1, (dimension * 45426) // (count * 65536))


def max_index_bytes(dimension: int, count: int) -> int:
    """Upper bound on the encoded size of `count` indices below `dimension`."""
    if count == 0:
        return 0
    m = golomb_parameter(dimension, count)
    bits = count * (m - 1).bit_length() + count + dimension // m
    return (bits + 7) // 8


def encode_indices(indices: IntVector, dimension: int) -> bytes:
    """Bytes of strictly increasing `indices` in [0, d)."""
    count = indices.size
    if count == 0:
        return b""
    m = golomb_parameter(dimension, count)
    gaps = np.empty(count, dtype=np.int64)
    gaps[0] = indices[0]
    np.subtract(indices[1:], indices[:-1], out=gaps[1:])
    gaps[1:] -= 1
    if m == 1:
        return np.packbits(_unary(gaps)).tobytes()
    quotients = gaps // m
    remainders = gaps - quotients * m
    width, cutoff = _remainder_code(m)
    is_long = remainders >= cutoff
    shifted = remainders + np.where(is_long, cutoff, 0)
    short = np.where(is_long, shifted >> 1, shifted)
    extra = (shifted[is_long] & 1).astype(np.uint8)
    return np.packbits(
        np.concatenate((_to_fixed(short, width), _unary(quotients), extra))
    ).tobytes()


def decode_indices(data: memoryview, count: int, dimension: int) -> IntVector:
    """Inverse of `encode_indices` for exactly `count` indices.

    Raises
    ------
    CorruptPayload
        If `data` is not the one encoding of an index set of this size.
    """
    if count == 0:
        if len(data):
            raise CorruptPayload("indices: bytes where none are expected")
        return np.empty(0, dtype=np.int64)
    if len(data) > max_index_bytes(dimension, count):
        raise CorruptPayload(
            f"indices: {len(data)} bytes for {count} of {dimension} positions, "
            f"at most {max_index_bytes(dimension, count)} are possible"
        )
    m = golomb_parameter(dimension, count)
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
    width, cutoff = _remainder_code(m)
    start = count * width
    ones = np.flatnonzero(bits[start:])
    if ones.size < count:
        raise CorruptPayload(f"indices: {ones.size} of {count} gaps are present")
    gaps = np.empty(count, dtype=np.int64)
    gaps[0] = ones[0]
    np.subtract(ones[1:count], ones[: count - 1], out=gaps[1:])
    gaps[1:] -= 1
    end = start + int(ones[count - 1]) + 1
    if m > 1:
        short = _from_fixed(bits[:start], width, count)
        long_at = np.flatnonzero(short >= cutoff)
        extra = bits[end : end + long_at.size]
        if extra.size < long_at.size:
            raise CorruptPayload("indices: the remainders are cut off")
        end += long_at.size
        short[long_at] += short[long_at] - cutoff + extra
        gaps = gaps * m + short
    if bits.size - end >= 8 or bits[end:].any():
        raise CorruptPayload("indices: the padding is not canonical")
    indices = np.cumsum(gaps + 1) - 1
    if indices[-1] >= dimension:
        raise CorruptPayload(f"indices: position {int(indices[-1])} is not below d={dimension}")
    return indices


def _remainder_code(m: int) -> tuple[int, int]:
    """Truncated binary of [0, m): remainders below the cutoff take w bits, the others w + 1."""
    bits = (m - 1).bit_length()
    return max(0, bits - 1), (1 << bits) - m


def _unary(quotients: IntVector) -> Bits:
    ends = np.cumsum(quotients + 1) - 1
    bits = np.zeros(int(ends[-1]) + 1, dtype=np.uint8)
    bits[ends] = 1
    return bits


def _word(width: int) -> tuple[str, int]:
    size = 1 if width <= 8 else 2 if width <= 16 else 4
    return f">u{size}", 8 * size


def _to_fixed(numbers: IntVector, width: int) -> Bits:
    if width == 0:
        return np.empty(0, dtype=np.uint8)
    word, word_bits = _word(width)
    bits = np.unpackbits(numbers.astype(word).view(np.uint8)).reshape(-1, word_bits)
    return bits[:, word_bits - width :].reshape(-1)


def _from_fixed(bits: Bits, width: int, count: int) -> IntVector:
    if width == 0:
        return np.zeros(count, dtype=np.int64)
    word, word_bits = _word(width)
    padded = np.zeros((count, word_bits), dtype=np.uint8)
    padded[:, word_bits - width :] = bits.reshape(count, width)
    return np.packbits(padded).view(word).astype(np.int64)
