"""Freed memory is kept for the next array: fresh pages can cost more than what is done in them."""

from __future__ import annotations

import numpy as np

_LARGEST_KEPT = 2**25 - 2**13


def keep_freed_memory() -> None:
    """Have the C library keep freed blocks of up to 32 MiB, rather than give each one back.

    glibc's malloc asks the system for every block above a threshold, 128 KiB at first, and each of
    its pages is cleared when it is touched: for vectors of 1e5 entries that is most of the time.
    Whoever frees such a block raises the threshold to its size, up to 32 MiB (mallopt(3),
    M_MMAP_THRESHOLD). So one is allocated here, never touched, and freed. Other C libraries do not
    mind.
    """
    np.empty(_LARGEST_KEPT, dtype=np.uint8)
