"""The Strategy: Flower's rounds carried to a `ServerSession` and back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from logging import INFO, WARNING
from math import ceil

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedef.checkpoint import Checkpoint
from fedef.errors import ConfigError, CorruptPayload, FedefError
from fedef.experiment import Experiment
from fedef.members import Policies
from fedef.messages import Task
from fedef.recorder import named_model
from fedef.refusals import ALIEN, MALFORMED
from fedef.server_session import DEFAULT_POLICIES, RoundReport, Rows, ServerSession, client_weights
from fedef.vectors import Vector
from strategies.records import content_of, reply_from
from strategies.roll_call import POLL_SECONDS, RollCall, reason_of
from strategies.wire import envelope_bytes

FAILED_ROUNDS = 3
"""Rounds in a row in which all clients that were asked failed, before the run stops."""

CALL_SECONDS = 60.0
"""The longest that a round waits for new nodes to say who they are."""

OnRound = Callable[[RoundReport, ServerSession, int], None]


def _ignore(report: RoundReport, session: ServerSession, envelope: int) -> None:
    pass


class ErrorFeedback(Strategy):
    """Error feedback with normalized steps, for clients that run `clients.app`.

    An app that exists already, with a ClientApp of its own, takes `strategies.adoption` instead.

    Parameters
    ----------
    experiment
        What is run; its configuration is also the clients' run config.
    on_round
        Called after each round with its report, the session and the envelope's bytes.
    round_seconds
        How long a message may take; after that its client counts as missing.
    start_seconds
        How long to wait for all clients at the start.
    checkpoint
        What to go on from; None: the experiment's start. Its token names the run in the clients'
        stores.
    policies
        What to do about clients that fail or lie.
    mirror
        Every client's g_i, for the policies that need it.
    journaled
        Whether the session keeps what a round was told, for the journal.
    min_replies
        Updates that a round needs: a share of the clients asked if below 1, else a count.
    stop_on_few
        Whether a round with fewer ends the run; else it goes on and says so.
    min_clients
        Clients that must be there at the start; 0: all. The others may join at g_i = 0 later.

    Notes
    -----
    Clients are known by their partition ids, which the strategy asks for at the start: the node
    ids of Flower are new in each run, and when a node comes back. A client's weight is fixed from
    when it joins, as the mean needs; one that is gone keeps its g_i in the mean.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        on_round: OnRound = _ignore,
        round_seconds: float = 3600.0,
        start_seconds: float = 600.0,
        checkpoint: Checkpoint | None = None,
        policies: Policies = DEFAULT_POLICIES,
        mirror: Rows | None = None,
        journaled: bool = False,
        min_replies: float = 0.0,
        stop_on_few: bool = False,
        min_clients: int = 0,
    ) -> None:
        self._experiment = experiment
        self._on_round = on_round
        self._round_seconds = round_seconds
        self._start_seconds = start_seconds
        self._checkpoint = checkpoint or Checkpoint(experiment.server().state)
        self._policies = policies
        self._mirror = mirror
        self._journaled = journaled
        self._min_replies = min_replies
        self._stop_on_few = stop_on_few
        self._min_clients = min_clients
        self._roll = RollCall(experiment.num_clients)
        self._sent: dict[int, Message] = {}
        self._failed_rounds = 0
        self._session: ServerSession | None = None

    @property
    def session(self) -> ServerSession:
        """The server's session.

        Raises
        ------
        FedefError
            Before the first round, when the clients' weights are not known yet.
        """
        if self._session is None:
            raise FedefError("the strategy has not met its clients yet; start it first")
        return self._session

    def initial_arrays(self) -> ArrayRecord:
        """Return the model at the start, by the parameters' names, for `start`."""
        start = self._experiment.server(state=self._checkpoint.server)
        return _records(named_model(self._experiment, start))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Tasks of the round's participants.

        Raises
        ------
        ConfigError
            If training is to start from other arrays than `initial_arrays`.
        FedefError
            If the clients are not there in time.
        """
        if self._session is None:
            self._check_start(arrays)
            self._session = self._meet_clients(grid)
        else:
            self._call(grid)
        tasks = self._session.begin_round()
        deadline = time.monotonic() + self._round_seconds
        while tasks and not any(task.client in self._roll.nodes for task in tasks):
            if time.monotonic() > deadline:
                break
            time.sleep(POLL_SECONDS)
            self._call(grid)
        connected = [task for task in tasks if task.client in self._roll.nodes]
        self._sent = {task.client: self._message(task) for task in connected}
        return list(self._sent.values())

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Give the replies to the session and end the round.

        Raises
        ------
        FedefError
            If all clients that were asked failed, at the start or in `FAILED_ROUNDS` rounds in
            a row, fewer updates arrived than the run must have, or a process of the simulation
            died, which Flower never replaces.
        """
        arrived = list(replies)
        senders = {message.metadata.dst_node_id: client for client, message in self._sent.items()}
        failures = [reason_of(message) for message in arrived if message.has_error()]
        all_failed = bool(failures) and len(failures) == len(self._sent)
        self._failed_rounds = self._failed_rounds + 1 if all_failed else 0
        hopeless = self._failed_rounds >= FAILED_ROUNDS or self.session.round == 0
        self._stop_on(failures, hopeless=all_failed and hopeless)
        accepted = 0
        for message in arrived:
            if not message.has_error():
                accepted += self._receive(message, senders.get(message.metadata.src_node_id))
        self._check_few(accepted)
        excluded = set(self.session.members.excluded)
        report = self.session.end_round()
        for client, why in self.session.members.excluded.items():
            if client not in excluded:
                log(WARNING, "fedef: client %d is excluded from here on: %s", client, why)
        if report.missing:
            named = ", ".join(map(str, report.missing))
            log(WARNING, "fedef: round %d is closed without clients %s", report.round, named)
        envelope = self._envelope_bytes(arrived)
        self._sent = {}
        self._on_round(report, self.session, envelope)
        metrics = MetricRecord(
            {"participants": len(report.accepted), "step-size": report.step_size}
        )
        if report.train_loss is not None:
            metrics["train-loss"] = report.train_loss
        return _records(named_model(self._experiment, self.session)), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Nothing: clients report their losses with their updates."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Nothing to aggregate."""
        return None

    def summary(self) -> None:
        """Log what is run."""
        config, method = self._experiment.config, self._experiment.method
        log(
            INFO,
            "fedef: %s with %s (k=%d of d=%d), %d clients, participation %g",
            method.name,
            method.compressor.name,
            method.compressor.max_entries,
            method.compressor.dimension,
            self._experiment.num_clients,
            config.participation,
        )

    def _check_start(self, arrays: ArrayRecord) -> None:
        expected = self.initial_arrays()
        same = list(arrays) == list(expected) and all(
            np.array_equal(arrays[name].numpy(), expected[name].numpy()) for name in expected
        )
        if not same:
            raise ConfigError(
                "initial_arrays: training starts from the experiment's own point; pass "
                "strategy.initial_arrays(), and give another point by the key initial-point"
            )

    def _meet_clients(self, grid: Grid) -> ServerSession:
        """Ask every node which client it is and how many examples it has."""
        n, started = self._experiment.num_clients, self._checkpoint
        everybody = self._min_clients in (0, n) and not started.weights
        count = min(self._min_clients or n, n)
        self._roll.wait_for(grid, count, seconds=self._start_seconds)
        self._roll.call(grid, seconds=self._start_seconds, strict=True)
        self._stop_on(self._roll.failures, hopeless=bool(self._roll.failures) and everybody)
        if everybody:
            self._roll.require_everybody()
        weights = started.weights or (0.0,) * n
        session = self._experiment.server(
            weights=[self._told(client, weight) for client, weight in enumerate(weights)],
            state=started.server,
            policies=self._policies,
            mirror=self._mirror,
            journaled=self._journaled,
        )
        for client, weight in enumerate(weights):
            if weight and session.weights[client] != weight and client in session.state.records:
                raise FedefError(
                    f"client {client} has the weight {session.weights[client]:g}, the run began "
                    f"with {weight:g}: the data on its node has changed; restore it, or start a "
                    "new run"
                )
        return session

    def _told(self, client: int, otherwise: float) -> float:
        """Weight of a client by the examples that its node has; the old one if it is not there."""
        if client not in self._roll.nodes:
            return otherwise
        (weight,) = client_weights(self._experiment.config.weighting, [self._roll.examples[client]])
        return weight

    def _call(self, grid: Grid) -> None:
        """Meet the nodes that are new; a client that joins brings its weight."""
        self._roll.call(grid, seconds=min(self._round_seconds, CALL_SECONDS), strict=False)
        for client in sorted(self._roll.nodes):
            weight = self._told(client, 0.0)
            if weight == self.session.weights[client]:
                continue
            if not self.session.join(client, weight):
                log(WARNING, "fedef: client %d is back with other data; it is not asked", client)
                del self._roll.nodes[client]

    def _check_few(self, accepted: int) -> None:
        """Say that a round has few updates, or end the run.

        Raises
        ------
        FedefError
            If it is to end; the round is not applied then.
        """
        asked = len(self.session.asked)
        needed = self._min_replies if self._min_replies >= 1 else ceil(self._min_replies * asked)
        if accepted >= min(needed, asked):
            return
        round = self.session.round + 1
        what = f"round {round} has {accepted} updates, min-replies asks for {needed:g}"
        if self._stop_on_few:
            raise FedefError(f"{what}; go on with resume, or with a smaller min-replies")
        log(WARNING, "fedef: %s", what)

    def _message(self, task: Task) -> Message:
        task = replace(task, token=self._checkpoint.token)
        return Message(
            content_of(task), self._roll.nodes[task.client], "train", ttl=self._round_seconds
        )

    def _receive(self, message: Message, sender: int | None) -> bool:
        """Give a reply to the session; return whether its update is taken."""
        try:
            reply = reply_from(message.content)
        except CorruptPayload:
            self._refuse(MALFORMED, sender)
            return False
        if reply.client != sender:
            self._refuse(ALIEN, sender)
            return False
        reason = self.session.receive(reply)
        if reason is not None:
            log(WARNING, "fedef: a reply of client %d was refused: %s", reply.client, reason)
        return reason is None

    def _refuse(self, reason: str, sender: int | None) -> None:
        log(WARNING, "fedef: a reply of client %s was refused: %s", sender, reason)
        self.session.refuse(reason, sender)

    def _stop_on(self, failures: list[str], *, hopeless: bool) -> None:
        dead = [reason for reason in failures if "ActorDied" in reason]
        if dead or hopeless:
            reason = (dead or failures)[0]
            raise FedefError(f"{len(failures)} clients failed, the first with: {_essence(reason)}")
        for reason in failures:
            log(WARNING, "fedef: a client failed: %s", _essence(reason))

    def _envelope_bytes(self, arrived: list[Message]) -> int:
        """Envelopes of the round: tasks differ by few bytes, so one stands for all."""
        sent = list(self._sent.values())
        downlink = envelope_bytes(sent[0]) * len(sent) if sent else 0
        return downlink + sum(envelope_bytes(message) for message in arrived)


def _records(named: dict[str, Vector]) -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in named.items()})


def _essence(reason: str) -> str:
    """Last line of a traceback that names an error."""
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line or "Mismatch" in line]
    return (named or lines or ["no reason given"])[-1]
