"""The client's side of the protocol: a task in, a reply out, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from typing import Any

import numpy as np

from fedef.codec import decode_dense, encode, encode_dense, quantized
from fedef.compressors import NonFiniteVector
from fedef.compressors.base import require_finite
from fedef.errors import ConfigError, StateMismatch
from fedef.messages import NON_FINITE, STALE_TASK, STATE_MISMATCH, UPDATE, Reply, Task
from fedef.methods import Method, client_step
from fedef.problems.base import LocalResult, Problem
from fedef.randomness import stream_seed
from fedef.sparse import empty_sparse
from fedef.state import ClientState, Pending, next_digest
from fedef.updates import Update
from fedef.vectors import IntVector, Vector


@dataclass(frozen=True, eq=False)
class Nothing:
    """Work that gave no update."""

    task: Task
    status: str
    base: ClientState | None = None
    """The state that the client goes on with; None: the one that it has."""


@dataclass(frozen=True, eq=False)
class Work:
    """An update that is computed and not yet encoded; none of it is in the client's state."""

    task: Task
    base: ClientState
    """The state that the update stands on."""
    update: Update
    after: Update
    """The entries of g_i once the update is committed."""
    memory: Mapping[str, Vector]
    buffers: Vector
    loss: float
    examples: int
    evaluations: int
    sketch: bytes


@dataclass(frozen=True, eq=False)
class Computed:
    """A client's gradient at the model that it gets, computed with those of other clients."""

    x: Vector
    """(d,) the decoded model, the very array."""
    rows: IntVector | None
    """The very rows that `ClientSession.minibatch` drew."""
    result: LocalResult
    """Without weight decay."""


class ClientSession:
    """One client of one run.

    The state changes only in `handle` (or its halves), and only as a whole: a new pending update
    replaces the last one, once that was committed (the task acknowledges it) or rolled back (it
    does not).
    """

    def __init__(
        self,
        client: int,
        *,
        run_id: int,
        seed: int,
        problem: Problem,
        method: Method,
        local_buffers: bool = False,
        sparse: bool = False,
        state: ClientState | None = None,
    ) -> None:
        self._client = client
        self._run_id = run_id
        self._seed = seed
        self._problem = problem
        self._method = method
        self._local_buffers = local_buffers
        self._num_buffers = problem.initial_buffers().size
        self._dense_state = not sparse and method.feedback
        self.state = state or self._start()
        if self.state.dimension != problem.dimension:
            raise ConfigError(
                f"client {client}: the stored state has d={self.state.dimension}, the problem "
                f"d={problem.dimension}; it belongs to another run"
            )
        if self._dense_state:
            self.state = replace(self.state, held=self.state.g)

    def handle(self, task: Task) -> Reply:
        """Answer a task.

        The same task again gives the same reply; a task older than the last one changes nothing.

        Raises
        ------
        StateMismatch
            If the task is for another run or client.
        CorruptPayload
            If the model cannot be decoded.
        """
        return self.answer(self.work(task))

    def minibatch(self, round: int) -> IntVector | None:
        """Rows of the round's gradient, or of its first local step; None: all."""
        return self._rows("minibatch", round)

    def work(self, task: Task, computed: Computed | None = None) -> Work | Nothing:
        """First half of `handle`: commit or roll back, then the gradient and its compression.

        An engine that plays many clients does all their work first and encodes all their answers
        after that, when the processor still holds the encoder: a fifth of the overhead less.
        """
        if (task.run_id, task.client) != (self._run_id, self._client):
            raise StateMismatch(
                f"client {self._client} of run {self._run_id} got a task for client "
                f"{task.client} of run {task.run_id}; give each run its own clients"
            )
        if task.life < self.state.life or (
            task.life == self.state.life and task.round < self.state.round
        ):
            return Nothing(task, STALE_TASK)
        if task.life > self.state.life and (task.restored or task.acked == 0):
            self.state = self._reborn(task)
        repeated = task.round == self.state.round
        try:
            state = self._base(task)
        except StateMismatch:
            return Nothing(task, STATE_MISMATCH)
        if not repeated:
            # A commit has written into g: from here on the state must say so, whatever happens.
            self.state = state
        try:
            return self._step(task, state, computed)
        except NonFiniteVector:
            return Nothing(task, NON_FINITE, base=state)

    def answer(self, work: Work | Nothing) -> Reply:
        """Second half of `handle`: the update becomes pending, and bytes."""
        task, method = work.task, self._method
        if isinstance(work, Nothing):
            if work.base is not None:
                self.state = replace(work.base, round=task.round)
            return self._reply(task, work.status)
        state = work.base
        payload = encode(work.update, method.value_format, round=task.round)
        digest = next_digest(state.digest, payload)
        own = work.buffers if self._local_buffers else state.buffers
        pending = Pending(task.round, work.after, work.memory, own, digest)
        self.state = replace(state, round=task.round, pending=pending)
        return self._reply(
            task,
            UPDATE,
            loss=work.loss,
            examples=work.examples,
            evaluations=work.evaluations,
            update=payload,
            buffers=encode_dense(work.buffers, round=task.round) if task.buffers else b"",
            sketch=work.sketch,
        )

    def _reborn(self, task: Task) -> ClientState:
        """Return the state of a client that starts again: at g_i = 0, or at the server's mirror."""
        state = replace(self._start(), life=task.life)
        if not task.restored:
            return state
        g = decode_dense(task.restored, self._problem.dimension).copy()
        return replace(state, held=g, version=task.acked, digest=task.digest)

    def _start(self) -> ClientState:
        state = initial_client_state(self._problem, local_buffers=self._local_buffers)
        return replace(state, held=state.g) if self._dense_state else state

    def _base(self, task: Task) -> ClientState:
        """Return the state that this task starts from; a repeated task starts where it did."""
        repeated = task.round == self.state.round
        state = replace(self.state, pending=None) if repeated else self.state
        return state.settled(task.acked, task.digest)

    def _step(self, task: Task, state: ClientState, computed: Computed | None) -> Work:
        """Estimate and client step.

        Raises
        ------
        NonFiniteVector
            If anything that would be sent or kept is not finite.
        """
        method = self._method
        x = decode_dense(task.model, self._problem.dimension)
        buffers = decode_dense(task.buffers, self._num_buffers) if task.buffers else state.buffers
        estimate = method.estimator(
            lambda point, rows: method.local_steps.pseudo_gradient(
                partial(self._gradient, computed=computed),
                point,
                lambda step: self._rows("minibatch", task.round, step) if step else rows,
                buffers,
                task.round - 1,
            ),
            x,
            computed.rows if computed else self.minibatch(task.round),
            state.memory,
            task.round - 1,
        )
        if not isfinite(estimate.at_x.loss):
            raise NonFiniteVector("the loss is NaN or infinite")
        g = state.g if method.feedback else None
        compressor = method.compressor_of(acked=task.acked, dense=task.dense)
        update = client_step(
            estimate.vector, g, compress=partial(compressor.compress, seed=self._drawn(task.round))
        )
        sketch, independent = self._summarized(x, buffers, task.round)
        update = quantized(update, method.value_format)
        after = _nothing(update) if g is None else update.entries_after(g)
        require_finite("g_i", after.values)
        if self._num_buffers:
            require_finite("buffers", estimate.at_x.buffers)
        examples = self._size(estimate.rows)
        return Work(
            task=task,
            base=state,
            update=update,
            after=after,
            memory=estimate.memory,
            buffers=estimate.at_x.buffers,
            loss=float(estimate.at_x.loss),
            examples=examples,
            evaluations=estimate.passes * method.local_steps.steps * examples + independent,
            sketch=sketch,
        )

    def _gradient(
        self,
        x: Vector,
        rows: IntVector | None,
        buffers: Vector,
        *,
        computed: Computed | None = None,
    ) -> LocalResult:
        """Loss, gradient and buffers of f_i, and weight decay in the gradient alone."""
        if computed is not None and x is computed.x and rows is computed.rows:
            result = computed.result
        else:
            result = self._problem.local(self._client, x, rows=rows, buffers=buffers)
        if self._method.weight_decay == 0.0:
            return result
        return replace(result, gradient=result.gradient + self._method.weight_decay * x)

    def _summarized(self, x: Vector, buffers: Vector, round: int) -> tuple[bytes, int]:
        """Summary of the gradient on an independent batch at the same point, and its rows."""
        if self._method.summary is None:
            return b"", 0
        rows = self._rows("independent", round)
        gradient = self._gradient(x, rows, buffers).gradient
        require_finite("independent gradient", gradient)
        return self._method.summary.encode(gradient, round=round), self._size(rows)

    def _drawn(self, round: int) -> int:
        """Seed of the positions that a random compressor draws; others do not pay for it."""
        if self._method.compressor.kind != "seeded":
            return 0
        return stream_seed(self._seed, "compressor", self._client, round)

    def _rows(self, name: str, round: int, step: int = 0) -> IntVector | None:
        available = self._problem.num_examples[self._client]
        return self._method.sampler.rows(name, self._client, round, available=available, step=step)

    def _size(self, rows: IntVector | None) -> int:
        return self._problem.num_examples[self._client] if rows is None else int(rows.size)

    def _reply(self, task: Task, status: str, **content: Any) -> Reply:
        return Reply(
            run_id=self._run_id,
            client=self._client,
            round=task.round,
            status=status,
            version=self.state.version,
            digest=self.state.digest,
            **content,
        )


def initial_client_state(problem: Problem, *, local_buffers: bool) -> ClientState:
    """g_i = 0 (sparse), no momentum; the problem's own buffers where they stay local."""
    empty = np.empty(0, dtype=problem.dtype)
    return ClientState(
        held=empty_sparse(problem.dimension, problem.dtype),
        memory={},
        buffers=problem.initial_buffers() if local_buffers else empty,
    )


def _nothing(update: Update) -> Update:
    """Entries that a commit leaves as they are."""
    return Update(update.dimension, update.values[:0].copy(), np.empty(0, dtype=np.int64))
