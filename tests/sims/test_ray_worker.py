"""The Ray engine's parts without Ray: who owns whom, options, a shard that comes back."""

import gc
from collections import Counter
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    ObjectReconstructionFailedError,
    OutOfMemoryError,
    OwnerDiedError,
    WorkerCrashedError,
)
from ray_case import SETTINGS

import sims.ray_engine
from fedef.config import Config
from fedef.errors import ConfigError, FedefError
from fedef.experiment import Experiment
from fedef.messages import Task
from sims.engine import InlineEngine
from sims.engines import opener
from sims.ray_cluster import Resources
from sims.ray_engine import MAX_LOSSES, RayEngine, RaySettings, shards
from sims.ray_lines import Lines
from sims.ray_orders import PastOrders
from sims.ray_worker import Worker, ask_of, task_from

CONFIG = Config.from_flat(SETTINGS)


@pytest.mark.parametrize("workers", [1, 2, 3, 10])
def test_a_shard_has_at_most_the_mean_and_one_client_more(workers):
    costs = np.random.default_rng(0).integers(1, 50, size=40).astype(float).tolist()
    owners = shards(costs, workers)
    loads = np.bincount(owners, weights=costs, minlength=workers)
    assert len(owners) == 40
    assert loads.max() <= sum(costs) / workers + max(costs)
    assert loads.min() >= loads.max() - max(costs)


def test_equal_clients_are_dealt_in_turn():
    assert shards([1.0] * 6, 3) == [0, 1, 2, 0, 1, 2]


def drive(server, workers, rounds, *, log=None):
    """Rounds of a server and workers that are called directly; client i is of worker i mod 2."""
    for _ in range(rounds):
        tasks = server.begin_round()
        for index, worker in enumerate(workers):
            mine = [t for t in tasks if t.client % len(workers) == index]
            call = ([ask_of(task) for task in mine], tasks[0].model, tasks[0].buffers)
            for reply, update in worker.work(*call).updates(server.x.size):
                server.receive(reply, update)
            if log is not None and index == 1:
                log.append(call)
        server.end_round()


@pytest.fixture(autouse=True)
def thawed():
    """A worker freezes the objects of its process, which is this one here."""
    yield
    gc.unfreeze()


def test_full_collections_leave_out_what_a_worker_was_built_with():
    started()
    assert gc.get_freeze_count() > 1000


def started(states=None) -> Worker:
    worker = Worker()
    worker.start(Experiment.build, CONFIG, states or {})
    return worker


def test_a_shard_comes_back_from_its_stored_states_and_the_tasks_since():
    whole = InlineEngine(Experiment.build(CONFIG))
    for _ in range(12):
        whole.round()
    server, workers, log = Experiment.build(CONFIG).server(), [started(), started()], []
    drive(server, workers, 4)
    stored = {
        client: {name: array.copy() for name, array in arrays.items()}
        for client, arrays in workers[1].states().items()
    }
    drive(server, workers, 4, log=log)
    again = started(stored)
    for call in log:
        assert again.repeat(*call) is None
    drive(server, [workers[0], again], 4)
    assert server.x.tobytes() == whole.server.x.tobytes()
    assert server.g.tobytes() == whole.server.g.tobytes()
    behind = started(stored)
    with pytest.raises(Exception, match="holds the state of round"):
        drive(server, [workers[0], behind], 4)


def test_every_field_of_a_task_reaches_the_worker():
    values = {"int": 7, "str": "x", "bytes": b"y"}
    task = Task(**{field.name: values[str(field.type)] for field in fields(Task)})
    assert task_from(ask_of(task), task.model, task.buffers) == task


def test_resources_are_read():
    assert Resources.parse("") == Resources(1.0, 0.0)
    assert Resources.parse("num_gpus=0.5") == Resources(1.0, 0.5)
    assert Resources.parse("num-cpus=2, num-gpus=1") == Resources(2.0, 1.0)


@pytest.mark.parametrize(
    "text", ["cpus=1", "num_cpus", "num_cpus=two", "num_gpus=-1", "num_cpus=nan"]
)
def test_wrong_resources_are_named(text):
    with pytest.raises(ConfigError, match=f"client-resources: got '{text}'"):
        Resources.parse(text)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"engine": "inline", "workers": 2}, "workers: only the ray engine has it"),
        ({"engine": "inline", "lost_worker": "stop"}, "lost-worker: only the ray engine"),
        ({"engine": "ray", "workers": 0}, "workers: must be at least 1, got 0"),
        ({"engine": "ray", "lost_worker": "wait"}, "must be replace or stop, got 'wait'"),
        ({"engine": "spark"}, "must be inline or ray to go on with a run, got 'spark'"),
    ],
)
def test_wrong_options_say_what_is_allowed(options, text):
    with pytest.raises(ConfigError, match=text):
        opener(**options)


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemoryError("killed by the memory monitor"),
        NodeDiedError("gone"),
        WorkerCrashedError(),
        ObjectLostError("ab" * 28, "", ""),
        OwnerDiedError("ab" * 28, "", ""),
        ObjectReconstructionFailedError("ab" * 28, None, "", ""),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_takes_a_worker_or_its_answer_away_is_a_lost_worker(monkeypatch, error):
    """It is replaced as often as is allowed, then the run stops, and says with what to go on."""
    engine = object.__new__(RayEngine)
    engine.server = Experiment.build(CONFIG).server()
    engine._settings, engine._losses, engine._past = RaySettings(), Counter(), PastOrders()
    engine._checkpoint, engine._actors, engine._lines = None, {0: FakeActor()}, Lines(1)
    replaced = []
    monkeypatch.setattr(sims.ray_engine.ray, "kill", lambda actor: None)
    monkeypatch.setattr(engine, "_start", lambda workers, states: replaced.append(workers))

    def fail(_):
        raise error

    monkeypatch.setattr(sims.ray_engine.ray, "get", fail)
    with pytest.raises(FedefError, match="worker 0 was lost in round 1.*--resume"):
        dict(engine.client_arrays())
    engine._lines.close()
    assert replaced == [[0]] * MAX_LOSSES


class FakeActor:
    """Answers with a reference that nothing is behind."""

    def __getattr__(self, name):
        return SimpleNamespace(remote=lambda: None)
