"""The journal between two checkpoints: what it holds, costs and refuses."""

from dataclasses import replace

import numpy as np
import pytest

from fedef.config import Config
from fedef.durable import read_arrays, write_arrays
from fedef.errors import ConfigError
from fedef.experiment import Experiment
from fedef.journal import Entry, Journal
from fedef.members import Policies
from fedef.messages import Reply
from fedef.rounds import Heard, Unread
from fedef.server_store import ServerStore
from sims.durable_federation import DurableFederation

HEARD = Heard(
    (0, 2),
    (
        Reply(7, 0, 1, "update", loss=0.1, digest=b"12345678", update=b"abc", buffers=b"\x00"),
        Unread("malformed", None),
        Reply(7, 2, 1, "non-finite", loss=float("inf")),
        Unread("alien", 2),
    ),
    early=1,
)


def entry(round=1, token="run"):
    return Entry(token, round, Policies("evict-by-reset", 3), {1: 0.5, 2: 1 / 3}, (0,), HEARD)


def bits(state):
    return {name: array.tobytes() for name, array in state.to_arrays().items()}


def test_an_entry_returns_bit_for_bit(tmp_path):
    write_arrays(tmp_path / "entry", entry().to_arrays())
    assert Entry.from_arrays(read_arrays(tmp_path / "entry")) == entry()


def test_it_gives_the_rounds_after_a_checkpoint_in_order_and_forgets_those_before(tmp_path):
    journal = Journal(tmp_path / "journal")
    assert journal.after(0, "run") == []
    for round in range(1, 13):
        journal.append(entry(round))
    assert [e.round for e in journal.after(8, "run")] == [9, 10, 11, 12]
    journal.forget(10)
    assert [e.round for e in journal.after(10, "run")] == [11, 12]
    assert len(list((tmp_path / "journal").iterdir())) == 2


def test_what_is_not_this_run_whole_is_refused(tmp_path):
    journal = Journal(tmp_path)
    journal.append(entry(4))
    with pytest.raises(ConfigError, match="holds round 4 of run 'run', expected round 3 .*restore"):
        journal.after(2, "run")
    with pytest.raises(ConfigError, match="expected round 4 of run 'other'"):
        journal.after(3, "other")
    path = tmp_path / "4.fdf"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ConfigError, match=r"corrupt.*remove the journal"):
        journal.after(3, "run")
    write_arrays(path, {"facts": np.frombuffer(b"{}", dtype=np.uint8)})
    with pytest.raises(ConfigError, match=r"'messages'.*remove the journal"):
        journal.after(3, "run")


def test_a_round_costs_its_updates_and_not_the_state(tmp_path):
    """A checkpoint holds the model and the mean (d = 4,810), an entry what arrived (k = 8)."""
    settings = {"problem": "digits-mlp", "num-clients": 3, "partitioner": "iid", "k": 8}
    experiment = Experiment.build(Config.from_flat(settings))
    federation = DurableFederation(experiment, tmp_path, checkpoint_every=100)
    for _ in range(3):
        federation.round()
    checkpoint = (tmp_path / "checkpoint.fdf").stat().st_size
    entries = [path.stat().st_size for path in (tmp_path / "journal").iterdir()]
    assert len(entries) == 3
    assert checkpoint > 12 * experiment.problem.dimension
    assert max(entries) < 4_000
    again = DurableFederation(experiment, tmp_path, checkpoint_every=100)
    assert again.server.round == 3
    assert again.server.x.tobytes() == federation.server.x.tobytes()
    assert again.server.state.records == federation.server.state.records


def test_a_round_done_again_ends_in_the_same_state():
    """Messages of every kind: early, taken, repeated, stale, of another run, unread, of nobody."""
    settings = {"problem": "polynomial", "num-clients": 3, "k": 1, "participation": 0.7}
    experiment = Experiment.build(Config.from_flat(settings))
    server = experiment.server(journaled=True)
    clients = [experiment.client(client) for client in range(3)]

    def start(state, weights, policies):
        return experiment.server(state=state, policies=policies)

    for _ in range(4):
        before = server.state
        server.receive(Reply(experiment.run_id, 0, server.round, "update"))
        server.refuse("malformed", 1)
        tasks = server.begin_round()
        server.receive(Reply(1, tasks[0].client, server.round + 1, "update"))
        replies = [clients[task.client].handle(task) for task in tasks]
        for reply in [*replies, replies[0], replace(replies[0], round=99)]:
            server.receive(reply)
        server.refuse("malformed", tasks[-1].client)
        server.refuse("alien")
        accepted = server.end_round().accepted
        told = Entry("run", server.round, Policies(), {}, accepted, server.heard)
        again = Entry.from_arrays(told.to_arrays())
        assert bits(again.done_again(before, start).state) == bits(server.state)
        other = replace(again, accepted=())
        with pytest.raises(ConfigError, match=f"round {server.round} does not come out as it did"):
            other.done_again(before, start)
    assert server.state.refusals == {"malformed": 8, "alien": 8, "duplicate": 4, "stale": 8}


def test_rounds_are_done_again_by_the_policies_under_which_they_were_done(tmp_path):
    """A run may go on with others: what it did stays as it was."""
    settings = {"problem": "polynomial", "num-clients": 3, "k": 1, "schedule": "constant"}
    experiment = Experiment.build(Config.from_flat({**settings, "step-size": 1e-4}))
    policies = Policies("evict-by-reset", 0)
    federation = DurableFederation(experiment, tmp_path, policies=policies, checkpoint_every=100)
    for round in range(1, 7):
        if round == 3:
            federation.store(1).path.unlink()
        liar = round in (4, 5)
        federation.round(
            lambda task, liar=liar: (
                replace(federation.answer(task), update=b"")
                if liar and task.client == 0
                else federation.answer(task)
            )
        )
    assert federation.server.state.refusals == {"lost-state": 1, "malformed": 2}
    for other in (Policies("stop", 0), Policies("dense-resync", 2), Policies("stop", 1)):
        again = ServerStore(tmp_path / "checkpoint.fdf", experiment, other, every=100).load()
        assert bits(again.server) == bits(federation.server.state)
    with pytest.raises(ConfigError, match="kept no mirror"):
        ServerStore(tmp_path / "checkpoint.fdf", experiment, Policies("hand-back")).load()


def test_what_a_kill_left_goes_with_the_next_checkpoint(tmp_path):
    journal = Journal(tmp_path)
    journal.append(entry(1))
    (tmp_path / ".2.fdf.99.part").write_bytes(b"half")
    assert len(journal.after(0, "run")) == 1
    journal.forget(1)
    assert not list(tmp_path.iterdir())


def test_weights_are_written_where_they_changed(tmp_path):
    """20,000 clients, three of them asked: an entry has no room for 20,000 weights."""
    settings = {"problem": "polynomial", "num-clients": 20_000, "k": 1, "participation": 2e-4}
    experiment = Experiment.build(Config.from_flat(settings))
    federation = DurableFederation(experiment, tmp_path, checkpoint_every=10)
    federation.round()
    (path,) = (tmp_path / "journal").iterdir()
    assert path.stat().st_size < 4_000 < (tmp_path / "checkpoint.fdf").stat().st_size
