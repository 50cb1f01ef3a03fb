"""The server's side of the protocol: tasks out, replies in, one step a round, no I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from fedef.codec import encode_dense
from fedef.errors import ConfigError, FedefError
from fedef.judge import Accepted, Judge
from fedef.members import EVICT, HAND_BACK, MIRRORED, RESET, RESYNC, Members, Policies
from fedef.messages import Reply, Task
from fedef.methods import Method
from fedef.participation import participants
from fedef.problems.base import Problem
from fedef.reader import Reader
from fedef.refusals import ALIEN, DUPLICATE, LARGE_NORM, STALE
from fedef.rounds import Heard, Round, RoundReport, Unread
from fedef.state import NO_DIGEST, ClientRecord, ServerState
from fedef.steppers import Moment, Step
from fedef.updates import Update, add_weighted
from fedef.vectors import Vector, is_finite, norm

__all__ = [
    "DEFAULT_POLICIES",
    "Diverged",
    "RoundReport",
    "Rows",
    "ServerSession",
    "client_weights",
    "initial_server_state",
]

Rows = Callable[[int], Vector]
"""A client's g_i by the client: (d,) in the problem's dtype, to be read only."""
DEFAULT_POLICIES = Policies()


class Diverged(FedefError, ArithmeticError):  # noqa: N818 - names a condition
    """The next model would not be finite; the last finite one is kept."""


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
        journaled: bool = False,
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
        self._judge = Judge(
            reader=Reader(method, seed),
            num_buffers=self._state.buffers.size,
            on_lost_state=policies.on_lost_state,
        )
        self._journaled = journaled
        self._round = Round()
        self.heard = Heard((), ())
        """What the last round was told, for a journal; nothing unless `journaled`."""

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
        return tuple(self._round.tasks)

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
        if self._round.begun:
            raise FedefError("the last round is still open; call end_round first")
        round = self._state.round + 1
        if clients is None:
            clients = participants(self._seed, round, len(self._weights), self._participation)
        for client in clients:
            self._require_client(client)
        model = encode_dense(self.x, round=round)
        buffers = encode_dense(self.buffers, round=round) if self.buffers.size else b""
        present = self.members.present(clients)
        tasks = {client: self._task(client, round, model, buffers) for client in present}
        self._round.tasks, self._round.begun = tasks, True
        self._round.early = len(self._round.messages)
        return tuple(tasks.values())

    def receive(self, reply: Reply, update: Update | None = None) -> str | None:
        """Take one reply; return why it is refused, or None.

        A refused reply changes nothing, so its client rolls back at its next task.

        Parameters
        ----------
        reply
            From anybody.
        update
            What a `Reader` of this run has read in it, where a process that is trusted as this one
            did so on the way; None: it is read here.

        Raises
        ------
        StateMismatch
            If the client does not hold the state that the server's mean contains.
        """
        if self._journaled:
            self._round.messages.append(reply)
        self._round.uplink_bytes += len(reply.update) + len(reply.buffers) + len(reply.sketch)
        verdict = self._verdict(reply, update)
        if isinstance(verdict, Accepted):
            self._round.accepted[reply.client] = verdict
            return None
        self._refuse(verdict, reply.client if reply.client in self._round.tasks else None)
        return verdict

    def refuse(self, reason: str, client: int | None = None) -> None:
        """Count a message that cannot be given to `receive`; `client`: who sent it, if known."""
        if self._journaled:
            self._round.messages.append(Unread(reason, client))
        self._refuse(reason, client)

    def _refuse(self, reason: str, client: int | None) -> None:
        self._round.refusals[reason] += 1
        if client is not None:
            self.members.refused(client, reason)

    def end_round(self) -> RoundReport:
        """Apply what arrived, in client order, step, and open the way for the next round.

        Raises
        ------
        Diverged
            If the new model is not finite. The round is not applied.
        """
        if not self._round.begun:
            raise FedefError("no round is open; call begin_round first")
        if self._max_norm_factor is not None:
            for client in self._round.too_large(self._max_norm_factor):
                del self._round.accepted[client]
                self._refuse(LARGE_NORM, client)
        total = self._new_total()
        g = total / self._total_weight
        step = Step(self.x, 0.0, self._state.memory)
        summary = self._method.summary
        independent_norm = (
            None if summary is None else self._round.independent_norm(self._weights, summary)
        )
        if summary is None or independent_norm is not None:
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
        report = self._round.report(
            self._state.round + 1,
            self._weights,
            step_size=step.step_size,
            estimate_norm=norm(g),
            independent_norm=independent_norm,
            value_bytes=self._method.value_format.value_bytes,
        )
        for client, reply in sorted(self._round.accepted.items()):
            self._records[client] = ClientRecord(report.round, reply.digest)
        total = self._settle_members(total)
        self._refusals.update(self._round.refusals)
        self._state = replace(
            self._state,
            round=report.round,
            x=step.x,
            memory=step.memory,
            buffers=self._round.averaged_buffers(self._weights, self.buffers),
            total=total,
            epoch=self._epoch,
            uplink_bytes=self._state.uplink_bytes + report.uplink_bytes,
            downlink_bytes=self._state.downlink_bytes + report.downlink_bytes,
        )
        self.heard = Heard(report.asked, tuple(self._round.messages), self._round.early)
        self._round = Round()
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

    def _settle_members(self, total: Vector) -> Vector:
        """Remove from sum_i w_i g_i what the policies say; see `members`."""
        policy = self.members.policies.on_lost_state
        self.mirrored = {}
        if self._mirror is not None:
            self.mirrored = {
                client: of.update.entries_after(self._mirror(client))
                for client, of in self._round.accepted.items()
            }
        lost, excluded = self.members.end_round(self._round.accepted)
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

    def _verdict(self, reply: Reply, update: Update | None) -> Accepted | str:
        """What the reply brings to this round, or the reason for a refusal."""
        if reply.run_id != self._run_id or not 0 <= reply.client < len(self._weights):
            return ALIEN
        if reply.round != self._state.round + 1 or not self._round.begun:
            return STALE
        task = self._round.tasks.get(reply.client)
        if task is None:
            return ALIEN
        if reply.client in self._round.accepted:
            return DUPLICATE
        return self._judge.verdict(reply, task, update)

    def _new_total(self) -> Vector:
        """sum_i w_i g_i with this round's updates in it.

        Without error feedback it holds the participants of this round alone, scaled to the weight
        of all clients, so that total / sum w is their weighted mean.
        """
        terms = [(self._weights[c], of.update) for c, of in sorted(self._round.accepted.items())]
        total = self._state.total.copy() if self._method.feedback else np.zeros(self.x.size)
        add_weighted(total, terms)
        if not self._method.feedback:
            weight = sum(weight for weight, _ in terms)
            total *= self._total_weight / weight if weight > 0 else 0.0
        return total


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
