"""A federation whose every state lives on disk, as on devices, in one process and without Flower.

A client is made anew from its file for each task, as a SuperNode makes a new process for each
message; the server writes its checkpoint ahead. Whoever is thrown away at any line can be opened
again from the folder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedef.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from fedef.client_store import ClientStore
from fedef.experiment import Experiment
from fedef.messages import Reply, Task
from fedef.server_session import RoundReport, ServerSession
from fedef.state import NO_DIGEST, ClientRecord, ClientState

Answer = Callable[[Task], Reply | None]


class DurableFederation:
    """Server and clients of one run in a folder.

    Parameters
    ----------
    experiment
        What is run.
    folder
        Where the states are; a run that is there goes on.
    token
        The run's name in the clients' stores.
    """

    def __init__(self, experiment: Experiment, folder: Path, *, token: str = "0" * 32) -> None:
        self._experiment = experiment
        self._nodes = folder / "nodes"
        self._path = folder / "checkpoint.fdf"
        folder.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            self._checkpoint = read_checkpoint(self._path, experiment=experiment)
        else:
            self._checkpoint = Checkpoint(experiment.server().state, token=token)
        self.server: ServerSession = experiment.server(state=self._checkpoint.server)

    def round(self, answer: Answer | None = None) -> RoundReport:
        """One round and its checkpoint.

        `answer`: how a task becomes a reply; None where the reply is lost. By default `answer`.
        """
        answer = answer or self.answer
        for task in self.server.begin_round():
            reply = answer(replace(task, token=self._checkpoint.token))
            if reply is not None:
                self.server.receive(reply)
        report = self.server.end_round()
        now = replace(self._checkpoint, server=self.server.state)
        write_checkpoint(self._path, now, experiment=self._experiment)
        return report

    def answer(self, task: Task) -> Reply:
        """What a node does with a task: state from disk, work, state to disk, reply."""
        store = self.store(task.client)
        session = self._experiment.client(task.client, state=store.load())
        reply = session.handle(task)
        store.save(session.state)
        return reply

    def store(self, client: int) -> ClientStore:
        """Where a client keeps its state."""
        return ClientStore(self._nodes, token=self._checkpoint.token, client=client)

    def settled(self, client: int) -> ClientState:
        """A client's own state once it has heard what the server has applied.

        Raises
        ------
        StateMismatch
            If an update was lost or applied twice.
        """
        record = self.server.state.records.get(client, ClientRecord(0, NO_DIGEST))
        state = self.store(client).load() or self._experiment.client(client).state
        return state.settled(record.version, record.digest)

    def drift(self) -> float:
        """Max |total - sum_i w_i g_i| over the clients' own g_i; rounding apart it is 0."""
        own = np.zeros(self.server.x.size)
        for client, weight in enumerate(self.server.weights):
            own += weight * self.settled(client).g.astype(np.float64)
        return float(np.max(np.abs(self.server.state.total - own)))
