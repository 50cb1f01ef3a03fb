"""Sorted index sets as Golomb-Rice coded gaps, vectorized.

Golomb (1966): a gap is ``q m + r``; q in unary (q zeros, then a one), r in binary. For k random
positions out of d the best m is about ln(2) d/k (Gallager and van Voorhis, 1975). Rice's powers
of two are the fastest and lose less than 1.5 % against log2 C(d, k) below k/d = 1/40; above, where
they would lose up to 2.1 %, m is general and r in truncated binary. m follows from (d, k) in
integer arithmetic, so both ends agree and each index set has exactly one encoding.

Layout of the bit string: the highest bits of the k remainders, then their next ones, down to the
last of w; the k unary quotients; the last bits of the long remainders (general m only); zero
padding to a full byte. The sum of the gaps is below d, so the unary section has at most k + d/m
bits whatever the indices are.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedef.errors import CorruptPayload
from fedef.vectors import IntVector

Bits = NDArray[np.uint8]
_NO_BITS: Bits = np.empty(0, dtype=np.uint8)


@lru_cache(maxsize=256)
def golomb_parameter(dimension: int, count: int) -> int:
    """M for `count` of `dimension` positions, at least 1.

    Below k/d = 1/40 the least power of two from 0.4812 d/k on, where two neighbors cost the same
    (at (1 - p)^m = 0.618, the golden ratio); else floor(ln(2) d/k). Fractions are of 65536.
    """
    if 40 * count >= dimension:
        return max(1, (dimension * 45426) // (count * 65536))
    least = -((-dimension * 31537) // (count * 65536))
    return 1 << (least - 1).bit_length()


@lru_cache(maxsize=256)
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
    width, cutoff = _remainder_code(m)
    gaps = np.empty(count, dtype=np.int64)
    gaps[0] = indices[0] + 1
    np.subtract(indices[1:], indices[:-1], out=gaps[1:])
    gaps -= 1
    quotients = gaps // m if cutoff < m else gaps >> width
    ends = quotients.cumsum()
    ends += _counting(count)
    start = count * width
    end = start + int(ends[-1]) + 1
    low, extra = gaps, _NO_BITS
    if cutoff < m:
        low, extra = _split_remainders(gaps - quotients * m, cutoff)
    bits = np.zeros(end + extra.size, dtype=np.uint8)
    if width:
        bits[:start].reshape(width, count)[:] = _low_bits(low, width)
    bits[start:end][ends] = 1
    if extra.size:
        bits[end:] = extra
    return np.packbits(bits).tobytes()


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
    most = max_index_bytes(dimension, count)
    if len(data) > most:
        raise CorruptPayload(
            f"indices: {len(data)} bytes for {count} of {dimension} positions, at most {most} fit"
        )
    m = golomb_parameter(dimension, count)
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
    width, cutoff = _remainder_code(m)
    start = count * width
    ones = bits[start:].view(np.bool_).nonzero()[0]
    if ones.size < count:
        raise CorruptPayload(f"indices: {ones.size} of {count} gaps are present")
    ones = ones[:count]
    end = start + int(ones[-1]) + 1
    remainders = _from_low_bits(bits[:start], width, count)
    if cutoff < m:
        long_at = (remainders >= cutoff).nonzero()[0]
        extra = bits[end : end + long_at.size]
        if extra.size < long_at.size:
            raise CorruptPayload("indices: the remainders are cut off")
        end += long_at.size
        remainders[long_at] += remainders[long_at] - cutoff + extra
    if bits.size - end >= 8 or bits[end:].any():
        raise CorruptPayload("indices: the padding is not canonical")
    # The j-th one stands behind j earlier ones and the sum of the quotients, so that
    # index_j = m (ones_j - j) + (sum of the remainders) + j.
    indices = ones * m
    indices += remainders.cumsum()
    indices -= _counting(count) * (m - 1)
    if indices[-1] >= dimension:
        raise CorruptPayload(f"indices: position {int(indices[-1])} is not below d={dimension}")
    return indices


def decode_many_indices(parts: Sequence[memoryview], count: int, dimension: int) -> IntVector:
    """(n, k) `decode_indices` of each of n parts, in one pass where the code is Rice's.

    Raises
    ------
    CorruptPayload
        If any of them is not the one encoding of an index set of this size.
    """
    m = golomb_parameter(dimension, count) if count else 0
    width, cutoff = _remainder_code(m) if count else (0, 0)
    most = max_index_bytes(dimension, count)
    sizes = np.array([len(part) for part in parts], dtype=np.int64)
    if not parts or not count or cutoff < m or sizes.max() > most:
        rows = [decode_indices(part, count, dimension) for part in parts]
        return np.array(rows, dtype=np.int64).reshape(len(parts), count)
    length = int(sizes.max())
    padded = np.frombuffer(b"".join([bytes(part).ljust(length, b"\0") for part in parts]), np.uint8)
    bits = np.unpackbits(padded.reshape(len(parts), length), axis=1)
    start = count * width
    unary = np.ascontiguousarray(bits[:, start:]).view(np.bool_)
    ones = np.flatnonzero(unary)
    firsts = np.arange(len(parts)) * unary.shape[1]
    if (np.count_nonzero(unary, axis=1) != count).any():
        raise CorruptPayload(f"indices: not exactly {count} gaps are present")
    indices: IntVector = ones.reshape(len(parts), count) - firsts[:, np.newaxis]
    if (8 * sizes - start - indices[:, -1] > 8).any():
        raise CorruptPayload("indices: the padding is not canonical")
    # As in `decode_indices`.
    indices *= m
    if width:
        planes = bits[:, :start].reshape(len(parts), width, count)
        indices += _words_of(planes).cumsum(axis=1, dtype=np.int64)
    indices -= _counting(count) * (m - 1)
    if (indices[:, -1] >= dimension).any():
        raise CorruptPayload(f"indices: a position is not below d={dimension}")
    return indices


def _words_of(planes: Bits) -> NDArray[Any]:
    """(n, k) the numbers whose bits are the w planes of (n, w, k), the highest first."""
    width = planes.shape[1]
    words: NDArray[Any] = planes[:, 0].astype(np.uint8 if width <= 8 else np.uint32)
    for plane in range(1, width):
        np.left_shift(words, 1, out=words)
        np.bitwise_or(words, planes[:, plane], out=words)
    return words


@lru_cache(maxsize=8)
def _counting(count: int) -> IntVector:
    """0, 1, ..., k - 1, read-only."""
    numbers = np.arange(count)
    numbers.flags.writeable = False
    return numbers


@lru_cache(maxsize=256)
def _remainder_code(m: int) -> tuple[int, int]:
    """Return w and the least remainder that takes w + 1 bits; m where all take w."""
    bits = (m - 1).bit_length()
    if m == 1 << bits:
        return bits, m
    return bits - 1, (1 << bits) - m


def _split_remainders(remainders: IntVector, cutoff: int) -> tuple[IntVector, Bits]:
    """Truncated binary: r below the cutoff as it is, the others as r + cutoff in w + 1 bits."""
    is_long = remainders >= cutoff
    words = remainders + np.where(is_long, cutoff, remainders)
    return words >> 1, (words[is_long] & 1).astype(np.uint8)


def _word(width: int) -> tuple[str, int]:
    size = 1 if width <= 8 else 2 if width <= 16 else 4
    return f">u{size}", 8 * size


def _low_bits(numbers: IntVector, width: int) -> Bits:
    """(width, k) the low bits of each number, the highest first."""
    word, word_bits = _word(width)
    bits = np.unpackbits(numbers.astype(word).view(np.uint8)).reshape(-1, word_bits)
    return bits.T[word_bits - width :]


def _from_low_bits(bits: Bits, width: int, count: int) -> IntVector:
    if width == 0:
        return np.zeros(count, dtype=np.int64)
    word, word_bits = _word(width)
    padded = np.zeros((count, word_bits), dtype=np.uint8)
    padded.T[word_bits - width :] = bits.reshape(width, count)
    return np.packbits(padded).view(word).astype(np.int64)
