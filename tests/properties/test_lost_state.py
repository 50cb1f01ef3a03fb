"""A client that lost its state, lies about it or sends poison: what becomes of the run."""

import os
import shutil
import stat
import struct
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from dying_disk import DyingDisk, Killed

from fedef.codec import decode, encode, encode_dense
from fedef.config import Config
from fedef.errors import ConfigError, FedefError, StateMismatch
from fedef.experiment import Experiment
from fedef.members import EVICT, HAND_BACK, MIRRORED, RESET, RESYNC, STOP, Policies
from fedef.messages import STATE_MISMATCH, Reply
from fedef.updates import Update
from fedef.value_formats import FORMATS
from sims.durable_federation import DurableFederation
from sims.engine import InlineEngine

N, LOST_AT, ROUNDS = 4, 3, 8
WAYS_OUT = (RESET, RESYNC, EVICT, HAND_BACK)


@cache
def experiment(**changes) -> Experiment:
    return Experiment.build(
        Config.from_flat(
            {
                "problem": "logistic",
                "data": "synthetic",
                "num-clients": N,
                "partitioner": "iid",
                "method": "ef21",
                "compressor": "top-k",
                "k": 2,
                "schedule": "constant",
                "step-size": 0.1,
                "num-rounds": 20,
                **{key.replace("_", "-"): value for key, value in changes.items()},
            }
        )
    )


@pytest.fixture(autouse=True)
def _without_flushes(monkeypatch):
    """Durability is `test_crash_points`' matter."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def close(federation):
    """The server's sum is that of the clients' own g_i, up to rounding."""
    total = federation.server.state.total
    return federation.drift() <= 1e-14 * max(1.0, float(np.max(np.abs(total))))


def after_loss(folder, policy, rounds=ROUNDS, *, experiment=None, **changes):
    """A federation that ran to round `rounds`, client 1's disk being wiped after `LOST_AT`."""
    chosen = experiment or globals()["experiment"](**changes)
    federation = DurableFederation(chosen, folder, policies=Policies(policy))
    while federation.server.round < rounds:
        federation.round()
        if federation.server.round == LOST_AT:
            federation.store(1).path.unlink()
        elif federation.server.state.refusals:  # the server knows
            assert close(federation)
    return federation


def test_stop_stops_with_the_way_out(tmp_path):
    with pytest.raises(StateMismatch, match="client 1 holds the state of round 0.*on-lost-state"):
        after_loss(tmp_path, STOP)


@pytest.mark.parametrize("policy", WAYS_OUT)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "norm-ef21-sgdm", "participation": 0.6, "value_format": "bfloat16"},
        {"compressor": "rand-k", "init": "full"},
    ],
    ids=["ef21", "momentum", "rand-k"],
)
def test_the_mean_stays_that_of_the_clients(tmp_path, policy, changes):
    federation = after_loss(tmp_path, policy, rounds=12, **changes)
    assert federation.server.state.refusals == {"lost-state": 1}
    assert federation.server.state.conduct[1].claims == 1


@pytest.mark.parametrize("policy", WAYS_OUT)
def test_a_server_that_is_thrown_away_each_round_remembers_the_repair(tmp_path, policy):
    at_once = after_loss(tmp_path / "at once", policy)
    for round in range(ROUNDS):
        again = DurableFederation(experiment(), tmp_path / "again", policies=Policies(policy))
        again.round()
        if round + 1 == LOST_AT:
            again.store(1).path.unlink()
    one, other = at_once.server.state.to_arrays(), again.server.state.to_arrays()
    assert {n: a.tobytes() for n, a in one.items()} == {n: a.tobytes() for n, a in other.items()}


def test_handing_back_is_a_lost_reply_bit_for_bit(tmp_path):
    """EF21 without momentum has no other state than g_i: nothing but one reply is missing."""
    federation = after_loss(tmp_path, HAND_BACK)
    engine = InlineEngine(experiment())
    for round in range(1, ROUNDS + 1):
        engine.round([c for c in range(N) if (c, round) != (1, LOST_AT + 1)])
    assert federation.server.x.tobytes() == engine.server.x.tobytes()
    assert federation.server.state.records == engine.server.state.records
    assert federation.server.state.conduct[1].lives == 1
    assert not federation.server.state.conduct[1].handing_back


def test_evicting_takes_one_client_out_and_nothing_else(tmp_path):
    federation = after_loss(tmp_path, EVICT, rounds=LOST_AT + 1)
    assert set(federation.server.state.records) == {0, 2, 3}
    others = sum(w * federation.settled(c).g for c, w in enumerate(federation.server.weights))
    np.testing.assert_allclose(federation.server.state.total, others, rtol=1e-13)
    assert not federation.settled(1).g.any()


def test_after_a_reset_the_run_is_one_that_starts_at_this_model(tmp_path):
    """Zero initialization at x^k: the same bits, since top-k and the step ask for no round."""
    federation = after_loss(tmp_path, RESET, rounds=LOST_AT + 1)
    assert federation.server.state.records == {}
    assert not federation.server.state.total.any()
    fresh = InlineEngine(experiment())
    start = replace(fresh.server.state, x=federation.server.x.copy())
    fresh = InlineEngine(experiment(), server_state=start)
    for _ in range(5):
        federation.round()
        fresh.round()
        assert federation.server.x.tobytes() == fresh.server.x.tobytes()


def test_after_a_resync_the_estimate_is_the_gradient(tmp_path):
    federation = after_loss(tmp_path, RESYNC, rounds=LOST_AT + 1)
    x = federation.server.x.copy()
    report = federation.round()
    assert report.accepted == tuple(range(N))
    problem, weights = experiment().problem, np.array(federation.server.weights)
    gradients = [problem.local(c, x, buffers=np.empty(0)).gradient for c in range(N)]
    mean = np.average(gradients, axis=0, weights=weights)
    np.testing.assert_allclose(federation.server.g, mean, rtol=1e-12, atol=1e-15)
    assert federation.round().uplink_bytes < report.uplink_bytes


def squared_gradient(server):
    weights = np.array(server.weights) / sum(server.weights)
    at = FAST.problem.evaluate(server.x, weights=weights, buffers=np.empty(0))
    return at.gradient_norm**2


FAST = experiment(k=5, step_size=2.0)


@pytest.mark.parametrize("policy", WAYS_OUT)
def test_every_way_out_reaches_the_minimum(tmp_path, policy):
    federation = after_loss(tmp_path, policy, rounds=120, experiment=FAST)
    assert squared_gradient(federation.server) < 1e-20


def test_ignorance_does_not():
    """Spec, section 5: a restart from zero that nobody notices lifts the floor for ever."""
    engine = InlineEngine(FAST)
    for _ in range(120):
        engine.round()
        if engine.server.round == LOST_AT:
            record = engine.server.state.records[1]
            state = engine.clients[1].state.settled(record.version, record.digest)
            engine.clients[1].state = replace(state, held=np.zeros_like(state.g))
    assert squared_gradient(engine.server) > 1e-3


def lying(federation, status=STATE_MISMATCH):
    """Client 1 says that it lost its state, round after round."""

    def answer(task):
        reply = federation.answer(task)
        if task.client == 1:
            return replace(reply, status=status, update=b"", version=0, digest=bytes(8))
        return reply

    return answer


@pytest.mark.parametrize("policy", WAYS_OUT)
def test_a_client_that_cries_wolf_is_excluded_and_the_others_go_on(tmp_path, policy):
    policies = Policies(policy, max_refusals=3)
    federation = DurableFederation(experiment(), tmp_path, policies=policies)
    federation.round()
    answer = lying(federation)
    asked = [federation.round(answer).asked for _ in range(10)]
    assert [1 in clients for clients in asked] == [True] * 3 + [False] * 7
    assert federation.server.members.excluded == {1: "lost-state"}
    assert set(federation.server.state.records) == {0, 2, 3}
    assert federation.server.state.epoch <= 3
    weight = sum(w for c, w in enumerate(federation.server.weights) if c != 1)
    np.testing.assert_array_equal(federation.server.g, federation.server.state.total / weight)


def test_when_nobody_is_left_the_run_says_so(tmp_path):
    policies = Policies(RESET, max_refusals=1)
    federation = DurableFederation(experiment(), tmp_path, policies=policies)

    def liars(task):
        return replace(federation.answer(task), status=STATE_MISMATCH, update=b"")

    with pytest.raises(FedefError, match=r"every client is excluded: 0 \(lost-state\), 1"):
        federation.round(liars)


@pytest.mark.parametrize("policy", sorted(MIRRORED))
def test_a_mirror_is_asked_for_where_it_is_needed_and_only_there(tmp_path, policy):
    with pytest.raises(ConfigError, match="a mirror of the clients' states belongs to"):
        experiment().server(policies=Policies(policy))
    with pytest.raises(ConfigError, match="a mirror"):
        experiment().server(mirror=lambda client: np.zeros(10))
    DurableFederation(experiment(), tmp_path).round()
    with pytest.raises(ConfigError, match="kept no mirror"):
        DurableFederation(experiment(), tmp_path, policies=Policies(policy))


@pytest.mark.parametrize("damage", ["gone", "older", "another run's", "no stamp", "another form"])
def test_a_mirror_that_is_not_the_checkpoints_is_refused(tmp_path, damage):
    policies = Policies(EVICT)
    for name, token in (("run", "0" * 32), ("other", "1" * 32)):
        federation = DurableFederation(
            experiment(), tmp_path / name, policies=policies, token=token
        )
        federation.round()
        if name == "run":
            shutil.copytree(tmp_path / "run", tmp_path / "older")
        federation.round()
        federation.round()
    folder = tmp_path / "run"
    if damage == "gone":
        (folder / "mirror.npy").unlink()
    if damage == "no stamp":
        (folder / "mirror.json").unlink()
    if damage == "another form":
        np.save(folder / "mirror.npy", np.zeros((N, 3)))
    source = {"older": tmp_path / "older", "another run's": tmp_path / "other"}.get(damage)
    if source is not None:
        for file in ("mirror.npy", "mirror.json"):
            shutil.copy(source / file, folder / file)
    with pytest.raises(ConfigError, match=r"mirror .*run/mirror.*on-lost-state=stop"):
        DurableFederation(experiment(), folder, policies=policies)
    DurableFederation(experiment(), folder, policies=Policies(RESET)).round()


def test_a_mirror_that_a_crash_left_before_the_first_round_is_made_again(tmp_path):
    for _ in range(2):
        DurableFederation(experiment(), tmp_path, policies=Policies(EVICT))
        (tmp_path / "mirror.json").unlink()
    federation = DurableFederation(experiment(), tmp_path, policies=Policies(EVICT))
    federation.round()
    assert stat.S_IMODE((tmp_path / "mirror.npy").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "changes", [{}, {"value_format": "float16", "participation": 0.6}], ids=str
)
def test_the_mirror_holds_the_clients_bits_through_every_crash(tmp_path, monkeypatch, changes):
    """Killed at each boundary of the server's writes, between checkpoint and mirror too."""
    disk, policies = DyingDisk(monkeypatch), Policies(HAND_BACK)

    def run(folder, die_at):
        disk.revive(die_at)
        federation = None
        while federation is None or federation.server.round < 3:
            try:
                federation = federation or DurableFederation(
                    experiment(**changes), folder, policies=policies
                )
                federation.round()
            except Killed:
                disk.revive()
                federation = DurableFederation(experiment(**changes), folder, policies=policies)
            for client in range(N):
                own = federation.settled(client).g
                assert federation.mirror_row(client).tobytes() == own.tobytes()
        return federation.server.x.tobytes()

    whole = run(tmp_path / "whole", None)
    for die_at in range(1, disk.boundaries, 5):
        assert run(tmp_path / str(die_at), die_at) == whole


# --- poison --------------------------------------------------------------------------------------


def poisoned(reply: Reply, kind: str) -> Reply:
    d = experiment().problem.dimension
    honest = decode(reply.update, dimension=d)
    float64 = FORMATS["float64"]

    def sent(values):
        update = Update(d, np.asarray(values, dtype=np.float64), honest.update.indices)
        return replace(reply, update=encode(update, float64, round=reply.round))

    bomb = struct.pack("<4sBBHIII", b"FDF\x01", 1, 0, 0, 2**32 - 1, 2**32 - 1, reply.round)
    return {
        "NaN": lambda: sent([np.nan, 1.0]),
        "Inf": lambda: sent([np.inf, 1.0]),
        "1e200": lambda: sent([1e200, 1.0]),
        "1e30": lambda: sent([1e30, 1.0]),
        "wrong d": lambda: replace(reply, update=encode_dense(np.ones(d + 1), round=reply.round)),
        "dense": lambda: replace(reply, update=encode_dense(np.ones(d), round=reply.round)),
        "truncated": lambda: replace(reply, update=reply.update[:-3]),
        "empty": lambda: replace(reply, update=b""),
        "bomb": lambda: replace(reply, update=bomb + bytes(20)),
        "pickle": lambda: replace(reply, update=b"\x80\x04\x95" + bytes(60)),
        "loss": lambda: replace(reply, loss=float("nan")),
    }[kind]()


POISONS = (
    *("NaN", "Inf", "1e200", "wrong d", "dense"),
    *("truncated", "empty", "bomb", "pickle", "loss"),
)


def poisoned_run(folder, kind, *, max_refusals, rounds=6, **changes):
    policies = Policies(max_refusals=max_refusals)
    federation = DurableFederation(experiment(**changes), folder, policies=policies)

    def answer(task):
        reply = federation.answer(task)
        return poisoned(reply, kind) if task.client == 1 else reply

    return federation, [federation.round(answer) for _ in range(rounds)]


@pytest.mark.parametrize("kind", POISONS)
def test_poison_is_refused_counted_and_changes_nothing(tmp_path, kind):
    federation, reports = poisoned_run(tmp_path, kind, max_refusals=0)
    engine = InlineEngine(experiment())
    for _ in range(6):
        engine.round([0, 2, 3])
    assert federation.server.x.tobytes() == engine.server.x.tobytes()
    assert federation.server.state.refusals == {"malformed": 6}
    assert federation.server.state.conduct[1].refused == 6
    assert all(report.missing == (1,) for report in reports)
    assert close(federation)


@pytest.mark.parametrize("kind", ["NaN", "bomb"])
def test_a_client_refused_too_often_is_excluded(tmp_path, kind):
    federation, reports = poisoned_run(tmp_path, kind, max_refusals=3)
    assert [1 in report.asked for report in reports] == [True] * 3 + [False] * 3
    assert federation.server.members.excluded == {1: "malformed"}
    again = DurableFederation(experiment(), tmp_path)
    assert again.server.members.excluded == {1: "malformed"}
    assert again.round().asked == (0, 2, 3)


def test_a_finite_giant_is_refused_by_the_norm_bound_alone(tmp_path):
    """1e30 is a number: without a bound it is believed, and wrecks plain EF21."""
    bounded, _ = poisoned_run(tmp_path / "a", "1e30", max_refusals=0, max_norm_factor=100.0)
    assert bounded.server.state.refusals == {"norm": 6}
    engine = InlineEngine(experiment())
    for _ in range(6):
        engine.round([0, 2, 3])
    assert bounded.server.x.tobytes() == engine.server.x.tobytes()
    assert close(bounded)
    free, _ = poisoned_run(tmp_path / "b", "1e30", max_refusals=0, rounds=1)
    assert np.max(np.abs(free.server.x)) > 1e25


def test_a_bound_that_nobody_exceeds_changes_no_bit(tmp_path):
    bounded, free = InlineEngine(experiment(max_norm_factor=1e9)), InlineEngine(experiment())
    for _ in range(6):
        bounded.round()
        free.round()
    assert bounded.server.x.tobytes() == free.server.x.tobytes()
