"""Killed processes of a real federation cost replies, never updates (slow: real processes)."""

import dataclasses
import signal
import subprocess
from types import SimpleNamespace

import pytest

from fedef.checkpoint import Checkpoint
from fedef.config import Config
from fedef.errors import FedefError, StateMismatch
from fedef.state import ClientRecord
from sims.engine import InlineEngine
from sims.faults import NODE, SERVER_APP, SUPERLINK, FaultyFederation, victims


def test_the_seed_draws_who_is_killed():
    kinds = victims(30, 10, seed=3)
    assert {kind: kinds.count(kind) for kind in kinds} == {NODE: 30, SERVER_APP: 5, SUPERLINK: 5}
    assert victims(30, 10, seed=3) == kinds != victims(30, 10, seed=4)


@pytest.fixture
def after_four_rounds(tmp_path):
    """A checker, and what lies on the disks: clients hold their last update as pending."""
    config = Config.from_flat({"problem": "digits-softmax", "num-clients": 3, "k-fraction": 0.05})
    checker = FaultyFederation(config, tmp_path / "run", [NODE], print)
    engine = InlineEngine(checker._experiment)
    for _ in range(4):
        engine.round()
    server = engine.server.state
    states = [(server.records[client], engine.clients[client].state) for client in range(3)]
    return checker, server, states


def test_the_invariant_holds_up_to_the_pending_update(after_four_rounds):
    checker, server, states = after_four_rounds
    assert all(state.pending is not None for _, state in states)
    checker._check(Checkpoint(server), states)
    assert checker._tally.rounds_checked == 1
    assert checker._tally.largest_error < 1e-6


def test_an_update_that_was_applied_twice_is_found(after_four_rounds):
    checker, server, states = after_four_rounds
    update = states[1][1].pending.g
    total = server.total.copy()
    total[update.where] += checker._experiment.weights[1] * update.values
    with pytest.raises(FedefError, match="not the mean of the clients' g_i"):
        checker._check(Checkpoint(dataclasses.replace(server, total=total)), states)


def test_an_update_that_was_lost_is_found(after_four_rounds):
    checker, server, states = after_four_rounds
    states[2] = (states[2][0], dataclasses.replace(states[2][1], pending=None))
    with pytest.raises(StateMismatch):
        checker._check(Checkpoint(server), states)
    states[2] = (ClientRecord(4, bytes(8)), None)
    with pytest.raises(FedefError, match="lost the state"):
        checker._check(Checkpoint(server), states)


def test_only_what_lives_is_killed_and_counted(after_four_rounds):
    checker, _, _ = after_four_rounds
    sleeps = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    sleeps[0].kill()
    sleeps[0].wait()
    checker._federation = SimpleNamespace(nodes=dict(enumerate(sleeps)))
    try:
        assert checker._kill(NODE)
        assert sleeps[1].wait(20) == -signal.SIGKILL
        assert not checker._kill(NODE)
        assert checker._tally.kills[NODE] == 1
    finally:
        for process in sleeps:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_real_kills_cost_no_update(tmp_path):
    """Each round's states on disk; at the end the bits of an inline run with the same losses."""
    config = Config.from_flat({"num-clients": 2})
    kills = [NODE, SERVER_APP, SUPERLINK]
    tally = FaultyFederation(config, tmp_path / "run", kills, print).run()
    assert tally.kills == {NODE: 1, SERVER_APP: 1, SUPERLINK: 1}
    assert tally.same_bits
    assert tally.rounds_checked >= 5
    assert tally.submissions >= 3
