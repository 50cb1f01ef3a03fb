"""From the configuration's names to compressors: a new family is one file and one row here."""

from collections.abc import Callable
from decimal import Decimal

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
    return _FAMILIES[name](
        max(1, _floor_of_decimal(k_fraction, dimension)) if k is None else k, dimension
    )


def _floor_of_decimal(fraction: float, dimension: int) -> int:
    """floor(h d) of h as it is written: 0.29 of 100 is 29, although 0.29 * 100 is 28.999..."""
    return int(Decimal(repr(fraction)) * dimension)
