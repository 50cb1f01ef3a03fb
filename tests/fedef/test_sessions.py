"""The protocol's two state machines: refusals, acknowledgement, rollback, stored states."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedef.codec import encode
from fedef.compressors.rand_k import drawn_indices
from fedef.config import Config
from fedef.errors import ConfigError, CorruptPayload, FedefError, StateMismatch
from fedef.experiment import Experiment
from fedef.messages import Reply, Task
from fedef.problems.base import LocalResult
from fedef.randomness import stream_seed
from fedef.server_session import Diverged
from fedef.state import ClientState, ServerState
from fedef.updates import Update
from fedef.value_formats import FORMATS
from sims.engine import InlineEngine

SETTINGS = {
    "problem": "logistic",
    "data": "synthetic",
    "num-clients": 4,
    "partitioner": "iid",
    "method": "norm-ef21-sgdm",
    "compressor": "top-k",
    "k": 2,
    "step-size": 0.3,
}


def build(**settings) -> Experiment:
    flat = {key.replace("_", "-"): value for key, value in settings.items()}
    return Experiment.build(Config.from_flat({**SETTINGS, **flat}))


@pytest.fixture
def engine() -> InlineEngine:
    """Three rounds in."""
    engine = InlineEngine(build())
    for _ in range(3):
        engine.round()
    return engine


def replies_of(engine: InlineEngine) -> list[Reply]:
    return [engine.clients[task.client].handle(task) for task in engine.server.begin_round()]


def poisoned(reply: Reply, values, **changes) -> Reply:
    """The reply with another update in it."""
    values = np.asarray(values, dtype=float)
    update = Update(10, values, np.arange(values.size))
    payload = encode(update, FORMATS["float64"], round=changes.pop("payload_round", reply.round))
    return replace(reply, update=payload, **changes)


REFUSALS = {
    "another run": (lambda r: replace(r, run_id=r.run_id ^ 1), "alien"),
    "no such client": (lambda r: replace(r, client=99), "alien"),
    "a negative client": (lambda r: replace(r, client=-1), "alien"),
    "an old round": (lambda r: replace(r, round=r.round - 1), "stale"),
    "a round to come": (lambda r: replace(r, round=r.round + 1), "stale"),
    "an unknown status": (lambda r: replace(r, status="?"), "malformed"),
    "a skipped gradient": (lambda r: replace(r, status="non-finite"), "non-finite"),
    "no bytes": (lambda r: replace(r, update=b""), "malformed"),
    "a cut payload": (lambda r: replace(r, update=r.update[:-1]), "malformed"),
    "a long payload": (lambda r: replace(r, update=r.update + b"\0"), "malformed"),
    "a changed byte": (
        lambda r: replace(r, update=r.update[:25] + b"\xff" + r.update[26:]),
        "malformed",
    ),
    "NaN": (lambda r: poisoned(r, [np.nan]), "malformed"),
    "infinity": (lambda r: poisoned(r, [1.0, -np.inf]), "malformed"),
    "too many entries": (lambda r: poisoned(r, [1.0, 2.0, 3.0]), "malformed"),
    "a payload of an old round": (lambda r: poisoned(r, [1.0], payload_round=1), "malformed"),
    "another dimension": (
        lambda r: replace(
            r, update=encode(Update(11, np.ones(1), np.zeros(1, int)), FORMATS["float64"], round=4)
        ),
        "malformed",
    ),
    "another value format": (
        lambda r: replace(
            r, update=encode(Update(10, np.ones(1), np.zeros(1, int)), FORMATS["float32"], round=4)
        ),
        "malformed",
    ),
    "a dense payload": (
        lambda r: replace(r, update=encode(Update(10, np.ones(10)), FORMATS["float64"], round=4)),
        "malformed",
    ),
    "another base version": (lambda r: replace(r, version=r.version - 1), "stale"),
    "another base state": (lambda r: replace(r, digest=b"01234567"), "stale"),
    "a huge value": (lambda r: poisoned(r, [1.7e308]), "malformed"),
    "a NaN loss": (lambda r: replace(r, loss=float("nan")), "malformed"),
    "buffers": (lambda r: replace(r, buffers=r.update), "malformed"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refused_reply_is_counted_and_changes_nothing(engine, name):
    """It ends in the bits of a run in which that client was not asked."""
    change, reason = REFUSALS[name]
    other = InlineEngine(build())
    for _ in range(3):
        other.round()
    report = engine.round(network=lambda replies: [change(replies[0]), *replies[1:]])
    other.round([1, 2, 3])
    assert report.refusals == {reason: 1}
    assert report.accepted == (1, 2, 3)
    assert report.missing == (0,)
    assert engine.server.state.refusals == {reason: 1}
    assert engine.server.x.tobytes() == other.server.x.tobytes()
    engine.round(), other.round()
    assert engine.server.x.tobytes() == other.server.x.tobytes()


def test_a_seed_of_ones_own_choice_is_refused():
    engine = InlineEngine(build(compressor="rand-k"))

    def forge(replies):
        update = Update(10, np.ones(2), np.array([0, 1]), seed=7)
        payload = encode(update, FORMATS["float64"], round=replies[0].round)
        return [replace(replies[0], update=payload), *replies[1:]]

    assert engine.round(network=forge).refusals == {"malformed": 1}


@pytest.mark.parametrize("entries", [0, 1])
def test_fewer_drawn_positions_than_agreed_are_refused(entries):
    """With the right seed: a client that leaves entries out would be no rand-k of alpha = k/d."""
    engine = InlineEngine(build(compressor="rand-k"))

    def shorten(replies):
        seed = stream_seed(0, "compressor", replies[0].client, replies[0].round)
        indices = drawn_indices(seed, entries, 10)
        update = Update(10, np.ones(entries), indices, seed=seed)
        payload = encode(update, FORMATS["float64"], round=replies[0].round)
        return [replace(replies[0], update=payload), *replies[1:]]

    assert engine.round(network=shorten).refusals == {"malformed": 1}


def test_a_second_reply_is_a_duplicate(engine):
    report = engine.round(network=lambda replies: [*replies, replies[2], replies[2]])
    assert report.refusals == {"duplicate": 2}
    assert report.accepted == (0, 1, 2, 3)


def test_a_reply_after_the_round_is_stale(engine):
    kept = []
    engine.round(network=lambda replies: kept.extend(replies) or replies[1:])
    engine.server.begin_round()
    assert engine.server.receive(kept[0]) == "stale"


def test_a_reply_of_a_client_that_was_not_asked_is_alien(engine):
    reply = replies_of(engine)[3]
    engine.server.end_round()
    engine.server.begin_round([0, 1, 2])
    assert engine.server.receive(replace(reply, round=reply.round + 1)) == "alien"


def test_refused_bytes_are_counted_too(engine):
    replies = replies_of(engine)
    for reply in [*replies, replies[0], replace(replies[0], update=b"\0" * 1000)]:
        engine.server.receive(reply)
    expected = sum(len(r.update) for r in replies) + len(replies[0].update) + 1000
    assert engine.server.end_round().uplink_bytes == expected


@pytest.mark.parametrize("missing", list(Reply.__dataclass_fields__))
def test_a_message_with_a_missing_or_mistyped_field_is_refused(missing):
    fields = Reply(run_id=1, client=0, round=1, status="update").to_fields()
    assert Reply.from_fields(fields) == Reply(run_id=1, client=0, round=1, status="update")
    for wrong in ({}, {missing: None}, {missing: [1]}, {missing: True}):
        damaged = {key: value for key, value in fields.items() if key != missing} | wrong
        with pytest.raises(CorruptPayload, match=missing):
            Reply.from_fields(damaged)


def test_a_client_that_lost_its_state_stops_the_run_with_the_way_out(engine):
    engine.clients[2] = engine.experiment.client(2)
    with pytest.raises(StateMismatch, match=r"client 2 .*round 0 .*Restore both sides"):
        engine.round()


def test_a_client_that_is_behind_stops_the_run(engine):
    engine.round(), engine.round()
    old = ClientState.from_arrays(engine.clients[1].state.to_arrays())
    engine.round(), engine.round()
    engine.clients[1] = engine.experiment.client(1, state=old)
    with pytest.raises(StateMismatch, match="client 1"):
        engine.round()


def test_a_server_that_is_behind_its_clients_stops_the_run(engine):
    behind = engine.server.state
    engine.round(), engine.round()
    restored = InlineEngine(engine.experiment, server_state=behind)
    restored.clients = engine.clients
    with pytest.raises(StateMismatch, match="restored from an older checkpoint"):
        restored.round()


def test_a_mismatch_does_not_touch_the_clients_state(engine):
    session = engine.clients[0]
    before = session.state
    task = engine.server.begin_round()[0]
    reply = session.handle(replace(task, acked=1, digest=b"anything"))
    assert reply.status == "state-mismatch"
    assert reply.version == before.version
    assert session.state is before


def test_an_older_task_changes_nothing(engine):
    session = engine.clients[0]
    old = engine.server.begin_round()[0]
    engine.server.end_round()
    engine.round()
    before = session.state
    assert session.handle(old).status == "stale-task"
    assert session.state is before


def test_the_same_task_again_gives_the_same_reply(engine):
    task = engine.server.begin_round()[0]
    session = engine.clients[0]
    first = session.handle(task)
    state = session.state.to_arrays()
    assert session.handle(task) == first
    again = session.state.to_arrays()
    assert {name: a.tobytes() for name, a in again.items()} == {
        name: a.tobytes() for name, a in state.items()
    }


@pytest.mark.parametrize("change", [{"run_id": 5}, {"client": 1}])
def test_a_task_of_another_run_or_client_is_an_error(engine, change):
    task = engine.server.begin_round()[0]
    with pytest.raises(StateMismatch, match="give each run its own clients"):
        engine.clients[0].handle(replace(task, **change))


@pytest.mark.parametrize("method", ["norm-ef21", "norm-ef21-sgdm"])
@pytest.mark.parametrize("compressor", ["identity", "top-k", "rand-k"])
@given(rounds=st.integers(0, 4), lost=st.booleans())
def test_stored_states_continue_bit_for_bit(compressor, method, rounds, lost):
    """Every field survives to_arrays and from_arrays, with and without a pending update."""
    experiment = build(compressor=compressor, method=method, local_batch_size=2)
    whole = InlineEngine(experiment)
    for _ in range(rounds):
        whole.round(network=lambda replies: replies[2:] if lost else replies)
    stored = InlineEngine(
        experiment,
        server_state=ServerState.from_arrays(whole.server.state.to_arrays()),
        client_states={
            client: ClientState.from_arrays(session.state.to_arrays())
            for client, session in whole.clients.items()
        },
    )
    for _ in range(3):
        whole.round(), stored.round()
    assert stored.server.x.tobytes() == whole.server.x.tobytes()
    assert stored.server.state.records == whole.server.state.records


@pytest.mark.parametrize("kind", [ClientState, ServerState])
@pytest.mark.parametrize("damage", ["facts", "garbage"])
def test_damaged_arrays_are_an_error_with_a_way_out(engine, kind, damage):
    source = engine.server.state if kind is ServerState else engine.clients[0].state
    arrays = source.to_arrays()
    if damage == "facts":
        del arrays["facts"]
    else:
        arrays["facts"] = np.frombuffer(b"{", dtype=np.uint8)
    with pytest.raises(ConfigError, match="start the run again"):
        kind.from_arrays(arrays)


class NanClient:
    """A problem one of whose clients computes NaN."""

    def __init__(self, problem, client, *, loss=0.0, gradient=np.nan):
        self._problem, self._client = problem, client
        self._loss, self._gradient = loss, gradient

    def __getattr__(self, name):
        return getattr(self._problem, name)

    def local(self, client, x, *, rows=None, buffers):
        result = self._problem.local(client, x, rows=rows, buffers=buffers)
        if client != self._client:
            return result
        gradient = result.gradient.copy()
        gradient[3] += self._gradient
        return LocalResult(result.loss + self._loss, gradient, result.buffers)


@pytest.mark.parametrize("compressor", ["identity", "top-k", "rand-k"])
@pytest.mark.parametrize(
    "poison", [{"gradient": np.nan}, {"gradient": np.inf}, {"loss": np.nan, "gradient": 0.0}]
)
def test_a_client_with_a_nan_gradient_is_skipped_and_the_model_stays_finite(compressor, poison):
    experiment = build(compressor=compressor)
    engine = InlineEngine(replace(experiment, problem=NanClient(experiment.problem, 2, **poison)))
    clean = InlineEngine(experiment)
    for _ in range(5):
        report = engine.round()
        clean.round([0, 1, 3])
        assert report.refusals == {"non-finite": 1}
    assert np.isfinite(engine.server.x).all()
    assert engine.server.x.tobytes() == clean.server.x.tobytes()


def test_a_step_that_leaves_the_finite_numbers_is_not_taken():
    engine = InlineEngine(build(method="norm-ef21", schedule="constant", step_size=1e308))
    x = engine.server.x
    with np.errstate(all="ignore"), pytest.raises(Diverged, match="smaller step-size"):
        for _ in range(20):
            x = engine.server.x
            engine.round()
    assert np.isfinite(engine.server.x).all()
    assert engine.server.x is x


def test_a_run_of_the_same_configuration_cannot_be_confused():
    """Its replies stand on another base: refused, although the run id is the same."""
    one, other = InlineEngine(build()), InlineEngine(build())
    one.round()
    other.round([1, 2, 3])
    foreign = replies_of(one)[0]
    other.server.begin_round()
    assert other.server.receive(foreign) == "stale"


def test_a_step_that_fails_after_a_commit_leaves_the_commit(engine, monkeypatch):
    session = engine.clients[0]
    task = engine.server.begin_round()[0]

    def fail(*args, **kwargs):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(type(session._problem), "local", fail)
        with pytest.raises(MemoryError):
            session.handle(task)
    assert session.state.version == task.acked
    assert session.state.pending is None
    assert session.handle(task).status == "update"


@pytest.mark.parametrize("client", [-1, 4, 99])
def test_only_clients_that_exist_are_asked(engine, client):
    with pytest.raises(ConfigError, match=r"must be in \[0, 4\)"):
        engine.server.begin_round([client])
    engine.round()


def test_rounds_are_opened_and_closed_in_turn(engine):
    with pytest.raises(FedefError, match="call begin_round first"):
        engine.server.end_round()
    engine.server.begin_round()
    with pytest.raises(FedefError, match="call end_round first"):
        engine.server.begin_round()


def test_a_round_without_any_reply_still_steps_along_g(engine):
    """As EF21-PP with nobody taking part: g stays, x moves."""
    g, x = engine.server.g, engine.server.x
    report = engine.round(network=lambda replies: [])
    assert report.accepted == ()
    assert report.train_loss is None
    np.testing.assert_array_equal(engine.server.g, g)
    np.testing.assert_allclose(
        engine.server.x, x - report.step_size * g / np.linalg.norm(g), rtol=1e-12
    )


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [1.0, -1.0], [1.0, float("nan")]])
def test_weights_must_make_a_mean(weights):
    with pytest.raises(ConfigError, match="weights must be"):
        build(num_clients=2).server(weights=weights)


def test_a_task_carries_the_model_that_the_report_counts(engine):
    tasks = engine.server.begin_round([1, 3])
    assert all(isinstance(task, Task) for task in tasks)
    report = engine.server.end_round()
    assert report.downlink_bytes == sum(len(task.model) for task in tasks) == 2 * (24 + 80)
