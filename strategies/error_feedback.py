"""The Strategy: Flower's rounds carried to a `ServerSession` and back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from logging import INFO, WARNING

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedef.checkpoint import Checkpoint
from fedef.errors import ConfigError, CorruptPayload, FedefError
from fedef.experiment import Experiment
from fedef.members import Policies
from fedef.messages import Task
from fedef.recorder import named_model
from fedef.server_session import DEFAULT_POLICIES, RoundReport, Rows, ServerSession, client_weights
from fedef.vectors import Vector
from strategies.records import content_of, reply_from
from strategies.wire import envelope_bytes

FAILED_ROUNDS = 3
"""Rounds in a row in which all clients that were asked failed, before the run stops."""

OnRound = Callable[[RoundReport, ServerSession, int], None]


def _ignore(report: RoundReport, session: ServerSession, envelope: int) -> None:
    pass


class ErrorFeedback(Strategy):
    """Error feedback with normalized steps, for clients that run `clients.app`.

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

    Notes
    -----
    Clients are known by their partition ids, which the strategy asks for at the start: the node
    ids of Flower are new in each run. The weights are fixed from then on, as the mean needs.
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
    ) -> None:
        self._experiment = experiment
        self._on_round = on_round
        self._round_seconds = round_seconds
        self._start_seconds = start_seconds
        self._checkpoint = checkpoint or Checkpoint(experiment.server().state)
        self._policies = policies
        self._mirror = mirror
        self._nodes: dict[int, int] = {}
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
            If not all clients are there in time.
        """
        if self._session is None:
            self._check_start(arrays)
            self._session = self._meet_clients(grid)
        self._sent = {task.client: self._message(task) for task in self._session.begin_round()}
        return list(self._sent.values())

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Give the replies to the session and end the round.

        Raises
        ------
        FedefError
            If all clients that were asked failed, at the start or in `FAILED_ROUNDS` rounds in
            a row, or a process of the simulation died, which Flower never replaces.
        """
        arrived = list(replies)
        senders = {node: client for client, node in self._nodes.items()}
        failures = [_reason(message) for message in arrived if message.has_error()]
        all_failed = bool(failures) and len(failures) == len(self._sent)
        self._failed_rounds = self._failed_rounds + 1 if all_failed else 0
        hopeless = self._failed_rounds >= FAILED_ROUNDS or not self.session.state.records
        self._stop_on(failures, hopeless=all_failed and hopeless)
        for message in arrived:
            if not message.has_error():
                self._receive(message, senders.get(message.metadata.src_node_id))
        excluded = set(self.session.members.excluded)
        report = self.session.end_round()
        for client, why in self.session.members.excluded.items():
            if client not in excluded:
                log(WARNING, "fedef: client %d is excluded from here on: %s", client, why)
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
        n = self._experiment.num_clients
        deadline = time.monotonic() + self._start_seconds
        while len(nodes := sorted(grid.get_node_ids())) < n:
            if time.monotonic() > deadline:
                raise FedefError(
                    f"{len(nodes)} of {n} clients are connected after {self._start_seconds:g} s; "
                    "start the others, or set num-clients"
                )
            time.sleep(0.1)
        queries = [Message(RecordDict(), node, "query.partition") for node in nodes]
        examples: dict[int, int] = {}
        failures = []
        for reply in grid.send_and_receive(queries, timeout=self._start_seconds):
            if reply.has_error():
                failures.append(_reason(reply))
                continue
            client, examples_there = _partition(reply)
            examples[client] = examples_there
            self._nodes[client] = reply.metadata.src_node_id
        self._stop_on(failures, hopeless=bool(failures))
        if sorted(examples) != list(range(n)) or len(nodes) != n:
            raise FedefError(
                f"expected clients 0 to {n - 1} on {n} nodes, got {sorted(examples)} on "
                f"{len(nodes)}; give each node its own partition-id, and num-supernodes={n}"
            )
        counts = [examples[client] for client in range(n)]
        weights = client_weights(self._experiment.config.weighting, counts)
        started = self._checkpoint
        if started.weights and started.weights != weights:
            raise FedefError(
                f"the clients' weights are {weights}, the run began with {started.weights}: the "
                "data on a node has changed; restore it, or start a new run"
            )
        return self._experiment.server(
            weights=weights,
            state=started.server,
            policies=self._policies,
            mirror=self._mirror,
        )

    def _message(self, task: Task) -> Message:
        task = replace(task, token=self._checkpoint.token)
        return Message(content_of(task), self._nodes[task.client], "train", ttl=self._round_seconds)

    def _receive(self, message: Message, sender: int | None) -> None:
        try:
            reply = reply_from(message.content)
        except CorruptPayload:
            self._refuse("malformed", sender)
            return
        if reply.client != sender:
            self._refuse("alien", sender)
            return
        reason = self.session.receive(reply)
        if reason is not None:
            log(WARNING, "fedef: a reply of client %d was refused: %s", reply.client, reason)

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


def _partition(reply: Message) -> tuple[int, int]:
    """Client and number of examples of a node that answered the query."""
    try:
        facts = reply.content.config_records["partition"]
        return int(str(facts["client"])), int(str(facts["examples"]))
    except (KeyError, ValueError):
        raise FedefError(
            f"node {reply.metadata.src_node_id} did not say which client it is; "
            "start clients.app there, of the same version"
        ) from None


def _reason(message: Message) -> str:
    return message.error.reason or f"Flower's error code {message.error.code}"


def _essence(reason: str) -> str:
    """Last line of a traceback that names an error."""
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line or "Mismatch" in line]
    return (named or lines or ["no reason given"])[-1]
