"""The Ray engine: actors that each own a shard of the clients and their state.

In a round every actor gets the model, a large one by way of the object store, and the list of its
clients that are asked, and returns their encoded replies at once, with what is read in them
(`ray_share`). A small model goes by a line to the workers that have one (`ray_lines`). States never
travel in a round: they go to the driver for a checkpoint, and back from it to a worker that takes a
dead one's place.

A lost worker. All that a client does follows from its state, its tasks and the seed. So a new
worker starts from the shard's states in the last checkpoint (or from the start of the run) and
does the rounds since then again, from the tasks that the driver kept. It ends in the same bits,
and then does the round in which the old one died. The driver keeps the models of these rounds: a
few itself, many in the object store, which moves to disk what does not fit.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from heapq import heapreplace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from fedef.checkpoint import Checkpoint
from fedef.errors import FedefError
from fedef.experiment import Experiment
from fedef.messages import Task
from fedef.server_session import RoundReport, ServerSession
from fedef.state import Arrays
from sims.checkpoint import whole_checkpoint
from sims.ray_cluster import Resources, cluster
from sims.ray_lines import Lines
from sims.ray_orders import Order, PastOrders
from sims.ray_share import Share
from sims.ray_worker import Ask, Build, Worker, ask_of

PLACEMENT_SECONDS = 300.0
MAX_LOSSES = 3
"""Times that one shard's worker may be lost within one round; then the run stops."""

WITH_THE_CALL_BYTES = 2**20
"""Of a round's models for all workers: up to it they go with the calls, 2 ms faster than by way of
the object store, which holds one copy for all."""
_GONE = (
    ActorDiedError,
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,  # a large reply lies on the worker's node, and goes with it
    OutOfMemoryError,
    WorkerCrashedError,
)
_log = logging.getLogger("fedef")


@dataclass(frozen=True)
class RaySettings:
    """How to run on Ray; the result does not depend on it."""

    workers: int | None = None
    """Actors; None: one for each core."""
    address: str = ""
    """Of a cluster that is there; empty: one of our own for the run."""
    resources: Resources = field(default_factory=Resources)
    """Of one actor."""
    recover: bool = True
    """Put a new worker in a lost one's place; else the run stops at its last checkpoint."""
    build: Build = Experiment.build
    """Makes the experiment in each worker; a function of a module, which is found by its name."""

    @contextmanager
    def open(self, experiment: Experiment, checkpoint: Path | None) -> Iterator[RayEngine]:
        """The engine, at the start or at a checkpoint, on a cluster that is left at the end."""
        with (
            cluster(self.address, self.resources, self.workers) as workers,
            closing(RayEngine(experiment, self, workers, checkpoint)) as engine,
        ):
            yield engine


class _Lost(Exception):  # noqa: N818 - names a condition
    """A worker's process is gone."""


class RayEngine:
    """The sessions of a run, the server's here and the clients' in actors."""

    def __init__(
        self,
        experiment: Experiment,
        settings: RaySettings,
        workers: int,
        checkpoint: Path | None = None,
    ) -> None:
        self.experiment = experiment
        self._settings = settings
        self._checkpoint = checkpoint
        stored = self._stored()
        self.server: ServerSession = experiment.server(state=stored.server if stored else None)
        self._shard_of = shards(_costs(experiment), workers)
        self._past = PastOrders()
        self._losses: Counter[int] = Counter()
        self._actors: dict[int, Any] = {}
        self._lines = Lines(workers)
        try:
            self._start(sorted(set(self._shard_of)), stored.clients if stored else {})
        except BaseException:
            self.close()
            raise

    def round(self) -> RoundReport:
        """One round with sampled clients.

        Raises
        ------
        FedefError
            If a client fails, or a worker is lost and cannot or shall not be replaced.
        """
        order = self._order(self.server.begin_round())
        for share in self._shares(order):
            for reply, update in share.updates(self.experiment.problem.dimension):
                self.server.receive(reply, update)
        self._past.close_round()
        report = self.server.end_round()
        self._losses.clear()
        return report

    def client_arrays(self) -> Iterator[tuple[int, Arrays]]:
        """See `Engine`."""
        states: dict[int, Arrays] = {}
        for worker in self._actors:
            states |= self._states_of(worker)
        yield from sorted(states.items())

    def saved(self, path: Path) -> None:
        """From here on a lost worker starts from this checkpoint."""
        self._checkpoint = path
        self._past.clear()

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors.values():
            ray.kill(actor)
        self._lines.close()
        self._actors.clear()

    @property
    def processes(self) -> dict[int, int]:
        """The process ID of each worker."""
        return {w: ray.get(actor.process.remote()) for w, actor in self._actors.items()}

    def _shares(self, order: Order) -> Iterator[Share]:
        """Each worker's replies of a round, as they come; of new workers where some were lost."""
        near = [w for w in order.asks if w in self._lines] if not order.is_stored else []
        running = {order.give(w, self._actors[w].work): w for w in order.asks if w not in near}
        for worker in near:
            self._lines.send(worker, order.arguments(worker))
        self._past.hold(order)  # while they work
        for worker, answer in self._lines.answers(near):
            if answer is None:  # it failed, or is gone: the call tells
                running[order.give(worker, self._actors[worker].work)] = worker
            else:
                yield answer
        while running:
            (done,), _ = ray.wait(list(running))
            worker = running.pop(done)
            try:
                share: Share = self._get(worker, done)
            except _Lost as loss:
                self._replace(worker, loss)
                running[order.give(worker, self._actors[worker].work)] = worker
                continue
            yield share

    def _order(self, tasks: Sequence[Task]) -> Order:
        asks: dict[int, list[Ask]] = defaultdict(list)
        for task in tasks:
            asks[self._shard_of[task.client]].append(ask_of(task))
        model, buffers = (tasks[0].model, tasks[0].buffers) if tasks else (b"", b"")
        order = Order(model, buffers, asks)
        small = (len(model) + len(buffers)) * len(asks) <= WITH_THE_CALL_BYTES
        return order if small else order.stored()

    def _states_of(self, worker: int) -> dict[int, Arrays]:
        while True:
            try:
                states: dict[int, Arrays] = self._get(worker, self._actors[worker].states.remote())
            except _Lost as loss:
                self._replace(worker, loss)
            else:
                return states

    def _replace(self, worker: int, loss: _Lost) -> None:
        """Put a new worker in a lost one's place, with the state after the last round."""
        self._losses[worker] += 1
        where = f"worker {worker} was lost in round {self.server.round + 1} ({loss})"
        if not self._settings.recover or self._losses[worker] > MAX_LOSSES:
            raise FedefError(
                f"{where}; nothing of the round is applied. Go on from the last checkpoint with "
                "--resume FOLDER, with fewer --workers if memory ran out"
            )
        _log.warning(
            "%s; another one takes its place and does %d rounds again", where, len(self._past)
        )
        self._lines.hang_up(worker)
        with suppress(RayError):  # it may be alive and out of reach
            ray.kill(self._actors[worker])
        stored = self._stored()
        self._start([worker], stored.clients if stored else {})

    def _start(self, workers: Sequence[int], states: Mapping[int, Arrays]) -> None:
        """Start workers side by side and bring them to the state after the last round."""
        resources = self._settings.resources
        kind: Any = ray.remote(Worker)
        kind = kind.options(
            num_cpus=resources.num_cpus,
            num_gpus=resources.num_gpus,
            scheduling_strategy="SPREAD",
        )
        shares: dict[int, dict[int, Arrays]] = {worker: {} for worker in workers}
        for client, arrays in states.items():
            if (worker := self._shard_of[client]) in shares:
                shares[worker][client] = arrays
        calls: dict[int, list[Any]] = {}
        for worker in workers:
            actor: Any = kind.remote()
            self._actors[worker] = actor
            start = actor.start.remote(
                self._settings.build, self.experiment.config, shares.pop(worker)
            )
            repeated = [o.give(worker, actor.repeat) for o in self._past if worker in o.asks]
            dialled = actor.dial.remote(self._lines.address, worker)
            calls[worker] = [actor.process.remote(), start, *repeated, dialled]
        self._await_placement([placed for placed, *_ in calls.values()])
        for worker, results in calls.items():
            try:
                self._get(worker, results)
            except _Lost as loss:
                self._replace(worker, loss)
            else:
                self._lines.accept()

    def _await_placement(self, placed: list[Any]) -> None:
        _, waiting = ray.wait(placed, num_returns=len(placed), timeout=PLACEMENT_SECONDS)
        if waiting:
            raise FedefError(
                f"{len(waiting)} of {len(placed)} workers found no place in the Ray cluster for "
                f"{PLACEMENT_SECONDS:g} s; free resources there, add nodes, or give fewer "
                "--workers or smaller --client-resources"
            )

    def _get(self, worker: int, result: Any) -> Any:
        """Value of what a worker was asked for.

        Raises
        ------
        _Lost
            If the worker's process is gone, or what it answered.
        FedefError
            If the work itself failed.
        """
        try:
            return ray.get(result)
        except RayTaskError as error:
            if isinstance(error.cause, FedefError):
                raise error.cause from None
            if isinstance(error.cause, MemoryError):
                raise FedefError(
                    f"worker {worker} has not enough memory: {error.cause}; give fewer --workers, "
                    "fewer clients or a smaller problem"
                ) from None
            raise
        except _GONE as error:
            raise _Lost(_last_line(error)) from None
        except RayError as error:
            raise FedefError(
                f"Ray failed: {_last_line(error)}; go on from the last checkpoint with --resume"
            ) from None

    def _stored(self) -> Checkpoint | None:
        path = self._checkpoint
        return None if path is None else whole_checkpoint(path, self.experiment)


def shards(costs: Sequence[float], workers: int) -> list[int]:
    """Worker of each client: the most costly first, each to whom has the least to do."""
    loads: list[tuple[float, int]] = [(0.0, worker) for worker in range(workers)]
    owners = [0] * len(costs)
    for client in sorted(range(len(costs)), key=lambda c: -costs[c]):
        load, owners[client] = loads[0]
        heapreplace(loads, (load + costs[client], owners[client]))
    return owners


def _costs(experiment: Experiment) -> list[float]:
    """Rows of each client's gradient; an empty client costs something as well."""
    most = experiment.config.local_batch_size or max(experiment.problem.num_examples)
    return [max(1.0, min(rows, most)) for rows in experiment.problem.num_examples]


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
