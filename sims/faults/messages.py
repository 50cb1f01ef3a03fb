"""Which message meets which fault: a function of (seed, round, client).

So a round that a restarted server repeats meets the same faults again.
"""

from __future__ import annotations

import numpy as np

from fedef.randomness import stream

NOT_SENT, DROPPED, HELD_BACK, TWICE, FLIPPED = (
    "task-not-sent",
    "reply-dropped",
    "reply-held-back",
    "reply-twice",
    "reply-flipped",
)
KINDS = (NOT_SENT, DROPPED, HELD_BACK, TWICE, FLIPPED)

CALM_ROUNDS = 2
"""Rounds at the end without any fault, for which all clients must be there."""

SHARE, LOG, CALM = "FEDEF_FAULTS_SHARE", "FEDEF_FAULTS_LOG", "FEDEF_FAULTS_CALM"
"""Environment variables: the share of messages, the file that gets a line for each fault, and the
file whose existence says that no more faults come. Flower refuses keys that the app lacks."""


def drawn(share: float, seed: int, round: int, client: int) -> str | None:
    """Fault of a client's message in a round; None: none."""
    draws = stream(seed, "message-faults", round, client)
    return KINDS[int(draws.integers(len(KINDS)))] if draws.uniform() < share else None


def flipped(data: bytes, draws: np.random.Generator) -> bytes:
    """Return the bytes, of which there is one at least, with one bit changed."""
    changed = bytearray(data)
    changed[int(draws.integers(len(data)))] ^= 1 << int(draws.integers(8))
    return bytes(changed)
