"""Why the server refuses a reply: the words that reports and summaries count it under."""

from __future__ import annotations

ALIEN = "alien"
"""Of another run, or of no client that was asked."""
STALE = "stale"
"""To another round, or made on another base than the server's mean contains."""
DUPLICATE = "duplicate"
"""Of a client whose update is already there."""
LOST_STATE = "lost-state"
"""The client does not hold the state that the server's mean contains, and says so."""
MALFORMED = "malformed"
"""Not what an honest client of this run sends."""
LARGE_NORM = "norm"
"""Larger than a factor of the median of the round's updates."""
OFFENCES = frozenset({MALFORMED, ALIEN, LARGE_NORM, LOST_STATE})
"""Refusals that an honest client on an honest transport does not earn."""
