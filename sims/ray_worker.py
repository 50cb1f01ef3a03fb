"""What runs in a Ray actor: a shard of the clients, with their state, which stays there."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Any

from threadpoolctl import threadpool_limits

from fedef.client_session import ClientSession
from fedef.cohort import work_of
from fedef.config import Config
from fedef.experiment import Experiment
from fedef.messages import Field, Reply, Task
from fedef.state import Arrays, ClientState

Build = Callable[[Config], Experiment]
SHARED = ("model", "buffers")
"""Fields that all tasks of a round have in common."""
_OWN = tuple(field.name for field in fields(Task) if field.name not in SHARED)
Ask = tuple[Field, ...]
"""A task without what it shares."""
ask_of: Callable[[Task], Ask] = attrgetter(*_OWN)


def task_from(ask: Ask, model: bytes, buffers: bytes) -> Task:
    """Inverse of `ask_of`."""
    own: dict[str, Any] = dict(zip(_OWN, ask, strict=True))
    return Task(model=model, buffers=buffers, **own)


class Worker:
    """One actor. Its calls run one after the other, on one thread."""

    def __init__(self) -> None:
        self._built: Experiment | None = None
        self._clients: dict[int, ClientSession] = {}

    def start(self, build: Build, config: Config, states: Mapping[int, Arrays]) -> None:
        """Build data and model, once, and take over the shard's states.

        Raises
        ------
        ConfigError
            If this machine cannot build the experiment, or the states do not belong to it.
        """
        threadpool_limits(limits=1)
        self._built = build(config)
        threadpool_limits(limits=1)  # again: building may have loaded a library of its own
        self._clients = {
            client: self._built.client(client, state=ClientState.from_arrays(arrays))
            for client, arrays in states.items()
        }

    def work(self, asks: Sequence[Ask], model: bytes, buffers: bytes) -> list[Reply]:
        """The shard's replies of a round."""
        tasks = [task_from(ask, model, buffers) for ask in asks]
        asked = [(self._client(task.client), task) for task in tasks]
        work = list(work_of(self._experiment, asked))
        return [self._client(done.task.client).answer(done) for done in work]

    def repeat(self, asks: Sequence[Ask], model: bytes, buffers: bytes) -> None:
        """Do a round again whose replies the server has had: only the state counts."""
        self.work(asks, model, buffers)

    def states(self) -> dict[int, Arrays]:
        """The shard's states, for a checkpoint."""
        return {client: session.state.to_arrays() for client, session in self._clients.items()}

    def process(self) -> int:
        """The process ID."""
        return os.getpid()

    @property
    def _experiment(self) -> Experiment:
        if self._built is None:
            raise RuntimeError("start comes before any work")
        return self._built

    def _client(self, client: int) -> ClientSession:
        if client not in self._clients:
            self._clients[client] = self._experiment.client(client)
        return self._clients[client]
