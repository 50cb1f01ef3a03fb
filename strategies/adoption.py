"""FedAvg with error feedback: the one line that changes in an existing ServerApp."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from logging import INFO, WARNING
from typing import Any

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedef import ensure_ours
from fedef.adoption import HELLO, PLAN, STATISTICS, AdoptedProblem, Plan
from fedef.errors import ConfigError, CorruptPayload, FedefError
from fedef.randomness import stream
from fedef.server_session import ServerSession
from strategies.records import content_of, reply_from

ensure_ours()


class ErrorFeedback(FedAvg):
    """FedAvg whose clients, under `clients.mod.error_feedback_mod`, send compressed corrections.

        strategy = ErrorFeedback(k_fraction=0.01, fraction_train=1.0)
        result = strategy.start(grid=grid, initial_arrays=arrays, num_rounds=3)

    Parameters
    ----------
    k_fraction
        Entries sent over d.
    compressor
        top-k, rand-k or identity; identity with all clients in each round is FedAvg.
    feedback
        ef14: what was not sent is added to the next message, which follows FedAvg most closely.
        ef21, norm-ef21: the methods of the paper on the pseudo-gradient.
    value_format
        Values on the wire: float32, bfloat16, float16 or float64.
    step_size
        The server's; 1 is FedAvg's. Choose one for norm-ef21, whose steps have this length.
    seed
        Of the clients that take part and of rand-k.
    statistics
        Last parts of the names of floating-point arrays that are averaged whole.
    hello_seconds
        How long a node may take to say which client it is.
    fedavg
        FedAvg's own parameters.

    Notes
    -----
    Clients are known by ``partition-id`` of their node's config, else by the node. The first round
    asks all of them and fixes their weights by FedAvg's ``weighted_by_key``; a client that did not
    answer in it gets the mean weight. A client that returns as another node keeps its place; one
    that was not there at the start takes no part.
    """

    def __init__(
        self,
        *,
        k_fraction: float = 0.01,
        compressor: str = "top-k",
        feedback: str = "ef14",
        value_format: str = "float32",
        step_size: float = 1.0,
        seed: int = 0,
        statistics: Sequence[str] = STATISTICS,
        hello_seconds: float = 120.0,
        **fedavg: Any,
    ) -> None:
        super().__init__(**fedavg)
        self._settings: dict[str, Any] = {
            "k_fraction": k_fraction,
            "compressor": compressor,
            "feedback": feedback,
            "value_format": value_format,
            "step_size": step_size,
            "seed": seed,
            "statistics": statistics,
        }
        self._hello_seconds = hello_seconds
        self._session: ServerSession | None = None
        self._nodes: dict[int, int] = {}  # node id by client
        self._greeted: set[int] = set()
        self._names: list[int] = []  # the clients' own names, in their order
        self._asked: list[int] = []
        self._weighed = False
        self._token = secrets.token_hex(16)  # names the run in the clients' stores

    @property
    def session(self) -> ServerSession:
        """The server's session, with the bytes that were sent so far in its state.

        Raises
        ------
        FedefError
            Before the first round.
        """
        if self._session is None:
            raise FedefError("the strategy has not met its clients yet; start it first")
        return self._session

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Tasks of the round's participants.

        Raises
        ------
        ConfigError
            If the model or a setting cannot be used.
        FedefError
            If a node runs the app without the mod.
        """
        if self.fraction_train == 0.0:
            return []
        self._meet(grid)
        if self._session is None:
            self._begin(arrays)
        config["server-round"] = server_round
        plan = ConfigRecord({"json": self._plan.to_json()})
        self._asked = self._drawn(server_round, set(grid.get_node_ids()))
        messages = []
        for task in self.session.begin_round(self._asked):
            content = content_of(replace(task, token=self._token))
            content[PLAN], content[self.configrecord_key] = plan, config
            messages.append(Message(content, self._nodes[task.client], MessageType.TRAIN))
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Apply the corrections that arrived, and average the metrics as FedAvg does."""
        if not self._asked:
            return None, None
        answered, _ = self._check_and_log_replies(list(replies), is_train=True, validate=False)
        clients = {node: client for client, node in self._nodes.items()}
        metrics = {
            clients[message.metadata.src_node_id]: own
            for message in answered
            if message.metadata.src_node_id in clients
            and (own := self._metrics(message)) is not None
        }
        if not self._weighed and metrics:
            self._weigh(metrics)
        for message in answered:
            self._receive(message, clients.get(message.metadata.src_node_id), metrics)
        report = self.session.end_round()
        self._asked = []
        if report.refusals:
            log(WARNING, "fedef: refused in round %d: %s", report.round, report.refusals)
        model = self._plan.join(self.session.x, self.session.buffers)
        arrays = ArrayRecord({name: Array(array) for name, array in model.items()})
        averaged = MetricRecord()
        contents = [RecordDict({"metrics": metrics[client]}) for client in report.accepted]
        if contents:
            averaged = self.train_metrics_aggr_fn(_alike(contents), self.weighted_by_key)
        averaged["fedef-uplink-bytes"] = report.uplink_bytes
        return arrays, averaged

    def summary(self) -> None:
        """Log what is run."""
        log(INFO, "\t├──> Error feedback: %s", self._settings)
        super().summary()

    def _meet(self, grid: Grid) -> None:
        """Ask nodes that were not seen before which client they are."""
        while len(nodes := set(grid.get_node_ids())) < self._least_nodes():
            log(INFO, "fedef: %d of %d nodes are there", len(nodes), self._least_nodes())
            time.sleep(1.0)
        hello = RecordDict({HELLO: ConfigRecord({"version": 1})})
        messages = [
            Message(hello, node, MessageType.TRAIN) for node in sorted(nodes - self._greeted)
        ]
        if not messages:
            return
        named: dict[int, int] = {}
        for reply in grid.send_and_receive(messages, timeout=self._hello_seconds):
            if reply.has_error() and self._session is not None:
                continue  # it may have gone again; it is asked in the next round
            name, node = _name_of(reply), reply.metadata.src_node_id
            if named.setdefault(name, node) != node:
                raise ConfigError(
                    f"two nodes have partition-id={name}; give each node its own, or none"
                )
            self._greeted.add(node)
        if self._session is None:
            self._names = sorted(named)
            if not named:
                raise FedefError(
                    f"none of {len(messages)} nodes answered within {self._hello_seconds:g} s; "
                    "look at their logs, or raise hello_seconds"
                )
        for name, node in sorted(named.items()):
            if name in self._names:
                self._nodes[self._names.index(name)] = node
            else:
                log(WARNING, "fedef: node %d was not there at the start, it takes no part", node)

    def _begin(self, arrays: ArrayRecord) -> None:
        model = {name: array.numpy() for name, array in arrays.items()}
        settings, n = dict(self._settings), len(self._names)
        if (
            settings["feedback"] == "ef14"
        ):  # the mean is over all clients, FedAvg's over those of the round
            settings["step_size"] *= n / self._count(n)
        self._plan = Plan.of(
            model,
            **settings,
            num_clients=n,
            weighted_by=self.weighted_by_key,
            arrays_key=self.arrayrecord_key,
            config_key=self.configrecord_key,
        )
        self._problem = AdoptedProblem(self._plan, self._plan.split(model))
        self._session = self._serve([1.0] * n)

    def _serve(self, weights: Sequence[float]) -> ServerSession:
        return ServerSession(
            run_id=self._plan.run_id,
            seed=self._plan.seed,
            problem=self._problem,
            method=self._plan.method(),
            weights=weights,
            state=None if self._session is None else self._session.state,
        )

    def _weigh(self, metrics: dict[int, MetricRecord]) -> None:
        """Fix the weights by the first round's answers; nothing was applied before."""
        known = {client: _number(own[self.weighted_by_key]) for client, own in metrics.items()}
        mean = sum(known.values()) / len(known)
        weights = [known.get(client, mean) for client in range(len(self._names))]
        self._session = self._serve(weights)
        self._session.begin_round(self._asked)
        self._weighed = True

    def _least_nodes(self) -> int:
        return max(self.min_available_nodes, self.min_train_nodes, 1)

    def _count(self, n: int) -> int:
        """How many of n clients take part in a round."""
        return min(n, max(int(n * self.fraction_train), self.min_train_nodes, 1))

    def _drawn(self, server_round: int, present: set[int]) -> list[int]:
        clients = [client for client, node in sorted(self._nodes.items()) if node in present]
        count = self._count(len(self._names)) if self._weighed else len(clients)
        if count >= len(clients):
            return clients
        draws = stream(self._plan.seed, "participation", server_round)
        return sorted(draws.choice(clients, size=count, replace=False).tolist())

    def _receive(
        self, message: Message, client: int | None, metrics: dict[int, MetricRecord]
    ) -> None:
        try:
            reply = reply_from(message.content)
        except CorruptPayload:
            self.session.refuse("malformed")
            return
        if client != reply.client:
            self.session.refuse("alien")
        elif client not in metrics and reply.update:
            self.session.refuse("malformed")
        else:
            self.session.receive(reply)

    def _metrics(self, message: Message) -> MetricRecord | None:
        """Return the one MetricRecord of a reply; None where it is not usable."""
        records = list(message.content.metric_records.values())
        if len(records) != 1:
            return None
        weight = records[0].get(self.weighted_by_key)
        usable = isinstance(weight, int | float) and 0 <= weight < np.inf
        return records[0] if usable else None


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _alike(contents: list[RecordDict]) -> list[RecordDict]:
    """Return those that have the same metrics as the first: only such can be averaged."""

    def form(content: RecordDict) -> list[tuple[str, int]]:
        metrics = content.metric_records["metrics"].items()
        return sorted((k, len(v) if isinstance(v, list) else -1) for k, v in metrics)

    return [content for content in contents if form(content) == form(contents[0])]


def _name_of(reply: Message) -> int:
    """Name of the client that a node plays.

    Raises
    ------
    FedefError
        If the node runs its app without the mod.
    """
    if not reply.has_error() and HELLO in reply.content.config_records:
        name = reply.content.config_records[HELLO].get("client")
        if isinstance(name, int):
            return name
    reason = reply.error.reason if reply.has_error() else "another answer"
    raise FedefError(
        f"node {reply.metadata.src_node_id} did not say which client it is; give its app the mod: "
        f"ClientApp(mods=[error_feedback_mod]). It answered: {reason}"
    )
