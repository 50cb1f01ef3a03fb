"""Reading a reply's update: decoded, and of the form that an honest client of the run sends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedef.codec import Decoded, decode, decode_many
from fedef.compressors import Compressor
from fedef.errors import CorruptPayload
from fedef.messages import UPDATE, Reply, Task
from fedef.methods import Method
from fedef.randomness import stream_seed
from fedef.updates import Update

LARGEST_VALUE = 1e150
"""Values beyond it are refused: one of them must not overflow the mean or its squared norm."""


@dataclass(frozen=True)
class Reader:
    """Knows what updates of one run look like. It holds no state, so that it works anywhere."""

    method: Method
    seed: int
    """The run's."""

    def update(self, reply: Reply, task: Task) -> Update:
        """Return the update in a reply to a task.

        Raises
        ------
        CorruptPayload
            If the payload is not canonical, or not one that this run's honest clients would send.
        """
        compressor = self._compressor(task)
        decoded = decode(
            reply.update,
            dimension=compressor.dimension,
            max_entries=compressor.max_entries,
            largest=LARGEST_VALUE,
        )
        self._check_form(decoded, compressor, reply)
        return decoded.update

    def sparse_updates(
        self, replies: Sequence[Reply], tasks: Sequence[Task]
    ) -> list[Update | None]:
        """Return the sparse update in each reply to its task, many in less time than one by one.

        None where there is no update, a dense one, or one that `update` would refuse.
        """
        pairs = list(zip(replies, tasks, strict=True))
        try:
            return self._sparse_together(pairs)
        except CorruptPayload:
            return [self._sparse(*pair) for pair in pairs]

    def _sparse_together(self, pairs: Sequence[tuple[Reply, Task]]) -> list[Update | None]:
        """As `sparse_updates`.

        Raises
        ------
        CorruptPayload
            If any of the updates that are not dense is refused.
        """
        compressor = self.method.compressor
        read = [
            (place, reply)
            for place, (reply, task) in enumerate(pairs)
            if reply.status == UPDATE and self._compressor(task).kind != "dense"
        ]
        together = decode_many(
            [reply.update for _, reply in read],
            dimension=compressor.dimension,
            max_entries=compressor.max_entries,
            largest=LARGEST_VALUE,
        )
        updates: list[Update | None] = [None] * len(pairs)
        for (place, reply), decoded in zip(read, together, strict=True):
            self._check_form(decoded, compressor, reply)
            updates[place] = decoded.update
        return updates

    def _sparse(self, reply: Reply, task: Task) -> Update | None:
        if reply.status != UPDATE or self._compressor(task).kind == "dense":
            return None
        try:
            return self.update(reply, task)
        except CorruptPayload:
            return None

    def _compressor(self, task: Task) -> Compressor:
        return self.method.compressor_of(acked=task.acked, dense=task.dense)

    def _check_form(self, decoded: Decoded, compressor: Compressor, reply: Reply) -> None:
        """Refuse what the method does not make."""
        expected, entries = compressor.kind, decoded.update.values.size
        if decoded.kind != expected or decoded.value_format is not self.method.value_format:
            raise CorruptPayload(f"a {decoded.kind} payload where a {expected} one is expected")
        if decoded.round != reply.round:
            raise CorruptPayload("the payload is of another round than the reply")
        # Top-k leaves out entries that are zero; a dense one has all d, or it was not decoded.
        if expected == "seeded" and entries != compressor.max_entries:
            raise CorruptPayload(f"{entries} entries where {compressor.max_entries} are drawn")
        if expected == "seeded" and decoded.update.seed != stream_seed(
            self.seed, "compressor", reply.client, reply.round
        ):
            raise CorruptPayload("the positions are not those that the shared seed draws")
