"""Which node is which client: asked of each node once, as nodes come, go and come back."""

from __future__ import annotations

import time
from logging import WARNING

from flwr.app import Message, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid

from fedef.errors import FedefError

ATTEMPTS = 3
"""How often in a row a node that does not answer is asked who it is."""
MOST_EXAMPLES = 2**53
"""Weights are float64, which holds whole numbers below it."""
POLL_SECONDS = 0.1


class RollCall:
    """The nodes that are connected, by the clients that they say they are.

    A node that comes back has a new id on Flower without node keys: it is asked again, and its
    client is the one that it was. Of two nodes that say they are the same client, the first one
    counts for as long as it is connected.
    """

    def __init__(self, num_clients: int) -> None:
        self._num_clients = num_clients
        self._claims: dict[int, tuple[int, int]] = {}
        self._attempts: dict[int, int] = {}
        self.nodes: dict[int, int] = {}
        """Node by client."""
        self.examples: dict[int, int] = {}
        """Examples by client, as its node told."""
        self.failures: list[str] = []
        """Why nodes failed to answer the last call."""

    def wait_for(self, grid: Grid, count: int, *, seconds: float) -> None:
        """Wait until so many nodes are connected.

        Raises
        ------
        FedefError
            If they are not in time.
        """
        deadline = time.monotonic() + seconds
        while (connected := len(list(grid.get_node_ids()))) < count:
            if time.monotonic() > deadline:
                raise FedefError(
                    f"{connected} of {count} clients are connected after {seconds:g} s; "
                    "start the others, or set num-clients or min-clients"
                )
            time.sleep(POLL_SECONDS)

    def call(self, grid: Grid, *, seconds: float, strict: bool) -> None:
        """Ask the nodes that are new, and forget those that are gone.

        `strict`: whether a node that does not say which client it is ends the run.

        Raises
        ------
        FedefError
            If it does.
        """
        connected = set(grid.get_node_ids())
        self._claims = {node: of for node, of in self._claims.items() if node in connected}
        self._attempts = {node: of for node, of in self._attempts.items() if node in connected}
        new = [n for n in sorted(connected - self._claims.keys()) if self._asked(n) < ATTEMPTS]
        self.failures = []
        if new:
            for node in new:
                self._attempts[node] = self._asked(node) + 1
            queries = [Message(RecordDict(), node, "query.partition") for node in new]
            for reply in grid.send_and_receive(queries, timeout=seconds):
                self._take(reply, strict=strict)
        kept = {client: node for client, node in self.nodes.items() if node in self._claims}
        for node, (client, examples) in self._claims.items():
            if not 0 <= client < self._num_clients:
                continue
            if kept.setdefault(client, node) == node:
                self.examples[client] = examples
            elif node in new:
                log(WARNING, "fedef: node %d says it is client %d, as another does", node, client)
        self.nodes = kept

    def require_everybody(self) -> None:
        """Check that each client is there once.

        Raises
        ------
        FedefError
            If it is not.
        """
        n = self._num_clients
        if sorted(self.nodes) != list(range(n)) or len(self._claims) != n:
            raise FedefError(
                f"expected clients 0 to {n - 1} on {n} nodes, got {sorted(self.nodes)} on "
                f"{len(self._claims)}; give each node its own partition-id, and num-supernodes={n}"
            )

    def _asked(self, node: int) -> int:
        return self._attempts.get(node, 0)

    def _take(self, reply: Message, *, strict: bool) -> None:
        if reply.has_error():
            self.failures.append(reason_of(reply))
            return
        node = reply.metadata.src_node_id
        try:
            client, examples = _partition(reply)
        except FedefError as error:
            if strict:
                raise
            log(WARNING, "fedef: %s", error)
            return
        if not 0 <= client < self._num_clients:
            log(WARNING, "fedef: node %d says it is client %d, which there is not", node, client)
        self._claims[node] = (client, examples)
        self._attempts.pop(node, None)


def reason_of(message: Message) -> str:
    """Why a message is an error."""
    return message.error.reason or f"Flower's error code {message.error.code}"


def _partition(reply: Message) -> tuple[int, int]:
    """Client and number of examples of a node that answered the query."""
    facts = dict(reply.content.config_records.get("partition", {}))
    client, examples = facts.get("client"), facts.get("examples")
    if type(client) is not int or type(examples) is not int or not 0 <= examples < MOST_EXAMPLES:
        raise FedefError(
            f"node {reply.metadata.src_node_id} did not say which client it is and how many "
            f"examples it has (0 to 2^53 - 1), but {str(facts)[:200]}; start clients.app there, of "
            "the same version"
        )
    return client, examples
