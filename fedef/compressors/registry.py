"""From the configuration's names to compressors: a new family is one file and one row here."""

from collections.abc import Callable
from math import floor

from fedef.compressors.base import Compressor
from fedef.compressors.identity import Identity
from fedef.compressors.rand_k import RandK
from fedef.compressors.top_k import TopK

_FAMILIES: dict[str, Callable[[int, int], Compressor]] = {
    "identity": lambda k, d: Identity(d),
    "top-k": TopK,
    "rand-k": RandK,
}
NAMES = tuple(_FAMILIES)


def make_compressor(
    name: str, dimension: int, *, k: int | None = None, k_fraction: float = 1.0
) -> Compressor:
    """Compressor `name` for (d,) vectors with `k` entries, or max(1, floor(k_fraction d)) of them.

    Raises
    ------
    ConfigError
        If k is outside [1, d].
    """
    return _FAMILIES[name](max(1, floor(k_fraction * dimension)) if k is None else k, dimension)
