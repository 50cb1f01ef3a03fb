"""What happens to the bytes between a node and the SuperLink, below TLS.

A changed byte breaks the connection, since TLS authenticates what it carries: nothing changed is
ever accepted. The node connects again.
"""

from __future__ import annotations

import threading
import time
from collections import Counter

import numpy as np

from sims.faults.messages import flipped

DELAYED, CUT, CHANGED = "piece-delayed", "connection-cut", "byte-changed"
KINDS = (DELAYED, CUT, CHANGED)
LONGEST_DELAY_SECONDS = 3.0


class WireFaults:
    """Spoils pieces of streams; a proxy's `on_piece`.

    Parameters
    ----------
    share
        Of the pieces, each up to 64 KiB; may be set anew.
    draws
        Decides; which piece meets which draw is up to the network.
    """

    def __init__(self, share: float, draws: np.random.Generator) -> None:
        self.share, self._draws = share, draws
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, piece: bytes) -> bytes | None:
        """Return what is passed on of a piece, perhaps later; None: cut the connection."""
        with self._lock:
            if self._draws.uniform() >= self.share:
                return piece
            kind = KINDS[int(self._draws.integers(len(KINDS)))]
            self.counts[kind] += 1
            wait = float(self._draws.uniform(0.0, LONGEST_DELAY_SECONDS))
            changed = flipped(piece, self._draws)
        if kind == DELAYED:
            time.sleep(wait)
            return piece
        return None if kind == CUT else changed
