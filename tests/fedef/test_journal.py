"""The journal between two checkpoints: what it holds, costs and refuses."""

from dataclasses import replace

import numpy as np
import pytest

from fedef.config import Config
from fedef.durable import read_arrays, write_arrays
from fedef.errors import ConfigError
from fedef.experiment import Experiment
from fedef.journal import Entry, Journal
from fedef.messages import Reply
from fedef.rounds import Heard, Unread
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
    return Entry(token, round, (1.0, 0.5, 1 / 3), HEARD)


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
    with pytest.raises(ConfigError, match="corrupt"):
        journal.after(3, "run")
    write_arrays(path, {"facts": np.frombuffer(b"{}", dtype=np.uint8)})
    with pytest.raises(ConfigError, match=r"KeyError.*remove the journal"):
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
    server = experiment.server()
    clients = [experiment.client(client) for client in range(3)]
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
        server.end_round()
        told = Entry("run", server.round, server.weights, server.heard)
        again = Entry.from_arrays(told.to_arrays()).done_again(
            before, lambda state, weights: experiment.server(state=state, weights=weights)
        )
        one, other = server.state.to_arrays(), again.to_arrays()
        assert {n: a.tobytes() for n, a in one.items()} == {
            n: a.tobytes() for n, a in other.items()
        }
    assert server.state.refusals == {"malformed": 8, "alien": 8, "duplicate": 4, "stale": 8}
