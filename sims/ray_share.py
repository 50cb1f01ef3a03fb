"""What a worker returns of a round: its clients' encoded replies, and the updates read in them.

Decoding is most of what a server does with a reply, and needs nothing that the server alone knows.
So each worker decodes the bytes that its clients have encoded, and checks them, beside the others,
where the driver would do all one by one. The entries of a whole shard travel as two arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate, pairwise
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from fedef.messages import Field, Reply, Task
from fedef.reader import Reader
from fedef.updates import Update
from fedef.vectors import Vector

_values_of: Callable[[Reply], tuple[Field, ...]] = attrgetter(*(f.name for f in fields(Reply)))


@dataclass(frozen=True, eq=False)
class Share:
    """The replies of a shard's clients."""

    replies: Sequence[tuple[Field, ...]]
    """The fields of each, which a pickle holds in half of the time that it takes for objects."""
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
        updates = reader.sparse_updates(replies, tasks)
        read = [update for update in updates if update is not None]
        nothing = Update(0, np.empty(0, dtype=np.float32), np.empty(0, dtype=np.int64))
        return cls(
            replies=[_values_of(reply) for reply in replies],
            entries=[None if update is None else update.values.size for update in updates],
            seeds=[None if update is None else update.seed for update in updates],
            positions=np.concatenate([u.where for u in read or [nothing]]).astype(np.uint32),
            values=np.concatenate([u.values for u in read or [nothing]]),
        )

    def updates(self, dimension: int) -> Iterator[tuple[Reply, Update | None]]:
        """Each reply with its update."""
        positions = self.positions.astype(np.int64)
        ends = accumulate((count or 0 for count in self.entries), initial=0)
        for values, count, seed, (start, end) in zip(
            self.replies, self.entries, self.seeds, pairwise(ends), strict=True
        ):
            reply = Reply(*values)  # type: ignore[arg-type]  # as `_values_of` took them out
            if count is None:
                yield reply, None
            else:
                at = slice(start, end)
                yield reply, Update(dimension, self.values[at], positions[at], seed)
