"""Strategy and ClientApp over a grid in this process: same bits as inline, every refusal."""

import copy
import json
import pickle
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from local_grid import LocalGrid

from clients.records import content_of as reply_content
from clients.records import task_from
from clients.store import load_state, save_state
from fedef.config import Config
from fedef.errors import ConfigError, CorruptPayload, FedefError
from fedef.experiment import Experiment
from fedef.messages import Reply, Task
from fedef.recorder import model_sha256
from sims.inline_run import run_inline
from strategies.app import run as run_app
from strategies.error_feedback import ErrorFeedback
from strategies.records import content_of as task_content
from strategies.records import reply_from
from strategies.wire import envelope_bytes

pytestmark = pytest.mark.usefixtures("inside_flower")
SETTINGS = {
    "problem": "digits-softmax",
    "num-clients": 5,
    "local-batch-size": 8,
    "num-rounds": 4,
    "k-fraction": 0.05,
}


def experiment_and_grid(*, tamper=None, seed=0, **changes):
    flat = {**SETTINGS, **{k.replace("_", "-"): v for k, v in changes.items()}}
    config = Config.from_flat(flat)
    run_config = {**config.to_flat(), "out": ""}
    return Experiment.build(config), LocalGrid(
        run_config, config.num_clients, tamper=tamper, seed=seed
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"participation": 0.4},
        {"method": "norm-ef21", "compressor": "rand-k", "weighting": "uniform"},
        {"init": "full", "value_format": "float16", "seed": 3},
        {"stop_uplink_bytes": 700},
    ],
    ids=str,
)
def test_same_bits_as_inline(changes, tmp_path):
    experiment, grid = experiment_and_grid(**changes)
    run_app(grid, experiment, tmp_path / "flower")
    inline = run_inline(experiment.config, tmp_path / "inline")
    flower = json.loads((tmp_path / "flower" / "summary.json").read_text())
    different = {"engine", "seconds", "envelope-bytes"}
    assert {k: v for k, v in flower.items() if k not in different} == {
        k: v for k, v in inline.items() if k not in different
    }
    assert flower["envelope-bytes"] > 0
    stopped = "stop_uplink_bytes" in changes
    assert (flower["rounds"] < experiment.config.num_rounds) == stopped


def test_node_ids_and_the_order_of_replies_do_not_matter(tmp_path):
    results = set()
    for seed in range(3):
        experiment, grid = experiment_and_grid(seed=0)
        grid._rng = np.random.default_rng(seed)
        run_app(grid, experiment, tmp_path / str(seed))
        results.add(json.loads((tmp_path / str(seed) / "summary.json").read_text())["model-sha256"])
    assert len(results) == 1


def strategy_after(rounds, **settings):
    experiment, grid = experiment_and_grid(**settings)
    reports = []
    strategy = ErrorFeedback(experiment, on_round=lambda report, *rest: reports.append(report))
    result = strategy.start(grid, strategy.initial_arrays(), num_rounds=rounds)
    return strategy, reports, result


def test_the_result_holds_the_model_by_its_parameters_names():
    strategy, _, result = strategy_after(2)
    model = {name: array.numpy() for name, array in result.arrays.items()}
    assert list(model) == ["weight", "bias"]
    flat = np.concatenate([model["weight"].ravel(), model["bias"]])
    assert model_sha256(flat) == model_sha256(strategy.session.x)


def replacing(content_change):
    """Tamper with the training replies of client 0."""

    def tamper(message, partition):
        if partition == 0 and message.metadata.message_type == "train":
            return content_change(message)
        return message

    return tamper


def with_fields(**changes):
    def change(message):
        fields = dict(message.content.config_records["fields"]) | changes
        message.content["fields"] = ConfigRecord(fields)
        return message

    return change


def without(record):
    def change(message):
        del message.content[record]
        return message

    return change


def with_payload(data):
    def change(message):
        array = Array(dtype="uint8", shape=(len(data),), stype="fedef/1", data=data)
        message.content["payloads"] = ArrayRecord({"update": array})
        return message

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_fields(client=1), "alien"),
        (with_fields(run_id=1), "alien"),
        (with_fields(round=1), "stale"),
        (with_fields(loss="low"), "malformed"),
        (with_fields(loss=float("nan")), "malformed"),
        (without("fields"), "malformed"),
        (without("payloads"), "malformed"),
        (with_payload(b"\x80\x04 not a pickle, not a payload"), "malformed"),
        (lambda message: [message, message], "duplicate"),
    ],
)
def test_refused_replies_are_counted_and_the_rest_goes_on(change, reason):
    strategy, reports, _ = strategy_after(3, tamper=replacing(change))
    assert all(reason in report.refusals for report in reports[1:])
    assert all(set(report.accepted) >= {1, 2, 3, 4} for report in reports)
    assert np.isfinite(strategy.session.x).all()


def test_a_client_that_fails_counts_as_missing():
    def fail(message):
        return Message(Error(code=2, reason="ValueError: disk full"), reply_to=message)

    _, reports, _ = strategy_after(2, tamper=replacing(fail))
    assert [report.missing for report in reports] == [(0,), (0,)]


def test_a_run_in_which_everybody_fails_stops_with_the_reason():
    def fail(message, partition):
        if message.metadata.message_type == "train":
            return Message(Error(code=2, reason="Traceback\nValueError: no data"), reply_to=message)
        return message

    with pytest.raises(FedefError, match="5 clients failed, the first with: ValueError: no data"):
        strategy_after(2, tamper=fail)


@pytest.mark.parametrize(("failing", "rounds_done"), [(range(3, 5), 6), (range(3, 9), 4)])
def test_the_only_participant_may_fail_but_not_for_ever(failing, rounds_done):
    """A failure is a lost reply; three rounds of nothing but failures are a run that is broken."""
    trained = []

    def fail_for_a_while(message, partition):
        if message.metadata.message_type != "train":
            return message
        trained.append(partition)
        if len(trained) in failing:
            return Message(Error(code=2, reason="OSError: disk full"), reply_to=message)
        return message

    experiment, grid = experiment_and_grid(tamper=fail_for_a_while, participation=0.2)
    reports = []
    strategy = ErrorFeedback(experiment, on_round=lambda report, *rest: reports.append(report))
    stops = pytest.raises(FedefError, match="disk full") if rounds_done < 6 else nullcontext()
    with stops:
        strategy.start(grid, strategy.initial_arrays(), num_rounds=6)
    assert len(reports) == rounds_done
    assert [report.round for report in reports if not report.accepted] == [3, 4]


def test_a_node_that_does_not_say_which_client_it_is_stops_the_run():
    def silent(message, partition):
        if message.metadata.message_type.startswith("query") and partition == 1:
            del message.content["partition"]
        return message

    with pytest.raises(FedefError, match="did not say which client it is"):
        strategy_after(1, tamper=silent)


def test_a_dead_simulation_process_stops_the_run():
    def die(message):
        return Message(Error(code=0, reason="ray ... ActorDiedError: killed"), reply_to=message)

    with pytest.raises(FedefError, match="ActorDiedError"):
        strategy_after(2, tamper=replacing(die))


def test_two_nodes_with_the_same_partition_stop_the_run():
    def same(message, partition):
        if message.metadata.message_type.startswith("query") and partition == 1:
            message.content["partition"] = ConfigRecord({"client": 0, "examples": 3})
        return message

    with pytest.raises(FedefError, match="give each node its own partition-id"):
        strategy_after(1, tamper=same)


def test_missing_nodes_are_told(monkeypatch):
    experiment, _ = experiment_and_grid()
    grid = LocalGrid({}, 3)
    strategy = ErrorFeedback(experiment, start_seconds=0.0)
    with pytest.raises(FedefError, match="3 of 5 clients are connected"):
        strategy.start(grid, strategy.initial_arrays(), num_rounds=1)


def test_other_initial_arrays_are_refused():
    experiment, grid = experiment_and_grid()
    strategy = ErrorFeedback(experiment)
    other = ArrayRecord({"weight": Array(np.zeros((10, 64), np.float32))})
    with pytest.raises(ConfigError, match="initial-point"):
        strategy.start(grid, other, num_rounds=1)


def test_the_state_survives_the_context_bit_for_bit():
    experiment, _ = experiment_and_grid(method="norm-ef21-sgdm")
    server, session = experiment.server(), experiment.client(2)
    for _ in range(3):
        for task in server.begin_round([2]):
            server.receive(session.handle(task))
        server.end_round()
    context = Context(1, 1, {}, RecordDict(), {})
    assert load_state(context) is None
    save_state(context, session.state)
    loaded = load_state(pickle.loads(pickle.dumps(context)))
    expected, got = session.state.to_arrays(), loaded.to_arrays()
    assert {n: (a.dtype, a.tobytes()) for n, a in got.items()} == {
        n: (a.dtype, a.tobytes()) for n, a in expected.items()
    }


def test_messages_survive_the_records():
    task = Task(3, 1, 7, 5, b"12345678", b"model bytes", b"")
    assert task_from(task_content(task)) == task
    reply = Reply(3, 1, 7, "update", loss=0.5, examples=12, version=5, update=b"update bytes")
    assert reply_from(reply_content(reply)) == reply
    assert reply_from(reply_content(replace(reply, update=b""))) == replace(reply, update=b"")
    with pytest.raises(CorruptPayload, match="record"):
        reply_from(RecordDict())


@pytest.mark.parametrize("size", [0, 1000, 12_000_000])
def test_the_envelope_does_not_grow_with_the_payload(size):
    """About 1 kB, and some per 5 MiB chunk; counting leaves the message as it was."""
    message = Message(task_content(Task(1, 0, 1, 0, bytes(8), b"\1" * size, b"")), 7, "train")
    envelope = envelope_bytes(message)
    assert 300 < envelope < 2500
    assert envelope_bytes(message) == envelope
    assert pickle.loads(pickle.dumps(message)).metadata.dst_node_id == 7
    copy.deepcopy(message)
