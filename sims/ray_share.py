"""What a worker returns of a round: its clients' encoded replies, and the updates read in them.

Decoding is most of what a server does with a reply, and needs nothing that the server alone knows.
So each worker decodes the bytes that its clients have encoded, and checks them, beside the others,
where the driver would do all one by one. The entries of a whole shard travel as two arrays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from fedef.errors import CorruptPayload
from fedef.messages import UPDATE, Reply, Task
from fedef.reader import Reader
from fedef.updates import Update
from fedef.vectors import Vector


@dataclass(frozen=True, eq=False)
class Share:
    """The replies of a shard's clients."""

    replies: Sequence[Reply]
    entries: Sequence[int | None]
    """Number of entries of each update; None: it is to be decoded by the driver."""
    seeds: Sequence[int | None]
    """See `Update`."""
    positions: NDArray[np.uint32]
    """Of all entries, one update after the other."""
    values: Vector
    """Likewise."""

    @classmethod
    def of(cls, reader: Reader, tasks: Sequence[Task], replies: Sequence[Reply]) -> Share:
        """Decode the sparse updates; dense ones are left: they are no work, and large."""
        updates = [_sparse(reader, *pair) for pair in zip(replies, tasks, strict=True)]
        read = [update for update in updates if update is not None]
        nothing = Update(0, np.empty(0, dtype=np.float32), np.empty(0, dtype=np.int64))
        return cls(
            replies=replies,
            entries=[None if update is None else update.values.size for update in updates],
            seeds=[None if update is None else update.seed for update in updates],
            positions=np.concatenate([u.where for u in read or [nothing]]).astype(np.uint32),
            values=np.concatenate([u.values for u in read or [nothing]]),
        )

    def updates(self, dimension: int) -> Iterator[tuple[Reply, Update | None]]:
        """Each reply with its update."""
        positions = self.positions.astype(np.int64)
        ends = accumulate((count or 0 for count in self.entries), initial=0)
        for reply, count, seed, (start, end) in zip(
            self.replies, self.entries, self.seeds, pairwise(ends), strict=True
        ):
            if count is None:
                yield reply, None
            else:
                at = slice(start, end)
                yield reply, Update(dimension, self.values[at], positions[at], seed)


def _sparse(reader: Reader, reply: Reply, task: Task) -> Update | None:
    """What a reply's sparse update says; None for others, the driver judges them."""
    if reply.status != UPDATE:
        return None
    try:
        update = reader.update(reply, task)
    except CorruptPayload:
        return None
    return None if update.indices is None else update
