"""Every write boundary of every actor is a point at which it dies and comes back from its disk.

Who dies is a client (its reply is lost) or everybody. A client that died before its reply left is
a client that was not asked; a server that died goes on as if it had not: both bit for bit.
"""

from functools import cache

import numpy as np
import pytest
from dying_disk import KINDS, DyingDisk, Killed

from fedef import client_store, durable
from fedef.config import Config
from fedef.experiment import Experiment
from fedef.participation import participants
from sims.durable_federation import DurableFederation
from sims.engine import InlineEngine

ROUNDS = 4
CASES = [
    {"method": "ef21", "k": 2},
    {"method": "norm-ef21-sgdm", "k": 1, "participation": 0.7, "value-format": "bfloat16"},
    {"method": "norm-ef21", "compressor": "rand-k", "k": 3, "schedule": "auto"},
    {"method": "ef21-sgdm", "k": 2, "init": "full", "local-batch-size": 2},
    {"method": "norm-ef21-sgdm", "k": 2, "participation": 0.7, "schedule": "auto"},
]
NAMES = ["ef21", "momentum", "rand-k", "full", "journal"]
CHECKPOINT_EVERY = [1, 1, 1, 1, 3]
VICTIMS = ("a client", "everybody")


@cache
def experiment(case: int) -> Experiment:
    return Experiment.build(
        Config.from_flat(
            {
                "problem": "logistic",
                "data": "synthetic",
                "num-clients": 3,
                "partitioner": "iid",
                "schedule": "constant",
                "step-size": 0.3,
                "num-rounds": ROUNDS,
                **CASES[case],
            }
        )
    )


def bits(server, settled):
    """Everything that a run remembers, once the clients have heard from the server."""
    clients = {
        client: (state.g.tobytes(), {n: m.tobytes() for n, m in state.memory.items()}, state.digest)
        for client, state in settled.items()
        if state.version
    }
    return server.x.tobytes(), server.state.total.tobytes(), server.state.records, clients


@cache
def reference(case: int, lost: tuple[int, int] | None):
    """The bits of a run in memory in which the reply of (client, round) is lost."""
    engine = InlineEngine(experiment(case))
    config = experiment(case).config
    for round in range(1, ROUNDS + 1):
        asked = participants(config.seed, round, 3, config.participation)
        engine.round([c for c in asked if (c, round) != lost])
    settled = {}
    for client, session in engine.clients.items():
        record = engine.server.state.records.get(client)
        acked = (record.version, record.digest) if record else (0, bytes(8))
        settled[client] = session.state.settled(*acked)
    return bits(engine.server, settled)


def federation_in(folder, case):
    return DurableFederation(experiment(case), folder, checkpoint_every=CHECKPOINT_EVERY[case])


def run_with_crash(case, folder, disk, die_at, victim, kind):
    """Run to the end through one crash; return its bits and the reply that was lost, if any."""
    lost = []
    disk.revive(die_at)

    def answer(task):
        try:
            return federation.answer(task)
        except Killed:
            if victim == "everybody":
                raise
            disk.fail_power(kind)
            disk.revive()
            lost.append((task.client, task.round))
            return None

    federation = None
    while federation is None or federation.server.round < ROUNDS:
        try:
            federation = federation or federation_in(folder, case)
            federation.round(answer)
        except Killed:
            disk.fail_power(kind)
            disk.revive()
            federation = federation_in(folder, case)
        scale = float(np.max(np.abs(federation.server.state.total), initial=1.0))
        assert federation.drift() <= 1e-14 * scale
    settled = {client: federation.settled(client) for client in range(3)}
    return bits(federation.server, settled), lost


def crash_points(case, folder, disk):
    """How many write boundaries a run has."""
    result, lost = run_with_crash(case, folder, disk, None, "a client", "kill")
    assert lost == []
    assert result == reference(case, None)
    return disk.boundaries


def survive(case, tmp_path, disk, *, every):
    """Crash at every `every`-th combination of boundary, victim and kind; return how many."""
    count = crash_points(case, tmp_path / "whole", disk)
    points = [(at, victim, kind) for at in range(count) for victim in VICTIMS for kind in KINDS]
    crashed = points[::every]
    for number, (at, victim, kind) in enumerate(crashed):
        folder = tmp_path / str(number)
        result, lost = run_with_crash(case, folder, disk, at, victim, kind)
        assert len(lost) <= 1
        assert victim == "a client" or lost == []
        assert result == reference(case, lost[0] if lost else None), (at, victim, kind)
    return len(crashed), len(points)


@pytest.mark.parametrize("case", range(len(CASES)), ids=NAMES)
def test_some_crash_points(case, tmp_path, monkeypatch):
    """A step coprime to the six ways to die meets them all."""
    crashed, _ = survive(case, tmp_path, DyingDisk(monkeypatch), every=23)
    assert crashed >= 20


@pytest.mark.slow
@pytest.mark.parametrize("case", range(len(CASES)), ids=NAMES)
def test_every_crash_point(case, tmp_path, monkeypatch):
    """Every boundary of five runs, with each of the six ways to die there: 3,456 crashes."""
    crashed, points = survive(case, tmp_path, DyingDisk(monkeypatch), every=1)
    assert crashed == points >= 580


def without_flush(path, data, **mode):
    aside = path.with_name(f".{path.name}.part")
    with aside.open("wb") as file:
        file.write(data)
    aside.replace(path)


def in_place(path, data, **mode):
    with path.open("wb") as file:
        file.write(data)


@pytest.mark.parametrize("write", [without_flush, in_place])
def test_a_careless_write_is_caught(write, tmp_path, monkeypatch):
    """The harness sees what it is there to see."""
    monkeypatch.setattr(durable, "write_atomically", write)
    with pytest.raises((AssertionError, ValueError, RuntimeError)):
        survive(0, tmp_path, DyingDisk(monkeypatch), every=1)


def without_sync(path, **mode):
    path.mkdir(parents=True, exist_ok=True)


@pytest.mark.parametrize("flushed", [True, False])
def test_a_new_folder_is_lost_with_the_power_unless_it_was_flushed(tmp_path, monkeypatch, flushed):
    if not flushed:
        monkeypatch.setattr(client_store, "make_folder", without_sync)
    disk = DyingDisk(monkeypatch)
    DurableFederation(experiment(0), tmp_path / "run").round()
    disk.fail_power("power: names lost")
    disk.revive()
    if flushed:
        DurableFederation(experiment(0), tmp_path / "run").round()
        return
    with pytest.raises(RuntimeError, match="holds the state of round 0"):
        DurableFederation(experiment(0), tmp_path / "run").round()


def test_a_reply_that_leaves_before_its_update_is_on_disk_is_caught(tmp_path, monkeypatch):
    """A client that saves after it has replied dies in between: its update is lost for ever."""
    federation = DurableFederation(experiment(0), tmp_path)

    def replies_first(task):
        store = federation.store(task.client)
        session = experiment(0).client(task.client, state=store.load())
        reply = session.handle(task)
        if (task.client, task.round) != (1, 2):
            store.save(session.state)
        return reply

    federation.round(replies_first)
    federation.round(replies_first)
    with pytest.raises(RuntimeError, match="the server has applied"):
        federation.drift()


def test_a_server_that_acknowledges_before_its_checkpoint_is_caught(tmp_path):
    """Restored from an older checkpoint, it is behind a client that has committed."""
    federation = DurableFederation(experiment(0), tmp_path)
    federation.round()
    old = (tmp_path / "checkpoint.fdf").read_bytes()
    federation.round()
    federation.round()
    (tmp_path / "checkpoint.fdf").write_bytes(old)
    with pytest.raises(RuntimeError, match="round"):
        DurableFederation(experiment(0), tmp_path).round()
