"""Who takes part in a run, and how its clients behave: refusals, lost states, exclusions.

What a client that lost its g_i costs. The server's sum T = sum_i w_i g_i still holds the lost g_j,
and nothing in error feedback ever removes it. The exact ways out:

- ``stop``: the run ends with `StateMismatch`.
- ``evict-by-reset``: the server does not know g_j, so the one known sum is the empty one: T = 0,
  and every client starts again at g_i = 0 when it is asked next (and is told so by `Task.life`).
  Model, schedule and round go on. This is the method of arXiv:2410.16871 started at x^k with the
  zero initialization; the error of the start contracts as it did at x^0.
- ``dense-resync``: the same, but the first message of each client after it is dense, so that
  g = mean grad f_i(x^k) once each has answered; n d values once.
- ``evict-by-mirror``: the server keeps every g_i, so T loses w_j g_j alone, and client j starts
  again at zero.
- ``hand-back``: the server sends the mirror's g_j to client j, which goes on with it. Only its
  momentum and its local buffers start anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedef.errors import ConfigError
from fedef.refusals import LOST_STATE, OFFENCES
from fedef.state import ClientRecord, Conduct

STOP, RESET, RESYNC, EVICT, HAND_BACK = (
    "stop",
    "evict-by-reset",
    "dense-resync",
    "evict-by-mirror",
    "hand-back",
)
MIRRORED = frozenset({EVICT, HAND_BACK})

_BLAMELESS = Conduct()


@dataclass(frozen=True)
class Policies:
    """What to do about clients that fail or lie."""

    on_lost_state: str = STOP
    max_refusals: int = 10
    """Offences in a row, or lost states in all, after which a client is excluded; 0: never."""


def checked_weights(weights: Sequence[float]) -> tuple[float, ...]:
    """Weights of the clients.

    Raises
    ------
    ConfigError
        If one is negative or not finite, or all are zero.
    """
    if not weights or not all(np.isfinite(w) and w >= 0 for w in weights) or not sum(weights) > 0:
        raise ConfigError(
            f"weights must be finite, not negative and not all zero, got {list(weights)[:8]}"
        )
    return tuple(float(weight) for weight in weights)


class Members:
    """The clients of a run as the server sees them, one round after the other."""

    def __init__(
        self, weights: Sequence[float], conduct: Mapping[int, Conduct], policies: Policies
    ) -> None:
        self.weights = checked_weights(weights)
        self.conduct = dict(conduct)
        self.policies = policies
        self._refused: dict[int, list[str]] = {}

    def of(self, client: int) -> Conduct:
        """How a client has behaved so far."""
        return self.conduct.get(client, _BLAMELESS)

    def present(self, clients: Iterable[int]) -> list[int]:
        """Those that are not excluded, each once, in order."""
        return [client for client in sorted(set(clients)) if not self.of(client).excluded]

    def total_weight(self, records: Mapping[int, ClientRecord]) -> float:
        """Sum of the weights of the clients that are in the mean.

        An excluded client is in it only as long as its g_i is.
        """
        weights = np.array(self.weights, dtype=np.float64)
        gone = [c for c, of in self.conduct.items() if of.excluded and c not in records]
        weights[gone] = 0.0
        return float(np.add.reduce(weights))

    def weigh(self, client: int, weight: float) -> None:
        """Give a client another weight."""
        changed = [weight if c == client else w for c, w in enumerate(self.weights)]
        self.weights = checked_weights(changed)

    def refused(self, client: int, reason: str) -> None:
        """Remember a refusal until the round ends."""
        self._refused.setdefault(client, []).append(reason)

    @property
    def lost(self) -> list[int]:
        """Clients that said in this round that they lost their state."""
        return sorted(client for client, reasons in self._refused.items() if LOST_STATE in reasons)

    def end_round(self, accepted: Iterable[int]) -> tuple[list[int], list[int]]:
        """Book the round; return the clients that lost their state and those now excluded."""
        lost, before = self.lost, set(self.excluded)
        for client, reasons in self._refused.items():
            of = self.of(client)
            self.conduct[client] = replace(
                of,
                refused=of.refused + len(reasons),
                strikes=of.strikes + sum(reason in OFFENCES for reason in reasons),
                claims=of.claims + reasons.count(LOST_STATE),
            )
        for client in set(accepted) & self.conduct.keys():
            good = replace(self.conduct[client], handing_back=False)
            self.conduct[client] = good if client in self._refused else replace(good, strikes=0)
        limit = self.policies.max_refusals
        for client, reasons in self._refused.items():
            of = self.conduct[client]
            if limit and max(of.strikes, of.claims) >= limit:
                self.conduct[client] = replace(of, excluded=of.excluded or reasons[-1])
        self._refused = {}
        return lost, sorted(set(self.excluded) - before)

    @property
    def excluded(self) -> dict[int, str]:
        """Excluded clients and the last reason."""
        return {client: of.excluded for client, of in self.conduct.items() if of.excluded}

    def start_again(self, client: int, *, handing_back: bool = False) -> None:
        """Have a client begin a new life: at g_i = 0, or at the mirror's g_i."""
        of = self.of(client)
        self.conduct[client] = replace(of, lives=of.lives + 1, handing_back=handing_back)
