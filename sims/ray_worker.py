"""What runs in a Ray actor: a shard of the clients, with their state, which stays there."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from operator import attrgetter
from threading import Lock
from typing import Any

from threadpoolctl import threadpool_limits

from fedef.client_session import ClientSession
from fedef.cohort import work_of
from fedef.config import Config
from fedef.experiment import Experiment
from fedef.messages import Field, Reply, Task
from fedef.reader import Reader
from fedef.state import Arrays, ClientState
from sims.ray_lines import dial
from sims.ray_share import Share

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
    """One actor. What it is asked for, by calls or by line, it does one after the other."""

    def __init__(self) -> None:
        self._turn = Lock()
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
        gc.collect()
        gc.freeze()  # what is here stays: each full collection would look at it, for 0.1 s

    def work(self, asks: Sequence[Ask], model: bytes, buffers: bytes) -> Share:
        """The shard's replies of a round."""
        tasks = [task_from(ask, model, buffers) for ask in asks]
        config, method = self._experiment.config, self._experiment.method
        return Share.of(Reader(method, config.seed), tasks, self._replies(tasks))

    def dial(self, address: str, worker: int) -> bool:
        """Do what comes by a line to the driver, too; whether there is one. See `ray_lines`."""
        return dial(address, worker, lambda order: self.work(*order))

    def repeat(self, asks: Sequence[Ask], model: bytes, buffers: bytes) -> None:
        """Do a round again whose replies the server has had: only the state counts."""
        self._replies([task_from(ask, model, buffers) for ask in asks])

    def states(self) -> dict[int, Arrays]:
        """The shard's states, for a checkpoint."""
        return {client: session.state.to_arrays() for client, session in self._clients.items()}

    def process(self) -> int:
        """The process ID."""
        return os.getpid()

    def _replies(self, tasks: Sequence[Task]) -> list[Reply]:
        with self._turn:
            asked = [(self._client(task.client), task) for task in tasks]
            work = list(work_of(self._experiment, asked))
            return [self._client(done.task.client).answer(done) for done in work]

    @property
    def _experiment(self) -> Experiment:
        if self._built is None:
            raise RuntimeError("start comes before any work")
        return self._built

    def _client(self, client: int) -> ClientSession:
        if client not in self._clients:
            self._clients[client] = self._experiment.client(client)
        return self._clients[client]
