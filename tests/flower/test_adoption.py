"""An app that knows nothing of fedef keeps its code and its results, and sends a part of it."""

import importlib
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from clients.mod import error_feedback_mod
from clients.store import load_state
from fedef.adoption import Plan
from fedef.errors import ConfigError, CorruptPayload, FedefError, StateMismatch
from sims.flower_engine import flwr_run
from strategies.adoption import ErrorFeedback
from strategies.roll_call import ATTEMPTS
from strategies.wire import envelope_bytes

pytestmark = pytest.mark.usefixtures("inside_flower")
QUICKSTART = Path(__file__).resolve().parents[1] / "apps" / "quickstart"
README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
TWO_LINES = re.findall(
    r"^ # (\w+\.py)\n\+(.*)\n-(.*)\n\+(.*)\n", README.partition("```diff")[2], flags=re.M
)


class Nodes:
    """A grid of nodes in this process, each with its own context; `tamper` changes replies."""

    def __init__(self, app, num_nodes, *, run_config=None, tamper=None, first=100):
        self.app, self.tamper = app, tamper or (lambda message, client: message)
        self.contexts = {
            first + client: Context(
                1,
                first + client,
                {"partition-id": client, "num-partitions": num_nodes},
                RecordDict(),
                run_config or {},
            )
            for client in range(num_nodes)
        }
        self.trained, self.uplink = [], 0

    def get_node_ids(self):
        return set(self.contexts)

    def send_and_receive(self, messages, *, timeout=None):
        replies = []
        for message in messages:
            context = self.contexts[message.metadata.dst_node_id]
            client = context.node_config["partition-id"]
            training = "config" in message.content and message.metadata.message_type == "train"
            self.trained += [client] if training else []
            try:
                reply = self.app(message, context)
            except Exception as error:
                reply = Message(Error(code=2, reason=repr(error)), reply_to=message)
            reply = self.tamper(reply, client) if training else reply
            if reply is not None:
                replies.append(reply)
                if training and reply.has_content():
                    records = reply.content.array_records.values()
                    data = sum(len(a.data) for record in records for a in record.values())
                    self.uplink += data + envelope_bytes(reply)
        return replies


START = {
    "layer.weight": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),
    "norm.running_mean": np.zeros(3, np.float32),
    "norm.num_batches_tracked": np.array(0, np.int64),
    "layer.bias": np.ones(2, np.float64),
}


def toy(change=lambda content, client: content, mods=(error_feedback_mod,)):
    """Client i moves a tenth of the way to i, and counts for i + 1."""
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message, context):
        client = context.node_config["partition-id"]
        model = {name: array.numpy() for name, array in message.content["arrays"].items()}
        step = message.content["config"]["lr"]
        for name in ("layer.weight", "layer.bias"):
            model[name] = (model[name] - step * (model[name] - client)).astype(model[name].dtype)
        model["norm.running_mean"] = model["norm.running_mean"] * 0.5 + np.float32(client)
        model["norm.num_batches_tracked"] = model["norm.num_batches_tracked"] + 4
        arrays = ArrayRecord({name: Array(np.asarray(array)) for name, array in model.items()})
        metrics = MetricRecord({"train_loss": client / 7, "num-examples": client + 1})
        content = change({"arrays": arrays, "metrics": metrics}, client)
        return Message(RecordDict(content), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        mean = float(message.content["arrays"]["layer.weight"].numpy().mean())
        metrics = MetricRecord({"mean": mean, "num-examples": 3})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def start(strategy, grid, rounds=4, arrays=START):
    record = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    config = ConfigRecord({"lr": 0.1})
    return strategy.start(grid=grid, initial_arrays=record, num_rounds=rounds, train_config=config)


def model_of(result):
    return {name: array.numpy() for name, array in result.arrays.items()}


@pytest.mark.parametrize("feedback", ["ef14", "ef21"])
def test_without_compression_it_is_fedavg(feedback):
    """Arrays, averaged buffers, training metrics and evaluation, all weights different."""
    expected = start(FedAvg(), Nodes(toy(mods=()), 3))
    strategy = ErrorFeedback(compressor="identity", feedback=feedback, value_format="float64")
    result = start(strategy, Nodes(toy(), 3))
    want, got = model_of(expected), model_of(result)
    assert list(got) == list(want)
    for name in want:
        assert got[name].dtype == START[name].dtype
        np.testing.assert_allclose(got[name], want[name], rtol=1e-6, atol=1e-7)
    for round, metrics in result.train_metrics_clientapp.items():
        before = dict(expected.train_metrics_clientapp[round])
        assert metrics.pop("fedef-uplink-bytes") > 0
        assert dict(metrics) == pytest.approx(before, rel=1e-12)
    for round, metrics in result.evaluate_metrics_clientapp.items():
        assert metrics["mean"] == pytest.approx(
            expected.evaluate_metrics_clientapp[round]["mean"], rel=1e-6
        )


def test_some_clients_are_asked_and_averaged_as_by_fedavg():
    """Equal weights, half of the clients after the first round: x is the mean of those asked."""

    def equal(content, client):
        return {**content, "metrics": MetricRecord({"num-examples": 5})}

    grid = Nodes(toy(equal), 6)
    strategy = ErrorFeedback(compressor="identity", fraction_train=0.5, fraction_evaluate=0.0)
    result = start(strategy, grid, rounds=5)
    rounds = [grid.trained[:6], *np.array(grid.trained[6:]).reshape(4, 3)]
    assert len({tuple(asked) for asked in rounds}) > 2
    x = START["layer.weight"].astype(float)
    for asked in rounds:
        x = x - 0.1 * (x - np.mean(asked))
    np.testing.assert_allclose(model_of(result)["layer.weight"], x, rtol=1e-5)


def test_the_server_holds_the_mean_of_what_clients_hold_and_catches_up():
    """sum_i w_i h_i / W = x^0 - x^K, and what is not sent yet is in the clients' sums."""
    grid = Nodes(toy(), 3)
    strategy = ErrorFeedback(k_fraction=0.13)
    result = start(strategy, grid, rounds=6)
    states = [load_state(context) for context in grid.contexts.values()]
    held = []
    for client, state in enumerate(states):
        h = state.g.copy()
        state.pending.g.overwrite(h)
        held.append((client + 1) * h.astype(float))
    np.testing.assert_allclose(strategy.session.g, sum(held) / 6, rtol=0, atol=1e-12)
    start_x = np.concatenate([START["layer.weight"].ravel(), START["layer.bias"]])
    model = model_of(result)
    end_x = np.concatenate([model["layer.weight"].ravel(), model["layer.bias"]])
    np.testing.assert_allclose(start_x - end_x, strategy.session.g, atol=1e-6)
    assert [state.pending.memory["v"].shape for state in states] == [(8,)] * 3


def test_a_lost_reply_is_a_client_that_was_not_asked():
    """The sum of pseudo-gradients rolls back with what was sent."""
    lost = iter([False, True, False, False])

    def lose(message, client):
        return None if client == 1 and next(lost) else message

    kept = ErrorFeedback(compressor="identity", value_format="float64")
    grid = Nodes(toy(), 2, tamper=lose)
    result = start(kept, grid, rounds=4)
    x = START["layer.bias"][0]
    for number in range(4):
        # Of the second round only the first client's third of the weight arrives.
        x -= (1 / 3) * 0.1 * x + (0 if number == 1 else (2 / 3) * 0.1 * (x - 1))
    np.testing.assert_allclose(model_of(result)["layer.bias"], [x, x], rtol=1e-12)


def arrays_with(**changes):
    def change(content, client):
        model = {name: array.numpy() for name, array in content["arrays"].items()}
        model |= {name.replace("_", ".", 1): array for name, array in changes.items()}
        model = {name: array for name, array in model.items() if array is not None}
        return {**content, "arrays": ArrayRecord({n: Array(a) for n, a in model.items()})}

    return change


def foreign(content, client):
    other = Array(dtype="float32", shape=(2,), stype="pickle", data=b"\x80")
    return {**content, "arrays": ArrayRecord({**content["arrays"], "layer.bias": other})}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (arrays_with(layer_bias=np.ones(3)), "'layer.bias' as float64(3,), it got float64(2,)"),
        (arrays_with(layer_bias=np.ones(2, np.int64)), "'layer.bias' as int64(2,)"),
        (arrays_with(layer_bias=None), "missing ['layer.bias']"),
        (arrays_with(new_array=np.ones(2)), "added ['new.array']"),
        (
            arrays_with(**{"norm_num_batches_tracked": np.array(2**60)}),
            "holds 1152921504606846976, which float64 cannot carry",
        ),
        (lambda c, i: {**c, "more": MetricRecord({"a": 1})}, "one ArrayRecord and one Metric"),
        (lambda c, i: {"metrics": c["metrics"]}, "one ArrayRecord and one MetricRecord"),
        (lambda c, i: {**c, "metrics": MetricRecord({"loss": 1.0})}, "'num-examples' must be"),
        (lambda c, i: {**c, "metrics": MetricRecord({"num-examples": -1})}, "got -1"),
        (foreign, "are not NumPy arrays"),
    ],
)
def test_the_mod_refuses_what_it_cannot_handle(change, message):
    """Client 0's app misbehaves: its error says how, the others go on."""
    seen = []
    app = toy(lambda content, client: change(content, client) if client == 0 else content)

    def watch(reply, client):
        seen.extend([reply.error.reason] if reply.has_error() else [])
        return reply

    start(ErrorFeedback(), Nodes(app, 3, tamper=watch), rounds=2)
    assert len(seen) == 2
    assert all(message in reason and "ConfigError" in reason for reason in seen)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"counter": np.array([1, 2])}, "is a trained floating-point array"),
        ({"bn.running_mean": np.ones(2)}, "is a trained floating-point array"),
        ({"mask": np.array([True]), "w": np.ones(2)}, "'mask' has dtype bool"),
    ],
)
def test_models_that_cannot_be_compressed_are_refused(arrays, message):
    with pytest.raises(ConfigError, match=message):
        start(ErrorFeedback(), Nodes(toy(), 2), arrays=arrays)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"k_fraction": 0.0}, "k_fraction: must be in"),
        ({"feedback": "ef22"}, "must be one of ef14, ef21, norm-ef21, got 'ef22'"),
        ({"compressor": "zip"}, "compressor: must be one of"),
        ({"value_format": "float8"}, "value_format: must be one of"),
    ],
)
def test_settings_are_checked(setting, message):
    with pytest.raises(ConfigError, match=message):
        start(ErrorFeedback(**setting), Nodes(toy(), 2))


def test_an_app_without_the_mod_is_named():
    with pytest.raises(FedefError, match=r"give its app the mod: ClientApp\(mods="):
        start(ErrorFeedback(), Nodes(toy(mods=()), 2))


def test_a_server_without_error_feedback_gets_the_app_as_it_is():
    plain, with_mod = (model_of(start(FedAvg(), Nodes(toy(mods=m), 2))) for m in ((), [MOD]))
    assert {n: a.tobytes() for n, a in with_mod.items()} == {
        n: a.tobytes() for n, a in plain.items()
    }


MOD = error_feedback_mod


def poisoned(**records):
    def change(message, client):
        if client == 0:
            message.content.update(records)
        return message

    return change


@pytest.mark.parametrize(
    "tamper",
    [
        poisoned(metrics=MetricRecord({"num-examples": float("nan")})),
        poisoned(more=MetricRecord({"num-examples": 1})),
        poisoned(fields=ConfigRecord({"run_id": 3})),
        poisoned(
            payloads=ArrayRecord({"update": Array("uint8", (3,), "fedef/1", b"\x80\x04.")}),
        ),
    ],
)
def test_poison_is_refused_and_the_others_go_on(tamper):
    strategy = ErrorFeedback()
    result = start(strategy, Nodes(toy(), 3, tamper=tamper), rounds=3)
    assert strategy.session.state.refusals == {"malformed": 3}
    assert all(np.isfinite(array).all() for array in model_of(result).values())
    # Client 0 pulls to 0, the others to 1 and 2 with the weights that they said.
    assert set(strategy.session.state.records) == {1, 2}


def test_replayed_updates_and_updates_of_another_run_are_refused():
    """Both are well-formed, authenticated and by the right node."""
    first, other_run = {}, {}

    def keep(message, client):
        return other_run.setdefault(client, message)

    def replay(message, client):
        old = first.setdefault(client, message.content) if client == 0 else None
        if client == 1:
            old = other_run[client].content
        return message if old is None else Message(old, metadata=message.metadata)

    start(ErrorFeedback(seed=1), Nodes(toy(), 3, tamper=keep), rounds=1)
    strategy = ErrorFeedback(seed=2)
    start(strategy, Nodes(toy(), 3, tamper=replay), rounds=4)
    assert strategy.session.state.refusals == {"alien": 4, "stale": 3}
    assert {c: record.version for c, record in strategy.session.state.records.items()} == {
        0: 1,
        2: 4,
    }


def test_a_client_that_returns_as_another_node_keeps_its_place():
    grid = Nodes(toy(), 3)

    def move(message, client):
        if client == 2 and 102 in grid.contexts:
            grid.contexts[555] = grid.contexts.pop(102)
        return message

    grid.tamper = move
    strategy = ErrorFeedback()
    start(strategy, grid, rounds=3)
    assert strategy.session.state.records[2].version == 3


def test_a_state_on_the_nodes_disk_survives_a_restart(tmp_path):
    """Of the node, whose context is then empty: the same bits as without."""

    def run(grid):
        strategy = ErrorFeedback()
        return model_of(start(strategy, grid, rounds=4)), strategy.session.state.refusals

    expected = run(Nodes(toy(), 2))
    grid = Nodes(toy(), 2)
    for context in grid.contexts.values():
        context.node_config["state-dir"] = str(tmp_path)

    def restart(message, client):
        for context in grid.contexts.values():
            assert not context.state
        return message

    grid.tamper = restart
    model, refusals = run(grid)
    assert refusals == expected[1] == {}
    assert {n: a.tobytes() for n, a in model.items()} == {
        n: a.tobytes() for n, a in expected[0].items()
    }
    assert len(list(tmp_path.glob("*/client-*.fdf"))) == 2


@pytest.mark.parametrize("policy", ["evict-by-reset", "dense-resync"])
def test_a_node_that_starts_again_without_a_state_dir_is_one_lost_reply(policy):
    """Without compression nothing is left to send, so to start again costs nothing else."""
    grid = Nodes(toy(), 2)

    def restart(message, client):
        if client == 1 and len(grid.trained) == 4:  # after the second round
            grid.contexts[101].state = RecordDict()
        return message

    grid.tamper = restart
    strategy = ErrorFeedback(compressor="identity", value_format="float64", on_lost_state=policy)
    result = start(strategy, grid, rounds=6)
    x = START["layer.bias"][0]
    for number in range(6):
        x -= (1 / 3) * 0.1 * x + (0 if number == 2 else (2 / 3) * 0.1 * (x - 1))
    np.testing.assert_allclose(model_of(result)["layer.bias"], [x, x], rtol=1e-12)
    assert strategy.session.state.refusals == {"lost-state": 1}


def test_a_lost_state_may_stop_the_run_and_nothing_unknown_is_taken():
    grid = Nodes(toy(), 2)

    def restart(message, client):
        grid.contexts[101].state = RecordDict()
        return message

    grid.tamper = restart
    with pytest.raises(StateMismatch, match="go on with another on-lost-state"):
        start(ErrorFeedback(on_lost_state="stop"), grid)
    with pytest.raises(ConfigError, match="evict-by-reset, dense-resync, stop, got 'hand-back'"):
        ErrorFeedback(on_lost_state="hand-back")


def test_a_poisoner_is_excluded(caplog):
    def poison(message, client):
        if client == 0:
            message.content.update({"fields": ConfigRecord({"run_id": 3})})
        return message

    grid = Nodes(toy(), 3, tamper=poison)
    strategy = ErrorFeedback()
    start(strategy, grid, rounds=12)
    assert strategy.session.members.excluded == {0: "malformed"}
    assert (grid.trained.count(0), grid.trained.count(1)) == (10, 12)
    assert "client 0 is excluded from here on: malformed" in caplog.text


def test_a_round_with_nobody_to_ask_is_closed_and_the_next_one_goes_on():
    grid = Nodes(toy(), 2)
    away = {}

    def leave(message, client):
        if len(grid.trained) == 2:
            away.update(grid.contexts)
            others = Nodes(toy(), 2, first=500).contexts
            for number, context in enumerate(others.values()):
                context.node_config["partition-id"] = 7 + number
            grid.contexts = others
        return message

    grid.tamper = leave
    deliver = grid.send_and_receive

    def come_back(messages, *, timeout=None):
        if not messages and away:
            grid.contexts = dict(away)
        return deliver(messages, timeout=timeout)

    grid.send_and_receive = come_back
    strategy = ErrorFeedback()
    start(strategy, grid, rounds=4)
    assert strategy.session.round == 4
    assert grid.trained == [0, 1, 0, 1, 0, 1]


def test_a_silent_node_is_asked_three_times_and_no_more():
    grid = Nodes(toy(), 2)
    asked, deliver = [], grid.send_and_receive

    def without_answer(messages, *, timeout=None):
        silent = [m for m in messages if m.metadata.dst_node_id == 555]
        asked.extend(silent)
        return deliver([m for m in messages if m not in silent], timeout=timeout)

    def join(message, client):
        grid.contexts.setdefault(555, Nodes(toy(), 1).contexts[100])
        return message

    grid.tamper, grid.send_and_receive = join, without_answer
    start(ErrorFeedback(fraction_evaluate=0.0), grid, rounds=8)
    assert len(asked) == ATTEMPTS


def test_an_impostor_gets_no_task_as_long_as_the_client_is_there(caplog):
    grid = Nodes(toy(), 2)

    def join(message, client):
        grid.contexts.setdefault(555, Nodes(toy(), 2).contexts[101])
        return message

    grid.tamper = join
    strategy = ErrorFeedback()
    start(strategy, grid, rounds=3)
    assert "node 555 says it is client 1, which another node is" in caplog.text
    assert strategy.session.state.refusals == {}
    assert strategy.session.state.records[1].version == 3


def test_a_newcomer_without_the_mod_stops_nobody(caplog):
    grid, plain = Nodes(toy(), 2), toy(mods=())
    app = grid.app
    grid.app = lambda message, context: (plain if context.node_id == 100 + 7 else app)(
        message, context
    )

    def join(message, client):
        grid.contexts.setdefault(107, Nodes(toy(), 8).contexts[107])
        return message

    grid.tamper = join
    strategy = ErrorFeedback(fraction_evaluate=0.0)
    start(strategy, grid, rounds=3)
    assert strategy.session.round == 3
    assert "node 107 did not say which client it is" in caplog.text


def test_two_nodes_with_one_name_are_refused():
    grid = Nodes(toy(), 2)
    grid.contexts[101].node_config["partition-id"] = 0
    with pytest.raises(ConfigError, match="two nodes have partition-id=0"):
        start(ErrorFeedback(), grid)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"names": 3}', '{"names": [], "x": 1}'])
def test_a_plan_that_is_none_is_refused(text):
    with pytest.raises(CorruptPayload, match="plan: not understood"):
        Plan.from_json(text)


# --- the untouched quickstart, and its two changed lines ------------------------------------------


def adopted(folder):
    """Copy of the quickstart with the README's change: one line in each app, and its import."""
    shutil.copytree(QUICKSTART, folder, ignore=shutil.ignore_patterns("__pycache__"))
    assert [name for name, *_ in TWO_LINES] == ["client_app.py", "server_app.py"]
    for name, new_import, before, after in TWO_LINES:
        file = folder / "quickstart" / name
        lines = file.read_text().splitlines()
        lines[lines.index(before)] = after
        lines.insert(lines.index("import torch") + 1, new_import)
        file.write_text("\n".join(lines) + "\n")
    return folder


def imported(folder, monkeypatch):
    monkeypatch.syspath_prepend(str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] == "quickstart"]:
        monkeypatch.delitem(sys.modules, name)
    return (importlib.import_module(f"quickstart.{side}_app").app for side in ("client", "server"))


def trained(folder, out, monkeypatch, *, rounds):
    """Final accuracy and uplink bytes, envelope included, of a whole run on five clients."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset  # noqa: F401 - loaded before the seed

    client_app, server_app = imported(folder, monkeypatch)
    config = {
        "num-server-rounds": rounds,
        "fraction-evaluate": 0.0,
        "local-epochs": 1,
        "learning-rate": 0.02,
        "batch-size": 32,
        "out": str(out),
    }
    grid = Nodes(client_app, 5, run_config=config)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        server_app(grid, Context(1, 1, {}, RecordDict(), config))
    finally:
        torch.set_num_threads(threads)
    task = sys.modules["quickstart.task"]
    net = task.Net()
    net.load_state_dict(torch.load(out, weights_only=True))
    return task.test(net, task.load_centralized_dataset(), "cpu")[1], grid.uplink


@pytest.mark.slow
def test_the_adopted_quickstart_is_as_good_at_a_fortieth_of_the_uplink(tmp_path, monkeypatch):
    dense, dense_bytes = trained(QUICKSTART, tmp_path / "a.pt", monkeypatch, rounds=100)
    changed = adopted(tmp_path / "adopted")
    sparse, sparse_bytes = trained(changed, tmp_path / "b.pt", monkeypatch, rounds=100)
    print(f"accuracy {dense:.4f} and {sparse:.4f}, uplink {dense_bytes / sparse_bytes:.1f}")
    assert dense > 0.9
    assert sparse >= dense - 0.01
    assert dense_bytes >= 40 * sparse_bytes


@pytest.mark.slow
def test_the_adopted_quickstart_runs_on_flowers_simulation(tmp_path):
    out = tmp_path / "model.pt"
    flwr_run(
        adopted(tmp_path / "adopted"),
        run_config={"out": str(out), "num-server-rounds": 2},
        num_supernodes=2,
        log_path=tmp_path / "log",
        result_path=out,
    )
    assert "Error feedback" in (tmp_path / "log").read_text()
    assert os.path.getsize(out) > 100_000
