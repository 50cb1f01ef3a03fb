"""The one codec: an update or a model as canonical, checksummed bytes.

Layout, little-endian: magic ``FDF`` and version 1 (4 bytes), kind, value format, two zero bytes,
d, number of entries, round (4 bytes each); the body; CRC32 of all before it (4 bytes).

====== ========================== ==================================================
kind   body                       meaning
====== ========================== ==================================================
dense  values                     every entry
sparse values, Golomb-coded gaps  entries that differ from zero (top-k)
seeded seed (8 bytes), values     positions drawn from the seed, none sent (rand-k)
====== ========================== ==================================================

Decoding runs no code, allocates only what the receiver's own bounds allow, and refuses every byte
string that encoding would not produce: ``encode(decode(data)) == data`` for all accepted data.
"""

from __future__ import annotations

import struct
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple
from zlib import crc32

import numpy as np

from fedef.compressors.rand_k import drawn_indices
from fedef.errors import CorruptPayload
from fedef.golomb import decode_indices, decode_many_indices, encode_indices, max_index_bytes
from fedef.updates import Update
from fedef.value_formats import BY_CODE, FORMATS, ValueFormat
from fedef.vectors import Vector

_MAGIC = b"FDF\x01"
_HEADER = struct.Struct("<4sBBHIII")
_SEED = struct.Struct("<Q")
_CHECKSUM = struct.Struct("<I")
DENSE, SPARSE, SEEDED = 0, 1, 2
_KIND_NAMES = {DENSE: "dense", SPARSE: "sparse", SEEDED: "seeded"}
FRAME_BYTES = _HEADER.size + _CHECKSUM.size
_ENTRIES_AT_ONCE = 2**16
"""Of the updates that are decoded in one pass: half a megabyte of positions."""


@dataclass(frozen=True)
class Decoded:
    """A payload's content."""

    update: Update
    round: int
    value_format: ValueFormat

    @property
    def kind(self) -> str:
        """One of dense, sparse and seeded."""
        return _KIND_NAMES[_kind(self.update)]


def quantized(update: Update, value_format: ValueFormat) -> Update:
    """Return the update that the receiver of ``encode(update, value_format)`` will decode.

    Both ends add this one, so a lossy format cannot make them drift. Values that round to zero
    leave a sparse update, since its encoding holds no zeros (top-k never selects one).
    """
    dtype = update.values.dtype
    if value_format.value_bytes < dtype.itemsize:
        sent = value_format.to_bytes(update.values)
        values = value_format.from_buffer(memoryview(sent)).astype(dtype)
        update = replace(update, values=values)
        if update.indices is not None and update.seed is None:
            kept = np.flatnonzero(values)
            update = replace(update, values=values[kept], indices=update.indices[kept])
    return update


def encode(update: Update, value_format: ValueFormat, *, round: int = 0) -> bytes:
    """Bytes of an update that is already `quantized` to the format."""
    kind = _kind(update)
    header = _HEADER.pack(
        _MAGIC, kind, value_format.code, 0, update.dimension, update.values.size, round
    )
    seed, tail = b"", b""
    if update.seed is not None:
        seed = _SEED.pack(update.seed)
    elif update.indices is not None:
        tail = encode_indices(update.indices, update.dimension)
    parts = (header, seed, value_format.to_bytes(update.values), tail)
    checksum = 0
    for part in parts:
        checksum = crc32(part, checksum)
    return b"".join((*parts, _CHECKSUM.pack(checksum)))


def decode(
    data: bytes,
    *,
    dimension: int,
    max_entries: int | None = None,
    largest: float = sys.float_info.max,
) -> Decoded:
    """Inverse of `encode` for untrusted bytes.

    Parameters
    ----------
    data
        What was received.
    dimension
        d, as the receiver knows it; any other is refused.
    max_entries
        The most entries that are accepted; None: d.
    largest
        The largest magnitude that is accepted.

    Raises
    ------
    CorruptPayload
        If the bytes are not canonical, not finite, or beyond the bounds. Nothing larger than the
        bounds is allocated.
    """
    return _content(_opened(data, dimension, max_entries), dimension, largest)


def decode_many(
    payloads: Sequence[bytes],
    *,
    dimension: int,
    max_entries: int | None = None,
    largest: float = sys.float_info.max,
) -> list[Decoded]:
    """`decode` of each, sparse ones of one size together: in half of the time for many.

    Raises
    ------
    CorruptPayload
        If any of them is refused.
    """
    frames = [_opened(data, dimension, max_entries) for data in payloads]
    alike: dict[tuple[int, ValueFormat, int], list[int]] = defaultdict(list)
    for place, frame in enumerate(frames):
        alike[frame.kind, frame.value_format, frame.entries].append(place)
    decoded: dict[int, Decoded] = {}
    for (kind, _, entries), places in alike.items():
        step = max(1, _ENTRIES_AT_ONCE // max(1, entries)) if kind == SPARSE else 1
        for start in range(0, len(places), step):
            part = places[start : start + step]
            contents = _contents([frames[place] for place in part], dimension, largest)
            decoded |= zip(part, contents, strict=True)
    return [decoded[place] for place in range(len(payloads))]


class _Frame(NamedTuple):
    """A payload whose header, length and checksum are in order."""

    kind: int
    value_format: ValueFormat
    entries: int
    round: int
    values: memoryview
    tail: memoryview
    seed: int | None


def _opened(data: bytes, dimension: int, max_entries: int | None) -> _Frame:
    bound = dimension if max_entries is None else max_entries
    if len(data) < FRAME_BYTES:
        raise CorruptPayload(f"payload: {len(data)} bytes, a frame has at least {FRAME_BYTES}")
    magic, kind, code, reserved, declared, count, round = _HEADER.unpack_from(data)
    if magic != _MAGIC or reserved:
        raise CorruptPayload(f"payload: starts with {data[:8].hex()}, not with fedef's version 1")
    if kind not in _KIND_NAMES or code not in BY_CODE:
        raise CorruptPayload(f"payload: unknown kind {kind} or value format {code}")
    if declared != dimension:
        raise CorruptPayload(f"payload: d={declared}, expected d={dimension}")
    if count > bound or (kind == DENSE and count != dimension):
        raise CorruptPayload(f"payload: {count} entries, at most {bound} of d={dimension} fit")
    value_format = BY_CODE[code]
    view = memoryview(data)
    start = _HEADER.size + (_SEED.size if kind == SEEDED else 0)
    stop = start + count * value_format.value_bytes
    end = len(data) - _CHECKSUM.size
    slack = max_index_bytes(dimension, count) if kind == SPARSE else 0
    if not stop <= end <= stop + slack:
        raise CorruptPayload(f"payload: {len(data)} bytes do not hold {count} entries")
    if crc32(view[:end]) != _CHECKSUM.unpack_from(data, end)[0]:
        raise CorruptPayload("payload: the checksum does not match; it was changed on the way")
    seed = _SEED.unpack_from(data, _HEADER.size)[0] if kind == SEEDED else None
    return _Frame(kind, value_format, count, round, view[start:stop], view[stop:end], seed)


def _content(frame: _Frame, dimension: int, largest: float) -> Decoded:
    kind, value_format, entries, round, raw, tail, seed = frame
    values = value_format.from_buffer(raw)
    _check_values(values, kind, largest)
    indices = None
    if kind == SPARSE:
        indices = decode_indices(tail, entries, dimension)
    elif seed is not None:
        indices = drawn_indices(seed, entries, dimension)
    return Decoded(Update(dimension, values, indices, seed), round, value_format)


def _contents(frames: Sequence[_Frame], dimension: int, largest: float) -> list[Decoded]:
    """Of frames that differ in their round, values and positions alone; sparse if many."""
    if len(frames) == 1:
        return [_content(frames[0], dimension, largest)]
    kind, value_format, entries, *_ = frames[0]
    joined = b"".join([frame.values for frame in frames])
    values = value_format.from_buffer(memoryview(joined)).reshape(len(frames), entries)
    _check_values(values, kind, largest)
    indices = decode_many_indices([frame.tail for frame in frames], entries, dimension)
    return [
        Decoded(Update(dimension, row, at), frame.round, value_format)
        for frame, row, at in zip(frames, values, indices, strict=True)
    ]


def _check_values(values: Vector, kind: int, largest: float) -> None:
    # NaN propagates through the maximum and fails the comparison, as an infinity does.
    if not float(np.max(np.abs(values), initial=0.0)) <= largest:
        raise CorruptPayload(f"payload: values that are NaN or infinite, or beyond {largest:g}")
    if kind == SPARSE and not values.all():
        raise CorruptPayload("payload: a sparse update holds no zeros")


def encode_dense(vector: Vector, *, round: int) -> bytes:
    """Bytes of a whole float32 or float64 vector, unrounded."""
    return encode(Update(vector.size, vector), FORMATS[vector.dtype.name], round=round)


@lru_cache(maxsize=4)
def decode_dense(data: bytes, dimension: int) -> Vector:
    """Read-only vector of `encode_dense`.

    The last results are kept: the clients of one process share the round's model.

    Raises
    ------
    CorruptPayload
        If the bytes are not a dense payload of this dimension.
    """
    decoded = decode(data, dimension=dimension)
    if decoded.update.indices is not None:
        raise CorruptPayload(f"payload: expected a dense one, got a {decoded.kind} one")
    values = decoded.update.values
    values.flags.writeable = False
    return values


def index_bytes(update: Update) -> int:
    """How many bytes of the encoded update tell positions."""
    if update.indices is None or update.seed is not None:
        return 0
    return len(encode_indices(update.indices, update.dimension))


def _kind(update: Update) -> int:
    if update.seed is not None:
        return SEEDED
    return DENSE if update.indices is None else SPARSE
