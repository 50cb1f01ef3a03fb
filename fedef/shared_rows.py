"""Rows that clients share, drawn whenever a client is asked: for more clients than rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np

from fedef.randomness import stream
from fedef.vectors import IntVector


class SharedRows(Sequence[IntVector]):
    """Rows of each client: classes in shares from Dir(alpha), with replacement.

    No partition: a row may be with many clients, and with one client twice. A client's rows depend
    on (seed, client) alone and are drawn whenever they are wanted: nothing is held for any client.

    Parameters
    ----------
    labels
        (N,) the class of each row.
    num_clients
        n.
    rows
        m: rows of each client.
    dirichlet_alpha
        alpha: small means few classes per client.
    seed
        The run's seed.
    """

    def __init__(
        self,
        labels: IntVector,
        *,
        num_clients: int,
        rows: int,
        dirichlet_alpha: float,
        seed: int,
    ) -> None:
        classes, counts = np.unique(labels, return_counts=True)
        self._order = np.argsort(labels, kind="stable")
        self._starts, self._counts = np.cumsum(counts) - counts, counts
        self._alpha = np.full(classes.size, dirichlet_alpha)
        self._num_clients, self.size, self._seed = num_clients, rows, seed

    def __len__(self) -> int:
        return self._num_clients

    @overload
    def __getitem__(self, client: int) -> IntVector: ...
    @overload
    def __getitem__(self, client: slice) -> list[IntVector]: ...
    def __getitem__(self, client: int | slice) -> IntVector | list[IntVector]:
        if isinstance(client, slice):
            return [self._draw(each) for each in range(*client.indices(len(self)))]
        if not 0 <= client < len(self):
            raise IndexError(client)
        return self._draw(client)

    def _draw(self, client: int) -> IntVector:
        """(m,) ascending."""
        draws = stream(self._seed, "shared-rows", client)
        shares = np.cumsum(draws.dirichlet(self._alpha))
        which, where = draws.random((2, self.size))
        # A share may sum to a little less than 1: the last class takes the rest.
        held = np.minimum(np.searchsorted(shares, which, side="right"), self._alpha.size - 1)
        inside = (where * self._counts[held]).astype(np.int64)
        return np.sort(self._order[self._starts[held] + inside])


def sizes_of(parts: Sequence[IntVector]) -> tuple[int, ...]:
    """Rows of each client, drawing none."""
    if isinstance(parts, SharedRows):
        return (parts.size,) * len(parts)
    return tuple(len(part) for part in parts)
