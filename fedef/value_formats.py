"""Number formats on the wire: float64, float32, bfloat16, float16, little-endian.

Rounding is to nearest, ties to even. A finite number beyond the largest of the format becomes
that largest: under error feedback the rest follows in later rounds, where an infinity would stay.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedef.vectors import Vector


@dataclass(frozen=True)
class ValueFormat:
    """How the values of an update travel."""

    name: str
    code: int
    """The byte in a payload's header."""
    value_bytes: int
    to_bytes: Callable[[Vector], bytes]
    from_buffer: Callable[[memoryview], Vector]
    """(k,) float64 for float64, float32 for the others; a copy."""


def _saturated(values: Vector, dtype: type[np.floating]) -> Vector:
    largest = float(np.finfo(dtype).max)
    return (
        np.clip(values, -largest, largest) if values.dtype.itemsize > dtype(0).itemsize else values
    )


def _native(
    dtype: type[np.floating], spelled: str
) -> tuple[Callable[[Vector], bytes], Callable[[memoryview], Vector]]:
    wire = np.dtype(spelled)

    def to_bytes(values: Vector) -> bytes:
        same = values.dtype == wire
        return (values if same else _saturated(values, dtype).astype(wire)).tobytes()

    def from_buffer(data: memoryview) -> Vector:
        return np.frombuffer(data, dtype=wire).astype(dtype)

    return to_bytes, from_buffer


def _rounded_to_odd(values: Vector) -> NDArray[np.uint32]:
    """Bits of float32 numbers whose last bit tells that something was cut off.

    A second rounding then sees on which side of a tie the float64 number was (Boldo and
    Melquiond, 2008).
    """
    wide = _saturated(values, np.float32)
    narrow = wide.astype(np.float32)
    bits = narrow.view(np.uint32)
    bits = bits - (np.abs(narrow) > np.abs(wide)).astype(np.uint32)
    marked: NDArray[np.uint32] = bits | (narrow != wide).astype(np.uint32)
    return marked


def _to_bfloat16(values: Vector) -> bytes:
    bits = values.view(np.uint32) if values.dtype == np.float32 else _rounded_to_odd(values)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(
        16
    )
    overflowed = (rounded & np.uint32(0x7FFF)) == 0x7F80
    result: NDArray[np.uint32] = np.where(overflowed, rounded - np.uint32(1), rounded)
    return result.astype("<u2").tobytes()


def _from_bfloat16(data: memoryview) -> Vector:
    bits = np.frombuffer(data, dtype="<u2").astype(np.uint32) << np.uint32(16)
    return bits.view(np.float32)


def _from_float16(data: memoryview) -> Vector:
    return np.frombuffer(data, dtype="<f2").astype(np.float32)


FORMATS: dict[str, ValueFormat] = {
    "float64": ValueFormat("float64", 0, 8, *_native(np.float64, "<f8")),
    "float32": ValueFormat("float32", 1, 4, *_native(np.float32, "<f4")),
    "bfloat16": ValueFormat("bfloat16", 2, 2, _to_bfloat16, _from_bfloat16),
    "float16": ValueFormat("float16", 3, 2, _native(np.float16, "<f2")[0], _from_float16),
}
BY_CODE = {value_format.code: value_format for value_format in FORMATS.values()}


def native_format(dtype: np.dtype[np.floating]) -> ValueFormat:
    """Return the format that carries `dtype` (float32 or float64) without rounding."""
    return FORMATS[np.dtype(dtype).name]
