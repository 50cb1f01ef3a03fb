"""What a client says of its independent gradient g', so that the server learns ||mean g'_i||."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedef.codec import decode_dense, encode_dense
from fedef.randomness import stream_seed
from fedef.sketch import decode_sketch, encode_sketch, sketch, squared_norm
from fedef.vectors import Vector, norm


class Summary(Protocol):
    """A short vector whose weighted mean over the clients tells the norm."""

    def encode(self, gradient: Vector, *, round: int) -> bytes:
        """Bytes of one client's summary."""

    def decode(self, data: bytes) -> Vector:
        """Summary of untrusted bytes; CorruptPayload if they are none."""

    def norm(self, mean: Vector) -> float:
        """Estimate of ||mean g'_i|| from the mean of the summaries."""


@dataclass(frozen=True)
class SketchSummary:
    """A linear sketch of g' from a seed that all clients share; see `sketch`.

    The mean of the sketches is the sketch of the mean, so the squared norm is unbiased under any
    heterogeneity.
    """

    seed: int
    size: int
    """m numbers."""

    def encode(self, gradient: Vector, *, round: int) -> bytes:
        """24 + 4 m bytes."""
        seed = stream_seed(self.seed, "sketch", round)
        return encode_sketch(sketch(gradient, seed=seed, size=self.size), round=round)

    def decode(self, data: bytes) -> Vector:
        """(m,) numbers."""
        return decode_sketch(data, size=self.size)

    def norm(self, mean: Vector) -> float:
        """||S mean g'||."""
        return float(np.sqrt(squared_norm(mean)))


@dataclass(frozen=True)
class NormSummary:
    """The number ||g'_i|| alone: exact for one client.

    The mean of norms is at least the norm of the mean, and under heterogeneity many times it.
    """

    def encode(self, gradient: Vector, *, round: int) -> bytes:
        """32 bytes."""
        return encode_dense(np.array([norm(gradient)]), round=round)

    def decode(self, data: bytes) -> Vector:
        """(1,) number."""
        return decode_dense(data, 1)

    def norm(self, mean: Vector) -> float:
        """Mean of the clients' norms."""
        return float(mean[0])
