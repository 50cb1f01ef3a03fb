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

from fedef.checkpoint import Checkpoint
from fedef.client_store import ClientStore
from fedef.durable import make_folder
from fedef.errors import ConfigError
from fedef.experiment import Experiment
from fedef.members import Policies
from fedef.messages import Reply, Task
from fedef.server_session import DEFAULT_POLICIES, RoundReport, ServerSession
from fedef.server_store import ServerStore
from fedef.state import NO_DIGEST, ClientRecord, ClientState
from fedef.vectors import Vector

Answer = Callable[[Task], Reply | None]


class DurableFederation:
    """Server and clients of one run in a folder.

    Parameters
    ----------
    experiment
        What is run.
    folder
        Where the states are; a run that is there goes on.
    policies
        What the server does about clients that fail or lie.
    token
        The run's name in the clients' stores.
    checkpoint_every
        Rounds between the server's checkpoints; the journal has the others.
    """

    def __init__(
        self,
        experiment: Experiment,
        folder: Path,
        *,
        policies: Policies = DEFAULT_POLICIES,
        token: str = "0" * 32,
        checkpoint_every: int = 1,
    ) -> None:
        self._experiment = experiment
        self._nodes = folder / "nodes"
        make_folder(folder)
        path = folder / "checkpoint.fdf"
        self._store = ServerStore(path, experiment, policies, every=checkpoint_every)
        self._checkpoint = (
            self._store.load()
            if path.exists()
            else self._store.save(Checkpoint(experiment.server().state, token=token))
        )
        self.server: ServerSession = experiment.server(
            state=self._checkpoint.server,
            policies=policies,
            mirror=self._store.rows,
            journaled=self._store.journals,
        )

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
        self._store.keep(self._checkpoint, self.server, report)
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
        """A client's own state once it has heard what the server has applied, or made of it.

        Raises
        ------
        StateMismatch
            If an update was lost or applied twice.
        """
        record = self.server.state.records.get(client, ClientRecord(0, NO_DIGEST))
        start, stored = self._experiment.client(client).state, self.store(client).load()
        if stored is None or stored.life < self.server.life(client):
            stored = start  # to be told to start again
            if self.server.members.of(client).handing_back:
                own = self.mirror_row(client).copy()
                stored = replace(start, held=own, version=record.version, digest=record.digest)
        return stored.settled(record.version, record.digest)

    def mirror_row(self, client: int) -> Vector:
        """A client's g_i as the server's mirror has it.

        Raises
        ------
        ConfigError
            If the policies need no mirror, so that there is none.
        """
        if self._store.rows is None:
            raise ConfigError("there is no mirror; choose a policy with one")
        return self._store.rows(client)

    def drift(self) -> float:
        """Max |total - sum_i w_i g_i| over the clients' own g_i; rounding apart it is 0."""
        own = np.zeros(self.server.x.size)
        for client, weight in enumerate(self.server.weights):
            own += weight * self.settled(client).g.astype(np.float64)
        return float(np.max(np.abs(self.server.state.total - own)))
