"""Who takes part in a round: a pure function of (seed, round), never of node identities."""

import numpy as np

from fedef.randomness import stream


def participants(seed: int, round: int, num_clients: int, share: float) -> tuple[int, ...]:
    """max(1, round(share n)) clients, uniform without replacement, in increasing order.

    Every client takes part with the same marginal probability, as EF21-PP needs
    (arXiv:2110.03294, Section 4).
    """
    count = max(1, round_half_up(share * num_clients))
    if count >= num_clients:
        return tuple(range(num_clients))
    drawn = stream(seed, "participation", round).choice(
        num_clients, size=count, replace=False, shuffle=False
    )
    return tuple(int(client) for client in np.sort(drawn))


def round_half_up(value: float) -> int:
    """Nearest integer, halves up."""
    return int(value + 0.5)
