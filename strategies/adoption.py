"""FedAvg with error feedback for apps that exist: the one line that changes in their ServerApp.

The class of the same name in `strategies.error_feedback` is another: for fedef's own clients.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
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
from fedef.members import RESET, RESYNC, STOP, Policies
from fedef.randomness import stream
from fedef.refusals import ALIEN, MALFORMED
from fedef.server_session import ServerSession
from fedef.steppers import IncrementStep
from strategies.records import content_of, reply_from
from strategies.roll_call import ATTEMPTS

ensure_ours()


class ErrorFeedback(FedAvg):
    """FedAvg with error feedback for an app that exists, whose own clients train as they did.

    Not the strategy of this name in `strategies.error_feedback`, which runs an experiment on
    fedef's own clients. Here the app's clients send compressed corrections, because
    `clients.mod.error_feedback_mod` is around their training.

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
    on_lost_state
        About a client that lost its state, as one without ``state-dir`` does when its node starts
        again. evict-by-reset: all clients start again at nothing sent, at the same model, which
        costs what was not sent yet. dense-resync: the same, and each one's next message is dense.
        stop: the run ends.
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
        on_lost_state: str = RESET,
        **fedavg: Any,
    ) -> None:
        super().__init__(**fedavg)
        if on_lost_state not in (RESET, RESYNC, STOP):
            raise ConfigError(
                f"on_lost_state: must be one of {RESET}, {RESYNC}, {STOP}, got {on_lost_state!r}"
            )
        self._policies = Policies(on_lost_state)
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
        self._claims: dict[int, int] = {}  # name by node id, as the connected nodes said
        self._attempts: Counter[int] = Counter()  # how often a silent node was asked
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
            If, at the start, a node runs the app without the mod.
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
        if self.fraction_train == 0.0:
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
        excluded, epoch = set(self.session.members.excluded), self.session.state.epoch
        report = self.session.end_round()
        self._asked = []
        for client, why in self.session.members.excluded.items():
            if client not in excluded:
                name = self._names[client]
                log(WARNING, "fedef: client %d is excluded from here on: %s", name, why)
        if self.session.state.epoch != epoch:
            log(WARNING, "fedef: a client lost its state; all start again with nothing sent")
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
        self._claims = {node: name for node, name in self._claims.items() if node in nodes}
        self._attempts = Counter({n: of for n, of in self._attempts.items() if n in nodes})
        new = [n for n in sorted(nodes - self._claims.keys()) if self._attempts[n] < ATTEMPTS]
        if new:
            self._ask(grid, new)
        if self._session is None:
            self._name_clients(len(nodes))
        kept = {client: node for client, node in self._nodes.items() if node in self._claims}
        for node, name in sorted(self._claims.items()):
            taken = name in self._names and kept.setdefault(self._names.index(name), node) == node
            if not taken and node in new:
                log(
                    WARNING,
                    "fedef: node %d says it is client %d, which %s; it takes no part",
                    *(node, name),
                    "another node is" if name in self._names else "was not there at the start",
                )
        self._nodes = kept

    def _ask(self, grid: Grid, nodes: list[int]) -> None:
        """Ask nodes which client they are."""
        self._attempts.update(nodes)
        hello = RecordDict({HELLO: ConfigRecord({"version": 1})})
        messages = [Message(hello, node, MessageType.TRAIN) for node in nodes]
        for reply in grid.send_and_receive(messages, timeout=self._hello_seconds):
            try:
                name = _name_of(reply)
            except FedefError as error:
                if self._session is None:
                    raise
                log(WARNING, "fedef: %s", error)
                continue
            self._claims[reply.metadata.src_node_id] = name
            self._attempts.pop(reply.metadata.src_node_id, None)

    def _name_clients(self, num_nodes: int) -> None:
        """Who is there at the start is who takes part.

        Raises
        ------
        ConfigError
            If two nodes have one name.
        FedefError
            If nobody answered.
        """
        self._names = sorted(set(self._claims.values()))
        if not self._names:
            raise FedefError(
                f"none of {num_nodes} nodes answered within {self._hello_seconds:g} s; "
                "look at their logs, or raise hello_seconds"
            )
        for name, count in Counter(self._claims.values()).items():
            if count > 1:
                raise ConfigError(
                    f"two nodes have partition-id={name}; give each node its own, or none"
                )

    def _begin(self, arrays: ArrayRecord) -> None:
        model = {name: array.numpy() for name, array in arrays.items()}
        n = len(self._names)
        self._plan = Plan.of(
            model,
            **self._settings,
            num_clients=n,
            weighted_by=self.weighted_by_key,
            arrays_key=self.arrayrecord_key,
            config_key=self.configrecord_key,
        )
        self._problem = AdoptedProblem(self._plan, self._plan.split(model))
        self._session = self._serve([1.0] * n)

    def _serve(self, weights: Sequence[float]) -> ServerSession:
        method = self._plan.method()
        if self._plan.feedback == "ef14":
            method = replace(method, stepper=IncrementStep(self._increment_step_size))
        return ServerSession(
            run_id=self._plan.run_id,
            seed=self._plan.seed,
            problem=self._problem,
            method=method,
            weights=weights,
            state=None if self._session is None else self._session.state,
            policies=self._policies,
        )

    def _increment_step_size(self, k: int) -> float:
        """Of the open round: the mean is over all clients, FedAvg's over those that it asks."""
        everybody = len(self._names) - len(self.session.members.excluded)
        return self._plan.step_size * everybody / max(len(self.session.asked), 1)

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
            self.session.refuse(MALFORMED, client)
            return
        if client != reply.client:
            self.session.refuse(ALIEN, client)
        elif client not in metrics and reply.update:
            self.session.refuse(MALFORMED, client)
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
