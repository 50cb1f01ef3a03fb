"""A linear sketch of m numbers whose squared norm estimates a vector's: ||mean g_i|| for few bytes.

Clients that share a seed send S g_i and the server averages: mean_i S g_i = S mean_i g_i, so the
estimate is that of the mean vector. The mean of the clients' own norms estimates something else:
mean_i ||g_i|| >= ||mean_i g_i||, by a factor that grows as clients disagree.
"""

from functools import lru_cache

import numpy as np

from fedef.codec import decode, encode
from fedef.compressors.base import require_finite
from fedef.errors import ConfigError, CorruptPayload
from fedef.randomness import generator_from
from fedef.updates import Update
from fedef.value_formats import FORMATS, ValueFormat
from fedef.vectors import IntVector, Vector

DEFAULT_SIZE = 256
"""m: an error of 8.8 % rms at most, 1048 bytes as float32 or 536 as bfloat16."""
MAX_SIZE = 2**24
_FLOAT32 = FORMATS["float32"]


def sketch(vector: Vector, *, seed: int, size: int = DEFAULT_SIZE) -> Vector:
    """(S v)_b = sum over i with h(i) = b of s(i) v_i, h uniform on m buckets, s on {-1, +1}.

    One row of the count sketch (Charikar, Chen, Farach-Colton, ICALP 2002), used for the second
    moment as in arXiv:2008.08654. There h and s are 4-universal hash functions; here every
    coordinate draws its own, which needs a table of 8 d bytes, kept for the last two seeds.

    Parameters
    ----------
    vector
        (d,) v, floating point.
    seed
        64-bit stream seed, the same for all whose sketches are averaged; a new one each round
        makes the errors of different rounds independent.
    size
        m, from 1 to 2^24.

    Returns
    -------
    Vector
        (m,) float64. Linear in v up to rounding; S depends on (seed, d, m) alone.

    Raises
    ------
    ConfigError
        If the vector is not flat and floating point, or seed or size is out of range.
    NonFiniteVector
        If an entry is NaN or infinite.
    """
    if vector.ndim != 1 or not np.issubdtype(vector.dtype, np.floating):
        raise ConfigError(
            f"sketch: vector must be flat and floating point, got {vector.dtype} of shape "
            f"{vector.shape}; flatten it first"
        )
    if not 0 <= seed < 2**64:
        raise ConfigError(f"sketch: seed must be in [0, 2^64), got {seed}; use stream_seed()")
    if not 1 <= size <= MAX_SIZE:
        raise ConfigError(
            f"sketch: size must be in [1, {MAX_SIZE}], got {size}; the default is {DEFAULT_SIZE}"
        )
    require_finite("sketch", vector)
    cells = _cells(seed, vector.size, size)
    sums = np.bincount(cells, weights=vector, minlength=2 * size).astype(np.float64, copy=False)
    return sums[:size] - sums[size:]


def squared_norm(sketched: Vector) -> float:
    """||S v||^2, an unbiased estimate of ||v||^2.

    E = ||v||^2 and Var = 2 (||v||_2^4 - ||v||_4^4) / m <= 2 ||v||^4 / m  (derived here):
    ||S v||^2 - ||v||^2 = 2 sum_{i<j} [h(i) = h(j)] s(i) s(j) v_i v_j, whose terms have mean zero,
    are uncorrelated, and have variance v_i^2 v_j^2 / m each. m = 1 is the estimator of Alon,
    Matias and Szegedy (STOC 1996). The mean of t rows of m/t buckets has this very variance at t
    times the cost, so there is one row.

    The root ||S v|| is biased, by Jensen: about -1/(4m) of ||v||, -0.1 % at m = 256.
    """
    return float(np.add.reduce(np.square(sketched.astype(np.float64))))


def encode_sketch(sketched: Vector, *, round: int, value_format: ValueFormat = _FLOAT32) -> bytes:
    """Bytes of the codec's dense kind: 24, and m values.

    Rounding moves each number by 2^-24 of itself at most in float32, by 2^-8 in bfloat16. A number
    beyond the format's largest becomes that largest, and the estimate too small.
    """
    return encode(Update(sketched.size, sketched), value_format, round=round)


def decode_sketch(data: bytes, *, size: int = DEFAULT_SIZE) -> Vector:
    """(m,) of `encode_sketch`, for untrusted bytes.

    Raises
    ------
    CorruptPayload
        If the bytes are not a canonical dense payload of `size` finite numbers.
    """
    decoded = decode(data, dimension=size)
    if decoded.kind != "dense":
        raise CorruptPayload(f"sketch: expected a dense payload, got a {decoded.kind} one")
    return decoded.update.values


@lru_cache(maxsize=2)
def _cells(seed: int, dimension: int, size: int) -> IntVector:
    """(d,) uniform on [0, 2m): the bucket, plus m where the sign is -1.

    Made of Philox's raw bits, which no release of NumPy changes: the upper 32 bits times 2m over
    2^32, uniform up to 2m / 2^32. The clients of one process share a round's table.
    """
    raw = generator_from(seed).bit_generator.random_raw(dimension)
    cells = ((raw >> np.uint64(32)) * np.uint64(2 * size) >> np.uint64(32)).astype(np.int64)
    cells.flags.writeable = False
    return cells
