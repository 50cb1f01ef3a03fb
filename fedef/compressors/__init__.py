"""Contractive compressors: values that know their constant alpha.

E||C(v) - v||^2 <= (1 - alpha) ||v||^2 for every v (arXiv:2106.05203, Section 2).
"""

from fedef.compressors.base import Compressor, NonFiniteVector
from fedef.compressors.identity import Identity
from fedef.compressors.rand_k import RandK, drawn_indices
from fedef.compressors.registry import NAMES, make_compressor
from fedef.compressors.top_k import TopK, top_k_indices

__all__ = [
    "NAMES",
    "Compressor",
    "Identity",
    "NonFiniteVector",
    "RandK",
    "TopK",
    "drawn_indices",
    "make_compressor",
    "top_k_indices",
]
