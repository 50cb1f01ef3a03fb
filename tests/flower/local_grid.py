"""A grid of Flower nodes in this process: the apps without Flower's network."""

import pickle

import numpy as np
from flwr.app import Context, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from clients.app import app as client_app
from fedef.config import Config

CONFIG = Config.from_flat(
    {
        "problem": "digits-softmax",
        "num-clients": 5,
        "participation": 0.6,
        "local-batch-size": 8,
        "num-rounds": 8,
        "k-fraction": 0.05,
    }
)
"""Eight rounds of three clients out of five."""


def enter_flower():
    """Have this process pass for one that Flower has started."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


class LocalGrid:
    """Flower nodes in this process, with fresh random-looking ids and shuffled replies."""

    def __init__(
        self, run_config, num_nodes, *, seed=0, tamper=None, node_config=None, app=client_app
    ):
        rng = np.random.default_rng(seed)
        self._app = app
        self._rng = rng
        self._tamper = tamper or (lambda message, partition: message)
        self._nodes = {int(n): p for p, n in enumerate(rng.permutation(10**6)[:num_nodes])}
        self._run_config, self._node_config = run_config, node_config or {}
        self._contexts = {node: self._context(node, p) for node, p in self._nodes.items()}
        self.offline = set()
        self.messages = []

    def _context(self, node, partition):
        return Context(
            run_id=1,
            node_id=node,
            node_config={"partition-id": partition, **self._node_config},
            state=RecordDict(),
            run_config=self._run_config,
        )

    def add_node(self, partition):
        """One more node, with nothing in Flower's memory; return its id."""
        node = 10**6 + len(self._nodes)
        self._nodes[node] = partition
        self._contexts[node] = self._context(node, partition)
        return node

    def restart(self, partition):
        """A node comes back as another one, as Flower's do without node keys."""
        (old,) = [node for node, p in self._nodes.items() if p == partition]
        self.add_node(partition)
        self.offline.add(old)

    def node_of(self, partition):
        return next(node for node, p in self._nodes.items() if p == partition)

    def get_node_ids(self):
        return set(self._nodes) - self.offline

    def send_and_receive(self, messages, *, timeout=None):
        replies = []
        for message in messages:
            node = message.metadata.dst_node_id
            self.messages.append(message)
            # As Flower's simulation does: the state travels, and rolls back when the app raises.
            message, context = pickle.loads(pickle.dumps((message, self._contexts[node])))
            try:
                reply = self._app(message, context)
                self._contexts[node] = context
            except Exception as error:
                reply = Message(Error(code=2, reason=repr(error)), reply_to=message)
            reply = self._tamper(reply, self._nodes[node])
            replies += reply if isinstance(reply, list) else [reply]
        return [replies[i] for i in self._rng.permutation(len(replies))]
