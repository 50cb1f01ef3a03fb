"""What happened in a federation with faults."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Tally:
    """What happened."""

    strikes: Counter[str] = field(default_factory=Counter)
    """Kills, full disks and moved clocks, by what was struck."""
    message_faults: dict[str, int] = field(default_factory=dict)
    """Injected on the server, by kind."""
    wire_faults: dict[str, int] = field(default_factory=dict)
    """Done to connections, by kind."""
    full_disk_errors: int = 0
    """Errors of clients that name their full disk, as the server's log has them."""
    hung_nodes: int = 0
    """SuperNodes that lost their connection, did not end, and had to be ended."""
    node_starts: int = 0
    submissions: int = 0
    rounds_checked: int = 0
    largest_error: float = 0.0
    """max |g - weighted mean of the clients' g_i| over all checks, relative to max |g|."""
    lost_replies: int = 0
    same_bits: bool = False
    """Whether the inline run with the same losses ends in the same model."""
    seconds: float = 0.0
