"""A grid of Flower nodes in this process: the apps without Flower's network."""

import pickle

import numpy as np
from flwr.app import Context, Error, Message, RecordDict

from clients.app import app as client_app


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
        self._contexts = {
            node: Context(
                run_id=1,
                node_id=node,
                node_config={
                    "partition-id": partition,
                    "num-partitions": num_nodes,
                    **(node_config or {}),
                },
                state=RecordDict(),
                run_config=run_config,
            )
            for node, partition in self._nodes.items()
        }
        self.messages = []

    def get_node_ids(self):
        return set(self._nodes)

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
