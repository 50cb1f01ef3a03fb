"""The server's side of the protocol: tasks out, replies in, one step a round, no I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedef.codec import Decoded, decode, decode_dense, encode_dense
from fedef.compressors import Compressor, Identity
from fedef.errors import ConfigError, CorruptPayload, FedefError, StateMismatch
from fedef.members import (
    EVICT,
    HAND_BACK,
    LOST_STATE,
    MIRRORED,
    RESET,
    RESYNC,
    STOP,
    Members,
    Policies,
)
from fedef.messages import NON_FINITE, STALE_TASK, STATE_MISMATCH, UPDATE, Reply, Task
from fedef.methods import Method
from fedef.participation import participants
from fedef.problems.base import Problem
from fedef.randomness import stream_seed
from fedef.state import NO_DIGEST, ClientRecord, ServerState, next_digest
from fedef.steppers import Moment, Step
from fedef.updates import Update, add_weighted
from fedef.vectors import Vector, is_finite, norm

LARGEST_VALUE = 1e150
"""Values beyond it are refused: one of them must not overflow the mean or its squared norm."""


Rows = Callable[[int], Vector]
"""A client's g_i by the client: (d,) in the problem's dtype, to be read only."""
DEFAULT_POLICIES = Policies()


class Diverged(FedefError, ArithmeticError):  # noqa: N818 - names a condition
    """The next model would not be finite; the last finite one is kept."""


@dataclass(frozen=True)
class RoundReport:
    """What happened in one round."""

    round: int
    """From 1."""
    step_size: float
    """gamma_k, k = round - 1."""
    estimate_norm: float
    """||g^k||_2, the norm of the mean estimate that the step followed."""
    asked: tuple[int, ...]
    """Clients that got a task."""
    accepted: tuple[int, ...]
    """Clients whose update was applied."""
    refusals: dict[str, int]
    """Replies that were refused, by reason."""
    train_loss: float | None
    """Weighted mean of the accepted clients' losses at the model they got; None without any."""
    uplink_bytes: int
    """Bytes of all encoded updates and buffers that arrived, refused ones too."""
    downlink_bytes: int
    """Bytes of all encoded models and buffers that were sent out."""
    bound_bytes: int
    """The papers' uplink figure: values only, positions free."""
    gradient_evaluations: int
    """Gradients of single examples behind the accepted updates."""
    independent_norm: float | None
    """The server's estimate of ||mean g'_i||, where the method asks for it."""

    @property
    def missing(self) -> tuple[int, ...]:
        """Clients that were asked and from which nothing was applied."""
        return tuple(sorted(set(self.asked) - set(self.accepted)))


@dataclass(frozen=True)
class _Accepted:
    update: Update
    buffers: Vector
    loss: float
    digest: bytes
    summary: Vector | None
    evaluations: int


class ServerSession:
    """Holds g = sum w_i g_i / sum w_i over all clients, the absent ones included (EF21-PP)."""

    def __init__(
        self,
        *,
        run_id: int,
        seed: int,
        problem: Problem,
        method: Method,
        weights: Sequence[float],
        participation: float = 1.0,
        local_buffers: bool = False,
        state: ServerState | None = None,
        policies: Policies = DEFAULT_POLICIES,
        mirror: Rows | None = None,
        max_norm_factor: float | None = None,
    ) -> None:
        if (policies.on_lost_state in MIRRORED) != (mirror is not None):
            raise ConfigError(
                f"on-lost-state={policies.on_lost_state}: a mirror of the clients' states belongs "
                f"to {' and '.join(sorted(MIRRORED))}, and to nothing else"
            )
        self._mirror = mirror
        self._max_norm_factor = max_norm_factor
        self._run_id = run_id
        self._seed = seed
        self._method = method
        self._participation = participation
        self._state = state or initial_server_state(problem, method, local_buffers=local_buffers)
        self.members = Members(weights, self._state.conduct, policies)
        self._weights = self.members.weights
        self._total_weight = self.members.total_weight(self._state.records)
        self.mirrored: dict[int, Update] = {}
        """What the last round changed in the clients' g_i, as entries that overwrite."""
        self._records = dict(self._state.records)
        self._epoch = self._state.epoch
        self._refusals = Counter(self._state.refusals or {})
        self._tasks: dict[int, Task] = {}
        self._accepted: dict[int, _Accepted] = {}
        self._round_refusals: Counter[str] = Counter()
        self._uplink_bytes = 0
        self._open = False

    @property
    def state(self) -> ServerState:
        """The state after the last round that was ended."""
        return replace(
            self._state,
            records=dict(self._records),
            refusals=dict(self._refusals),
            conduct=dict(self.members.conduct),
        )

    @property
    def weights(self) -> tuple[float, ...]:
        """(n,) the clients' weights, not normalized."""
        return self._weights

    @property
    def asked(self) -> tuple[int, ...]:
        """Clients with a task in the open round."""
        return tuple(self._tasks)

    def join(self, client: int, weight: float) -> bool:
        """Give a client its weight; whether that is possible.

        It is as long as its g_i = 0: then sum_i w_i g_i stays as it is, and only sum_i w_i grows.
        """
        if client in self._records:
            return False
        self.members.weigh(client, weight)
        self._weights = self.members.weights
        self._total_weight = self.members.total_weight(self._records)
        return True

    @property
    def x(self) -> Vector:
        """(d,) the model; do not write into it."""
        return self._state.x

    @property
    def buffers(self) -> Vector:
        """(b,) averaged buffers; do not write into them."""
        return self._state.buffers

    @property
    def round(self) -> int:
        """Rounds done."""
        return self._state.round

    @property
    def g(self) -> Vector:
        """(d,) float64: the weighted mean of all clients' g_i."""
        return self._state.total / self._total_weight

    def begin_round(self, clients: Sequence[int] | None = None) -> tuple[Task, ...]:
        """Tasks of the next round, in client order.

        Parameters
        ----------
        clients
            Who takes part; None: sampled from (seed, round).

        Raises
        ------
        FedefError
            If the last round was not ended.
        ConfigError
            If a client does not exist.
        """
        if self._open:
            raise FedefError("the last round is still open; call end_round first")
        round = self._state.round + 1
        if clients is None:
            clients = participants(self._seed, round, len(self._weights), self._participation)
        for client in clients:
            self._require_client(client)
        model = encode_dense(self.x, round=round)
        buffers = encode_dense(self.buffers, round=round) if self.buffers.size else b""
        present = self.members.present(clients)
        self._tasks = {client: self._task(client, round, model, buffers) for client in present}
        self._open = True
        return tuple(self._tasks.values())

    def receive(self, reply: Reply) -> str | None:
        """Take one reply; return why it is refused, or None.

        A refused reply changes nothing, so its client rolls back at its next task.

        Raises
        ------
        StateMismatch
            If the client does not hold the state that the server's mean contains.
        """
        self._uplink_bytes += len(reply.update) + len(reply.buffers) + len(reply.sketch)
        reason = self._judge(reply)
        if reason is not None:
            self.refuse(reason, reply.client if reply.client in self._tasks else None)
        return reason

    def refuse(self, reason: str, client: int | None = None) -> None:
        """Count a message that is not applied; `client`: who sent it, where that is known."""
        self._round_refusals[reason] += 1
        if client is not None:
            self.members.refused(client, reason)

    def end_round(self) -> RoundReport:
        """Apply what arrived, in client order, step, and open the way for the next round.

        Raises
        ------
        Diverged
            If the new model is not finite. The round is not applied.
        """
        if not self._open:
            raise FedefError("no round is open; call begin_round first")
        self._refuse_large()
        accepted = sorted(self._accepted.items())
        total = self._new_total()
        g = total / self._total_weight
        step = Step(self.x, 0.0, self._state.memory)
        independent_norm = self._independent_norm()
        if self._method.summary is None or independent_norm is not None:
            moment = Moment(
                self._state.round,
                self.x,
                g,
                independent_norm,
                before=lambda: self._state.total / self._total_weight,
            )
            step = self._method.stepper.step(self._state.memory, moment)
        if not (is_finite(step.x) and all(is_finite(kept) for kept in step.memory.values())):
            raise Diverged(
                f"round {self._state.round + 1}: the model is no longer finite; "
                "try a smaller step-size or a normalized method (method=norm-ef21)"
            )
        report = self._report(step.step_size, norm(g), independent_norm)
        for client, reply in accepted:
            self._records[client] = ClientRecord(report.round, reply.digest)
        total = self._settle_members(total)
        self._refusals.update(self._round_refusals)
        self._state = replace(
            self._state,
            round=report.round,
            x=step.x,
            memory=step.memory,
            buffers=self._averaged_buffers(),
            total=total,
            epoch=self._epoch,
            uplink_bytes=self._state.uplink_bytes + report.uplink_bytes,
            downlink_bytes=self._state.downlink_bytes + report.downlink_bytes,
        )
        self._tasks, self._accepted, self._round_refusals = {}, {}, Counter()
        self._uplink_bytes, self._open = 0, False
        return report

    def _task(self, client: int, round: int, model: bytes, buffers: bytes) -> Task:
        record, conduct = self._record(client), self.members.of(client)
        restored = b""
        if conduct.handing_back and self._mirror is not None:
            restored = encode_dense(self._mirror(client), round=round)
        return Task(
            self._run_id,
            client,
            round,
            record.version,
            record.digest,
            model,
            buffers,
            life=self.life(client),
            dense=int(self._resyncs(record.version)),
            restored=restored,
        )

    def life(self, client: int) -> int:
        """How often a client was made to start again."""
        return self._epoch + self.members.of(client).lives

    def _resyncs(self, version: int) -> bool:
        """Whether a client's next update is dense because all start again."""
        policy = self.members.policies.on_lost_state
        return policy == RESYNC and self._state.epoch > 0 and version == 0

    def _refuse_large(self) -> None:
        """Refuse updates whose norm is beyond a factor of the median of the round's."""
        if self._max_norm_factor is None or len(self._accepted) < 3:
            return
        norms = {client: norm(of.update.values) for client, of in self._accepted.items()}
        bound = self._max_norm_factor * float(np.median(list(norms.values())))
        for client in [client for client, size in norms.items() if size > bound]:
            del self._accepted[client]
            self.refuse("norm", client)

    def _settle_members(self, total: Vector) -> Vector:
        """Remove from sum_i w_i g_i what the policies say; see `members`."""
        policy = self.members.policies.on_lost_state
        self.mirrored = {}
        if self._mirror is not None:
            self.mirrored = {
                client: of.update.entries_after(self._mirror(client))
                for client, of in self._accepted.items()
            }
        lost, excluded = self.members.end_round(self._accepted)
        returning = [client for client in lost if client not in excluded]
        stale = [client for client in excluded if client in self._records]
        if policy in (RESET, RESYNC) and returning + stale:
            self._epoch += 1
            self._records = {}
            total = np.zeros_like(total)
        if policy == HAND_BACK:
            for client in returning:
                self.members.start_again(client, handing_back=True)
        if self._mirror is not None:
            for client in stale + (returning if policy == EVICT else []):
                total = self._without(client, total, self._mirror(client))
        if lost or excluded:
            self._total_weight = self.members.total_weight(self._records)
            if self._total_weight == 0:
                raise FedefError(
                    "every client is excluded: "
                    + ", ".join(f"{c} ({why})" for c, why in sorted(self.members.excluded.items()))
                )
        return total

    def _without(self, client: int, total: Vector, row: Vector) -> Vector:
        """Sum without a client's g_i, which was `row`, and that g_i at zero in the mirror."""
        self._records.pop(client, None)
        self.members.start_again(client)
        if client in self.mirrored:
            row = row.copy()
            self.mirrored[client].overwrite(row)
        self.mirrored[client] = Update(row.size, np.zeros_like(row))
        return total - self._weights[client] * row.astype(np.float64)

    def _require_client(self, client: int) -> None:
        if not 0 <= client < len(self._weights):
            raise ConfigError(
                f"begin_round: client must be in [0, {len(self._weights)}), got {client}"
            )

    def _record(self, client: int) -> ClientRecord:
        return self._records.get(client, ClientRecord(0, NO_DIGEST))

    def _judge(self, reply: Reply) -> str | None:
        """Return the reason for a refusal, or keep the reply for the end of the round."""
        task = self._tasks.get(reply.client)
        if reply.run_id != self._run_id or not 0 <= reply.client < len(self._weights):
            return "alien"
        if reply.round != self._state.round + 1 or not self._open:
            return "stale"
        if task is None:
            return "alien"
        if reply.client in self._accepted:
            return "duplicate"
        if reply.status in (STATE_MISMATCH, STALE_TASK):
            if self.members.policies.on_lost_state != STOP:
                return LOST_STATE
            raise StateMismatch(
                f"client {reply.client} holds the state of round {reply.version} "
                f"({reply.digest.hex()}), the server's mean contains its state of round "
                f"{task.acked} ({task.digest.hex()}): the client lost its state, or the server "
                "was restored from an older checkpoint. Restore both sides from the same "
                "checkpoint, go on with another on-lost-state, or start the run again"
            )
        if (reply.version, reply.digest) != (task.acked, task.digest):
            return "stale"  # made on another base, in another run of the same configuration say
        if reply.status == NON_FINITE:
            return "non-finite"
        if reply.status != UPDATE:
            return "malformed"
        try:
            self._accepted[reply.client] = self._decoded(reply, task)
        except CorruptPayload:
            return "malformed"
        return None

    def _decoded(self, reply: Reply, task: Task) -> _Accepted:
        compressor = self._method.compressor
        if task.dense or (self._method.dense_start and task.acked == 0):
            compressor = Identity(compressor.dimension)
        decoded = decode(
            reply.update,
            dimension=compressor.dimension,
            max_entries=compressor.max_entries,
            largest=LARGEST_VALUE,
        )
        self._check_form(decoded, compressor, reply)
        if not np.isfinite(reply.loss):
            raise CorruptPayload("the loss is not finite")
        buffers = np.empty(0, dtype=self.x.dtype)
        if self.buffers.size:
            buffers = decode_dense(reply.buffers, self.buffers.size)
        elif reply.buffers:
            raise CorruptPayload("buffers where none are expected")
        summary = None
        if self._method.summary is not None:
            summary = self._method.summary.decode(reply.sketch)
        elif reply.sketch:
            raise CorruptPayload("a sketch where none is expected")
        return _Accepted(
            update=decoded.update,
            buffers=buffers,
            loss=reply.loss,
            digest=next_digest(task.digest, reply.update),
            summary=summary,
            evaluations=max(0, reply.evaluations),
        )

    def _check_form(self, decoded: Decoded, compressor: Compressor, reply: Reply) -> None:
        """Refuse a payload that this run's honest clients would not send."""
        expected, entries = compressor.kind, decoded.update.values.size
        if decoded.kind != expected or decoded.value_format is not self._method.value_format:
            raise CorruptPayload(f"a {decoded.kind} payload where a {expected} one is expected")
        if decoded.round != reply.round:
            raise CorruptPayload("the payload is of another round than the reply")
        # Top-k leaves out entries that are zero; a dense one has all d, or it was not decoded.
        if expected == "seeded" and entries != compressor.max_entries:
            raise CorruptPayload(f"{entries} entries where {compressor.max_entries} are drawn")
        if expected == "seeded" and decoded.update.seed != stream_seed(
            self._seed, "compressor", reply.client, reply.round
        ):
            raise CorruptPayload("the positions are not those that the shared seed draws")

    def _new_total(self) -> Vector:
        """sum_i w_i g_i with this round's updates in it.

        Without error feedback it holds the participants of this round alone, scaled to the weight
        of all clients, so that total / sum w is their weighted mean.
        """
        terms = [(self._weights[c], reply.update) for c, reply in sorted(self._accepted.items())]
        total = self._state.total.copy() if self._method.feedback else np.zeros(self.x.size)
        add_weighted(total, terms)
        if not self._method.feedback:
            weight = sum(weight for weight, _ in terms)
            total *= self._total_weight / weight if weight > 0 else 0.0
        return total

    def _independent_norm(self) -> float | None:
        """Norm of the weighted mean of the independent gradients; None without any weight."""
        summary = self._method.summary
        if summary is None:
            return None
        parts = [(self._weights[c], r.summary) for c, r in sorted(self._accepted.items())]
        weight = sum(weight for weight, _ in parts)
        if weight == 0:
            return None
        mean = sum((w / weight) * part.astype(np.float64) for w, part in parts if part is not None)
        return summary.norm(np.asarray(mean))

    def _report(
        self, step_size: float, estimate_norm: float, independent_norm: float | None
    ) -> RoundReport:
        accepted = sorted(self._accepted)
        weights = [self._weights[client] for client in accepted]
        loss = None
        if sum(weights) > 0:
            losses = [self._accepted[client].loss for client in accepted]
            loss = sum(w * v for w, v in zip(weights, losses, strict=True)) / sum(weights)
        value_bytes = self._method.value_format.value_bytes
        return RoundReport(
            round=self._state.round + 1,
            step_size=step_size,
            estimate_norm=estimate_norm,
            asked=tuple(self._tasks),
            accepted=tuple(accepted),
            refusals=dict(sorted(self._round_refusals.items())),
            train_loss=loss,
            uplink_bytes=self._uplink_bytes,
            downlink_bytes=sum(
                len(t.model) + len(t.buffers) + len(t.restored) for t in self._tasks.values()
            ),
            bound_bytes=sum(
                self._accepted[client].update.values.size * value_bytes for client in accepted
            ),
            gradient_evaluations=sum(self._accepted[client].evaluations for client in accepted),
            independent_norm=independent_norm,
        )

    def _averaged_buffers(self) -> Vector:
        """Weighted mean of the accepted clients' buffers; unchanged where nobody has weight."""
        weight = sum(self._weights[client] for client in self._accepted)
        if not self.buffers.size or weight == 0:
            return self.buffers
        mean = np.zeros(self.buffers.size, dtype=np.float64)
        for client, reply in sorted(self._accepted.items()):
            mean += (self._weights[client] / weight) * reply.buffers
        return mean.astype(self.buffers.dtype)


def initial_server_state(problem: Problem, method: Method, *, local_buffers: bool) -> ServerState:
    """x^0, g = 0, nobody seen."""
    empty = np.empty(0, dtype=problem.dtype)
    x = problem.initial_point()
    return ServerState(
        round=0,
        x=x,
        buffers=empty if local_buffers else problem.initial_buffers(),
        total=np.zeros(problem.dimension, dtype=np.float64),
        records={},
        memory=method.stepper.init(x),
    )


def client_weights(weighting: str, num_examples: Sequence[int]) -> tuple[float, ...]:
    """Weights w_i of the clients, not normalized: their examples, or one each."""
    return tuple(float(n) if weighting == "examples" else 1.0 for n in num_examples)
