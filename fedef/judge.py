"""Judging a reply: what it brings to the round, or why it is refused."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import numpy as np

from fedef.codec import decode_dense
from fedef.errors import CorruptPayload, StateMismatch
from fedef.members import STOP
from fedef.messages import NON_FINITE, STALE_TASK, STATE_MISMATCH, UPDATE, Reply, Task
from fedef.reader import Reader
from fedef.refusals import LOST_STATE, MALFORMED, STALE
from fedef.state import next_digest
from fedef.updates import Update
from fedef.vectors import Vector


@dataclass(frozen=True)
class Accepted:
    """What a reply brings."""

    update: Update
    """c_i."""
    buffers: Vector
    """(b,) the client's buffers after the pass; empty where there are none."""
    loss: float
    """f_i(x^k), or its minibatch estimate."""
    digest: bytes
    """Hash chain over the client's payloads, this one included."""
    summary: Vector | None
    """Of an independent gradient; None where the method needs none."""
    evaluations: int
    """Gradients of single examples that were computed."""


@dataclass(frozen=True)
class Judge:
    """Knows what an honest client of one run sends."""

    reader: Reader
    num_buffers: int
    """b: length of the buffers that travel."""
    on_lost_state: str
    """The policy."""

    def verdict(self, reply: Reply, task: Task, update: Update | None = None) -> Accepted | str:
        """Return what the reply to a task brings, or the reason for a refusal.

        `update`: what a `Reader` has read in it; None: it is read here.

        Raises
        ------
        StateMismatch
            If the client lost its state, and the policy is to stop.
        """
        if reply.status in (STATE_MISMATCH, STALE_TASK):
            if self.on_lost_state != STOP:
                return LOST_STATE
            raise StateMismatch(
                f"client {reply.client} holds the state of round {reply.version} "
                f"({reply.digest.hex()}), the server's mean contains its state of round "
                f"{task.acked} ({task.digest.hex()}): the client lost its state, or the server "
                "was restored from an older checkpoint. Restore both sides from the same "
                "checkpoint, go on with another on-lost-state, or start the run again"
            )
        if (reply.version, reply.digest) != (task.acked, task.digest):
            return STALE  # made on another base, in another run of the same configuration say
        if reply.status == NON_FINITE:
            return NON_FINITE
        if reply.status != UPDATE:
            return MALFORMED
        try:
            return self._decoded(reply, task, update)
        except CorruptPayload:
            return MALFORMED

    def _decoded(self, reply: Reply, task: Task, update: Update | None) -> Accepted:
        if update is None:
            update = self.reader.update(reply, task)
        if not isfinite(reply.loss):
            raise CorruptPayload("the loss is not finite")
        buffers: Vector = np.empty(0)
        if self.num_buffers:
            buffers = decode_dense(reply.buffers, self.num_buffers)
        elif reply.buffers:
            raise CorruptPayload("buffers where none are expected")
        summary = None
        if self.reader.method.summary is not None:
            summary = self.reader.method.summary.decode(reply.sketch)
        elif reply.sketch:
            raise CorruptPayload("a sketch where none is expected")
        return Accepted(
            update=update,
            buffers=buffers,
            loss=reply.loss,
            digest=next_digest(task.digest, reply.update),
            summary=summary,
            evaluations=max(0, reply.evaluations),
        )
