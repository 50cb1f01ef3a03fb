"""A worker's share of a round: what it has read is what the server would have read."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from ray_case import SETTINGS

from fedef.config import Config
from fedef.experiment import Experiment
from fedef.reader import Reader
from sims.engine import InlineEngine
from sims.ray_share import Share

CASES = [
    {},
    {"value-format": "bfloat16"},
    {"compressor": "rand-k"},
    {"compressor": "identity", "k": ""},
    {"init": "full"},
]


def a_round(changes, rounds=3):
    """Tasks and replies of all clients in some round, and who reads them."""
    settings = {key: value for key, value in {**SETTINGS, **changes}.items() if value != ""}
    experiment = Experiment.build(Config.from_flat({**settings, "participation": 1.0}))
    engine = InlineEngine(experiment)
    for _ in range(rounds):
        engine.round()
    tasks = engine.server.begin_round()
    replies = [engine._client(task.client).handle(task) for task in tasks]
    return engine, tasks, replies, Reader(experiment.method, experiment.config.seed)


@pytest.mark.parametrize("rounds", [0, 3])
@pytest.mark.parametrize("changes", CASES, ids=str)
def test_the_updates_are_those_that_the_server_reads_itself(changes, rounds):
    engine, tasks, replies, reader = a_round(changes, rounds)
    share = pickle.loads(pickle.dumps(Share.of(reader, tasks, replies)))
    pairs = list(share.updates(engine.server.x.size))
    assert [reply for reply, _ in pairs] == replies
    for task, (reply, update) in zip(tasks, pairs, strict=True):
        expected = reader.update(reply, task)
        if expected.indices is None:
            assert update is None  # dense: left to the server
            continue
        assert (update.dimension, update.seed) == (expected.dimension, expected.seed)
        for name in ("values", "indices"):
            got, wanted = getattr(update, name), getattr(expected, name)
            assert got.dtype == wanted.dtype
            assert got.tobytes() == wanted.tobytes()
    assert [engine.server.receive(*pair) for pair in pairs] == [None] * len(pairs)


def test_a_server_ends_a_round_in_the_same_bits_whoever_has_read_the_replies():
    engines = []
    for read in (True, False):
        engine, tasks, replies, reader = a_round({})
        pairs = Share.of(reader, tasks, replies).updates(engine.server.x.size)
        for reply, update in reversed(list(pairs)):
            engine.server.receive(reply, update if read else None)
        engine.server.end_round()
        engines.append(engine.server)
    assert engines[0].x.tobytes() == engines[1].x.tobytes()
    assert engines[0].g.tobytes() == engines[1].g.tobytes()
    assert engines[0].state.uplink_bytes == engines[1].state.uplink_bytes


def test_what_cannot_be_read_is_left_to_the_server_which_refuses_it():
    """Of five replies one is damaged, one says that its gradient was not finite."""
    engine, tasks, replies, reader = a_round({})
    damaged = bytearray(replies[1].update)
    damaged[-1] ^= 1
    replies[1] = replace(replies[1], update=bytes(damaged))
    replies[3] = replace(replies[3], status="non-finite", update=b"")
    pairs = list(Share.of(reader, tasks, replies).updates(engine.server.x.size))
    assert [update is None for _, update in pairs] == [False, True, False, True, False]
    verdicts = [engine.server.receive(reply, update) for reply, update in pairs]
    assert verdicts == [None, "malformed", None, "non-finite", None]


def test_a_shard_of_which_nobody_is_asked_has_nothing_to_return():
    _, _, _, reader = a_round({}, rounds=0)
    share = Share.of(reader, [], [])
    assert list(share.updates(10)) == []
    assert share.values.size == share.positions.size == 0


def test_an_update_that_was_read_on_the_way_is_no_way_around_the_other_checks():
    """A stale base, a loss that is not finite, a second reply."""
    engine, tasks, replies, reader = a_round({})
    update = reader.update(replies[0], tasks[0])
    receive = engine.server.receive
    assert receive(replace(replies[0], digest=b"\0" * 8), update) == "stale"
    assert receive(replace(replies[0], loss=np.nan), update) == "malformed"
    assert receive(replies[0], update) is None
    assert receive(replies[0], update) == "duplicate"
