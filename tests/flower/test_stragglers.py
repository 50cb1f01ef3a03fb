"""Rounds close without those who are late, gone or new; the mean stays that of the clients."""

import numpy as np
import pytest
from flwr.app import ConfigRecord
from local_grid import CONFIG, LocalGrid

from fedef.checkpoint import Checkpoint
from fedef.client_store import ClientStore
from fedef.errors import ConfigError, FedefError
from fedef.experiment import Experiment
from fedef.participation import participants
from fedef.service import Service
from fedef.state import NO_DIGEST, ClientRecord
from sims.engine import InlineEngine
from strategies.app import run
from strategies.error_feedback import ErrorFeedback
from strategies.roll_call import ATTEMPTS

pytestmark = pytest.mark.usefixtures("inside_flower")
EXPERIMENT = Experiment.build(CONFIG)
TOKEN = "ab" * 16


def asked(round):
    return participants(CONFIG.seed, round, 5, CONFIG.participation)


def inline(without=frozenset()):
    engine = InlineEngine(EXPERIMENT)
    for round in range(1, CONFIG.num_rounds + 1):
        engine.round([client for client in asked(round) if (client, round) not in without])
    return engine.server.x.tobytes()


def round_of(message):
    if not message.has_content() or "fields" not in message.content.config_records:
        return 0
    return message.content.config_records["fields"]["round"]


def start(tmp_path, *, tamper=None, before_round=None, offline=(), rounds=8, **settings):
    """Run a strategy; `before_round` is called with the grid before each round after the first."""
    flat = {**CONFIG.to_flat(), "state-dir": str(tmp_path)}
    grid = LocalGrid(flat, 5, tamper=tamper)
    grid.offline |= {grid.node_of(partition) for partition in offline}
    reports = []

    def on_round(report, session, envelope):
        reports.append(report)
        check_mean(session, tmp_path)
        if before_round is not None:
            before_round(grid, report.round + 1)

    checkpoint = Checkpoint(EXPERIMENT.server().state, token=TOKEN)
    strategy = ErrorFeedback(
        EXPERIMENT, on_round=on_round, checkpoint=checkpoint, start_seconds=0.0, **settings
    )
    strategy.start(grid, strategy.initial_arrays(), num_rounds=rounds)
    return strategy.session, reports


def check_mean(session, folder):
    """The server's sum is that of the clients' own g_i on their disks."""
    own = np.zeros(session.x.size)
    for client, weight in enumerate(session.weights):
        record = session.state.records.get(client, ClientRecord(0, NO_DIGEST))
        state = ClientStore(folder, token=TOKEN, client=client).load()
        if state is not None:
            own += weight * state.settled(record.version, record.digest).g.astype(np.float64)
    np.testing.assert_allclose(session.state.total, own, rtol=1e-9, atol=1e-9)


def late(client, rounds):
    """Replies of a client that come one round after theirs."""
    kept = []

    def tamper(message, partition):
        if partition == client and round_of(message) in rounds:
            kept.append(message)
            return []
        if kept and round_of(message) > round_of(kept[0]):
            return [message, kept.pop(0)]
        return message

    return tamper


def test_late_replies_are_refused_and_rolled_back(tmp_path, caplog):
    session, reports = start(tmp_path, tamper=late(3, {2, 3}))
    assert session.x.tobytes() == inline({(3, 2), (3, 3)})
    assert [report.missing for report in reports[1:3]] == [(3,), (3,)]
    assert session.state.refusals == {"stale": 2}
    assert "round 2 is closed without clients 3" in caplog.text


def silent(message, partition):
    return [] if round_of(message) == 4 and partition != 4 else message


@pytest.mark.parametrize(("least", "enough"), [(1, True), (2, False), (0.33, True), (0.5, False)])
def test_a_round_with_few_replies_goes_on_or_stops_as_configured(tmp_path, caplog, least, enough):
    silenced = {(client, 4) for client in asked(4) if client != 4}
    session, _ = start(tmp_path / "on", tamper=silent, min_replies=least)
    assert session.x.tobytes() == inline(silenced)
    assert ("round 4 has 1 updates, min-replies asks for 2" in caplog.text) == (not enough)
    if enough:
        return
    with pytest.raises(FedefError, match="round 4 has 1 updates.*go on with resume"):
        start(tmp_path / "stop", tamper=silent, min_replies=least, stop_on_few=True)


def test_a_run_that_stopped_for_want_of_replies_goes_on_with_the_same_bits(tmp_path):
    flat = {**CONFIG.to_flat(), "state-dir": str(tmp_path / "nodes")}
    service = Service(min_replies=2, on_few_replies="stop")
    with pytest.raises(FedefError, match="min-replies"):
        run(LocalGrid(flat, 5, tamper=silent), EXPERIMENT, tmp_path / "run", service)
    again = Service(min_replies=2, on_few_replies="stop", resume=str(tmp_path / "run"))
    run(LocalGrid(flat, 5), EXPERIMENT, tmp_path, again)
    run(LocalGrid({**flat, "state-dir": ""}, 5), EXPERIMENT, tmp_path / "whole")
    model = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "whole")]
    assert model[0] == model[1]


def test_a_node_that_comes_back_with_another_id_is_the_client_that_it_was(tmp_path):
    def restart(grid, round):
        if round in (3, 5):
            grid.restart({3: 1, 5: 3}[round])

    session, _ = start(tmp_path, before_round=restart)
    assert session.x.tobytes() == inline()


def test_a_node_that_comes_back_again_and_again_is_asked_each_time(tmp_path):
    """With its node key it has the same id each time: away in 2, 4, 6 and 8, back after each."""

    def flapping(grid, round):
        grid.offline = {grid.node_of(3)} if round % 2 == 0 else set()

    session, _ = start(tmp_path, before_round=flapping)
    assert session.x.tobytes() == inline({(3, round) for round in (2, 4, 6, 8)})


def test_a_node_that_never_answers_is_asked_three_times(tmp_path):
    strangers, queries = [], []

    def mute(message, partition):
        stranger = message.metadata.src_node_id in strangers
        queries.append(stranger)
        return [] if stranger else message

    def stranger(grid, round):
        if round == 3:
            strangers.append(grid.add_node(1))

    session, _ = start(tmp_path, tamper=mute, before_round=stranger)
    assert session.x.tobytes() == inline()
    assert sum(queries) == ATTEMPTS


def test_a_client_that_is_gone_for_some_rounds_is_one_that_was_not_asked(tmp_path):
    def away(grid, round):
        node = grid.node_of(3)
        grid.offline = {node} if round in (3, 4, 5) else set()

    session, reports = start(tmp_path, before_round=away)
    gone = {(3, round) for round in (3, 4, 5)}
    assert session.x.tobytes() == inline(gone)
    assert 3 in reports[2].missing


def test_rounds_in_which_nobody_asked_is_there_close_at_the_timeout(tmp_path):
    def alone(grid, round):
        away = [p for p in range(5) if p in asked(3)] if round == 3 else []
        grid.offline = {grid.node_of(p) for p in away}

    session, reports = start(tmp_path, before_round=alone, round_seconds=0.05)
    assert session.x.tobytes() == inline({(client, 3) for client in asked(3)})
    assert reports[2].missing == asked(3)


def test_a_client_may_join_at_zero_and_brings_its_weight(tmp_path):
    def join(grid, round):
        if round == 4:
            grid.offline = set()

    session, reports = start(tmp_path, offline=(3, 4), before_round=join, min_clients=3)
    assert session.weights == EXPERIMENT.weights
    assert not any({3, 4} & set(report.accepted) for report in reports[:3])
    assert any({3, 4} & set(report.accepted) for report in reports[3:])
    with pytest.raises(FedefError, match="3 of 5 clients are connected"):
        start(tmp_path / "all", offline=(3, 4))


def test_who_never_joins_is_not_in_the_mean(tmp_path):
    session, _ = start(tmp_path, offline=(3, 4), min_clients=3)
    weights = EXPERIMENT.weights
    assert session.weights == (*weights[:3], 0.0, 0.0)
    np.testing.assert_array_equal(session.g, session.state.total / sum(weights[:3]))


def test_an_impostor_gets_no_task_as_long_as_the_client_is_there(tmp_path, caplog):
    def impostor(grid, round):
        if round == 3:
            grid.add_node(1)

    session, _ = start(tmp_path, before_round=impostor)
    assert session.x.tobytes() == inline()
    assert "says it is client 1, as another does" in caplog.text


FACTS = [
    {"client": 7, "examples": 3},
    {"client": 2},
    {"client": "x", "examples": 3},
    {"client": 2, "examples": "1" + "0" * 400},
    {"client": 2, "examples": 2**53},
    {"client": 2, "examples": -1},
    {"client": 2.0, "examples": 3},
]


@pytest.mark.parametrize("facts", FACTS)
def test_a_newcomer_that_talks_nonsense_stops_nobody(tmp_path, facts):
    strangers = []

    def nonsense(message, partition):
        if message.metadata.message_type.startswith("query") and partition == 1 and strangers:
            message.content["partition"] = ConfigRecord(facts)
        return message

    def stranger(grid, round):
        if round == 3:
            strangers.append(grid.add_node(1))

    session, _ = start(tmp_path, tamper=nonsense, before_round=stranger)
    assert session.x.tobytes() == inline()


def test_a_newcomer_in_the_place_of_one_that_is_gone_cannot_overflow_its_weight(tmp_path):
    strangers = []

    def lie(message, partition):
        if message.metadata.src_node_id in strangers and "partition" in message.content:
            message.content["partition"] = ConfigRecord({"client": 3, "examples": "9" * 400})
        return message

    def replaced(grid, round):
        if round == 3:
            grid.offline = {grid.node_of(3)}
            strangers.append(grid.add_node(1))

    session, _ = start(tmp_path, tamper=lie, before_round=replaced)
    assert session.x.tobytes() == inline({(3, round) for round in range(3, 9)})


def test_the_keys_say_what_they_allow():
    with pytest.raises(ConfigError, match="on-few-replies.*'go-on' or 'stop'"):
        Service.from_run_config({"on-few-replies": "panic"})
    with pytest.raises(ConfigError, match="round-timeout.*greater than 0"):
        Service.from_run_config({"round-timeout": 0.0})
