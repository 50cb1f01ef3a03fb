"""Reading a reply's update: decoded, and of the form that an honest client of the run sends."""

from __future__ import annotations

from dataclasses import dataclass

from fedef.codec import Decoded, decode
from fedef.compressors import Compressor, Identity
from fedef.errors import CorruptPayload
from fedef.messages import Reply, Task
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
        compressor = self.method.compressor
        if task.dense or (self.method.dense_start and task.acked == 0):
            compressor = Identity(compressor.dimension)
        decoded = decode(
            reply.update,
            dimension=compressor.dimension,
            max_entries=compressor.max_entries,
            largest=LARGEST_VALUE,
        )
        self._check_form(decoded, compressor, reply)
        return decoded.update

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
