"""Named random streams: the same name gives the same draws on any worker, engine or restart."""

import hashlib

import numpy as np

from fedef.errors import ConfigError


def stream_seed(seed: int, name: str, *indices: int) -> int:
    """64-bit seed of the stream called `name`, e.g. ``stream_seed(seed, "rand-k", client, round)``.

    The first 8 bytes, little-endian, of BLAKE2b over the exact decimal spelling of the arguments:
    no two different names share a stream, and no generator is global.

    Raises
    ------
    ConfigError
        If `name` has a slash, which separates it from the indices.
    """
    if "/" in name:
        raise ConfigError(f"stream: a name must not have a slash, got {name!r}")
    spelled = "/".join([str(int(seed)), name, *(str(int(index)) for index in indices)])
    return int.from_bytes(hashlib.blake2b(spelled.encode(), digest_size=8).digest(), "little")


def generator_from(stream: int) -> np.random.Generator:
    """Philox generator (counter-based, Salmon et al. 2011) for a 64-bit stream seed."""
    return np.random.Generator(np.random.Philox(key=stream))


def stream(seed: int, name: str, *indices: int) -> np.random.Generator:
    """Return the generator of a named stream; see `stream_seed`.

    Examples
    --------
    >>> a = stream(0, "minibatch", 3, 17).integers(1000, size=2)
    >>> b = stream(0, "minibatch", 3, 17).integers(1000, size=2)
    >>> bool((a == b).all())
    True
    """
    return generator_from(stream_seed(seed, name, *indices))
