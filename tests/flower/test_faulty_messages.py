"""What the fault harness does to messages is what it draws, and costs replies, never updates."""

import json
from collections import Counter

import pytest
from flwr.supercore.task_identity import TaskIdentity
from local_grid import LocalGrid

from fedef.checkpoint import read_checkpoint
from fedef.client_store import ClientStore
from fedef.config import Config
from fedef.experiment import Experiment
from fedef.run_folder import RunFolder
from fedef.service import Service
from sims.faults import messages
from sims.faults.app import FaultyErrorFeedback
from sims.faults.checks import mean_error, missing_by_round, same_bits_inline
from sims.faults.messages import (
    CALM_ROUNDS,
    DROPPED,
    FLIPPED,
    HELD_BACK,
    KINDS,
    NOT_SENT,
    TWICE,
    drawn,
)
from strategies.app import run

CLIENTS, ROUNDS, SHARE = 4, 16, 0.6
CONFIG = Config.from_flat(
    {"problem": "logistic", "num-clients": CLIENTS, "num-rounds": ROUNDS, "k-fraction": 0.2}
)


@pytest.fixture(autouse=True)
def _inside_flower():
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


def test_each_fault_is_done_and_costs_its_reply_alone(tmp_path, monkeypatch):
    log, calm, states = tmp_path / "log", tmp_path / "calm", tmp_path / "states"
    calm.touch()
    for name, value in ((messages.SHARE, SHARE), (messages.LOG, log), (messages.CALM, calm)):
        monkeypatch.setenv(name, str(value))
    experiment, folder = Experiment.build(CONFIG), RunFolder(tmp_path / "run")
    grid = LocalGrid({**CONFIG.to_flat(), "state-dir": str(states)}, CLIENTS)
    service = Service(max_refusals=0)
    run(grid, experiment, folder.path, service, strategy_type=FaultyErrorFeedback)

    stormy = range(1, ROUNDS - CALM_ROUNDS + 1)
    expected = {
        (round, client): drawn(SHARE, CONFIG.seed, round, client)
        for round in stormy
        for client in range(CLIENTS)
    }
    counts = Counter(fault for fault in expected.values() if fault is not None)
    assert counts == Counter(log.read_text().split())
    assert set(counts) == set(KINDS)
    costs = {NOT_SENT, DROPPED, HELD_BACK, FLIPPED}
    assert missing_by_round(folder) == [
        {client for client in range(CLIENTS) if expected.get((round, client)) in costs}
        for round in range(1, ROUNDS + 1)
    ]
    refusals = Counter()
    for line in folder.rounds_path.read_text().splitlines():
        refusals.update(json.loads(line)["refusals"])
    unasked = sum(  # then the server does not know the sender either
        fault == HELD_BACK and expected.get((round + 1, client)) == NOT_SENT
        for (round, client), fault in expected.items()
    )
    assert refusals == {
        "malformed": counts[FLIPPED],
        "duplicate": counts[TWICE],
        "stale": counts[HELD_BACK] - unasked,
        "alien": unasked,
    }

    checkpoint = read_checkpoint(folder.checkpoint_path, experiment=experiment)
    held = [
        (
            checkpoint.server.records[client],
            ClientStore(states, token=checkpoint.token, client=client).load(),
        )
        for client in range(CLIENTS)
    ]
    assert mean_error(experiment, checkpoint, held) < 1e-6
    assert same_bits_inline(experiment, folder)
