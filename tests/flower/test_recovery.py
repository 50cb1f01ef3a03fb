"""Both ends die and come back on Flower: the same bits as a run in which nobody died."""

import errno
import json
import os
import shutil
from dataclasses import replace

import pytest
from local_grid import CONFIG, LocalGrid, enter_flower

from fedef import durable
from fedef.errors import ConfigError, FedefError, StateMismatch
from fedef.experiment import Experiment
from fedef.recorder import Recorder
from fedef.service import Service
from sims.inline_run import resume_inline
from strategies.app import run

pytestmark = pytest.mark.usefixtures("inside_flower")
EXPERIMENT = Experiment.build(CONFIG)
DIFFERENT = {"seconds", "envelope-bytes"}


class Killed(BaseException):
    """The process is gone."""


def grid(tmp_path, *, seed=0, tamper=None, **run_config):
    flat = {**CONFIG.to_flat(), **Service().to_flat(), "state-dir": str(tmp_path / "nodes")}
    return LocalGrid({**flat, **run_config}, CONFIG.num_clients, seed=seed, tamper=tamper)


def killing(at):
    """The server dies when the reply number `at` of the training arrives."""
    seen = []

    def tamper(message, partition):
        seen.append(message.metadata.message_type == "train")
        if sum(seen) == at:
            raise Killed
        return message

    return tamper


def results(folder):
    summary = json.loads((folder / "summary.json").read_text())
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    return [{k: v for k, v in part.items() if k not in DIFFERENT} for part in [summary, *lines]]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    enter_flower()
    tmp_path = tmp_path_factory.mktemp("unbroken")
    run(grid(tmp_path), EXPERIMENT, tmp_path / "run")
    return results(tmp_path / "run")


@pytest.mark.parametrize("at", [1, 2, 3, 10, 24])
def test_a_killed_server_goes_on_with_the_same_bits(tmp_path, unbroken, at):
    """With new node ids, as a new `flwr run` has them; the clients' files are all that stays."""
    with pytest.raises(Killed):
        run(grid(tmp_path, tamper=killing(at)), EXPERIMENT, tmp_path / "run")
    service = Service.from_run_config({"resume": str(tmp_path / "run")})
    run(grid(tmp_path, seed=1), EXPERIMENT, tmp_path / "not used", service)
    assert results(tmp_path / "run") == unbroken
    assert not (tmp_path / "not used").exists()


def die(*args, **kwargs):
    raise Killed


@pytest.mark.parametrize("stop", [{}, {"stop_uplink_bytes": 2_000}], ids=["last round", "rule"])
def test_a_server_that_dies_before_its_summary_writes_it_when_it_is_resumed(
    tmp_path, monkeypatch, stop
):
    """Its last checkpoint is there; resumed once more, the completed run keeps its summary."""
    experiment = Experiment.build(CONFIG.model_copy(update=stop))
    flat = experiment.config.to_flat()
    run(grid(tmp_path / "a", **flat), experiment, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Recorder, "finish", die)
        run(grid(tmp_path / "b", **flat), experiment, tmp_path / "run")
    assert not (tmp_path / "run" / "summary.json").exists()
    (tmp_path / "run" / ".checkpoint.fdf.99.part").write_bytes(b"of a killed process")
    expected = results(tmp_path / "whole")
    assert (len(expected) < 1 + CONFIG.num_rounds) == bool(stop)
    for _ in range(2):
        run(
            grid(tmp_path / "c", **flat),
            experiment,
            tmp_path,
            Service(resume=str(tmp_path / "run")),
        )
        assert results(tmp_path / "run") == expected
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "whole")]
    assert models[0] == models[1]
    assert not (tmp_path / "c").exists()
    assert not list((tmp_path / "run").glob(".*"))


def test_a_finished_run_goes_on_for_more_rounds(tmp_path, unbroken):
    shorter = replace(EXPERIMENT, config=CONFIG.model_copy(update={"num_rounds": 5}))
    run(grid(tmp_path), shorter, tmp_path / "run")
    run(grid(tmp_path), EXPERIMENT, tmp_path, Service(resume=str(tmp_path / "run")))
    assert results(tmp_path / "run") == unbroken


def test_state_on_the_nodes_gives_the_same_bits_as_state_in_flower(tmp_path, unbroken):
    run(grid(tmp_path, **{"state-dir": ""}), EXPERIMENT, tmp_path / "run")
    assert results(tmp_path / "run") == unbroken
    assert not (tmp_path / "nodes").exists()


def test_the_node_knows_its_disk_better_than_the_run(tmp_path):
    flat = {**CONFIG.to_flat(), "state-dir": str(tmp_path / "run's")}
    nodes = {"state-dir": str(tmp_path / "node's")}
    run(LocalGrid(flat, 5, node_config=nodes), EXPERIMENT, tmp_path / "run")
    assert (tmp_path / "node's").exists()
    assert not (tmp_path / "run's").exists()


@pytest.mark.parametrize("where", [{"state-dir": "relative"}, {"state-dir": 3}])
def test_a_state_dir_that_is_no_absolute_path_is_refused(tmp_path, where):
    nodes = LocalGrid(CONFIG.to_flat(), 5, node_config=where)
    with pytest.raises(FedefError, match="state-dir: must be an absolute path"):
        run(nodes, EXPERIMENT, tmp_path / "run")


def test_clients_whose_disks_are_gone_stop_the_resumed_run(tmp_path):
    with pytest.raises(Killed):
        run(grid(tmp_path, tamper=killing(10)), EXPERIMENT, tmp_path / "run")
    shutil.rmtree(tmp_path / "nodes")
    with pytest.raises(StateMismatch, match="holds the state of round 0"):
        run(grid(tmp_path), EXPERIMENT, tmp_path, Service(resume=str(tmp_path / "run")))


def test_what_cannot_be_resumed_says_why(tmp_path):
    run(grid(tmp_path), EXPERIMENT, tmp_path / "run", Service(server_checkpoint_every=0))
    again = Service(resume=str(tmp_path / "run"))
    with pytest.raises(ConfigError, match="no checkpoint.fdf.*server-checkpoint-every"):
        run(grid(tmp_path), EXPERIMENT, tmp_path, again)
    other = Experiment.build(CONFIG.model_copy(update={"seed": 3}))
    with pytest.raises(ConfigError, match=r"another configuration: seed=3 \(was 0\)"):
        run(grid(tmp_path), other, tmp_path, again)
    with pytest.raises(ConfigError, match="keeps its folder"):
        run(grid(tmp_path), EXPERIMENT, tmp_path, Service(resume=again.resume, out="elsewhere"))
    with pytest.raises(ConfigError, match="holds no run"):
        run(grid(tmp_path), EXPERIMENT, tmp_path, Service(resume=str(tmp_path / "none")))


def test_the_inline_engine_leaves_a_flower_run_alone(tmp_path):
    run(grid(tmp_path), EXPERIMENT, tmp_path / "run")
    with pytest.raises(ConfigError, match="keep their own states"):
        resume_inline(tmp_path / "run")


def test_the_service_keys_are_strict():
    with pytest.raises(ConfigError, match="server-checkpoint-every.*greater than or equal to 0"):
        Service.from_run_config({"server-checkpoint-every": -1})
    assert Service.from_run_config({**CONFIG.to_flat(), **Service().to_flat()}) == Service()


def after_round(round, action):
    """Call `action` once when the first reply of the round after `round` is due."""
    done = []

    def tamper(message, partition):
        fields = message.content.config_records.get("fields", {}) if message.has_content() else {}
        if fields.get("round", 0) > round and not done:
            done.append(action())
        return message

    return tamper


def lines_of(folder):
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def client_file(tmp_path, client):
    (path,) = (tmp_path / "nodes").glob(f"*/client-{client}.fdf")
    return path


WAYS_OUT = ("evict-by-reset", "dense-resync", "evict-by-mirror", "hand-back")


@pytest.mark.parametrize("policy", WAYS_OUT)
def test_a_client_on_an_empty_disk_is_met_as_the_policy_says(tmp_path, policy):
    nodes = grid(tmp_path, tamper=after_round(3, lambda: client_file(tmp_path, 2).unlink()))
    run(nodes, EXPERIMENT, tmp_path / "run", Service(on_lost_state=policy))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["refusals"] == {"lost-state": 1}
    assert summary["refused-clients"] == {"2": 1}
    assert summary["excluded"] == {}
    assert (tmp_path / "run" / "mirror.npy").exists() == (policy in WAYS_OUT[2:])


@pytest.mark.parametrize("policy", WAYS_OUT)
def test_a_repair_survives_the_servers_death(tmp_path, policy):
    """Lost in round 5, noticed in 7: killed around that, the server ends with the same bits."""
    service = Service(on_lost_state=policy)

    def lose():
        client_file(tmp_path / name, 2).unlink()

    name = "whole"
    run(grid(tmp_path / name, tamper=after_round(4, lose)), EXPERIMENT, tmp_path / name, service)
    expected = results(tmp_path / name)
    for at in (14, 20, 22):
        name = str(at)
        die, lost = killing(at), after_round(4, lose)

        def both(message, partition, die=die, lost=lost):
            return die(lost(message, partition), partition)

        with pytest.raises(Killed):
            run(grid(tmp_path / name, tamper=both), EXPERIMENT, tmp_path / name, service)
        again = Service(on_lost_state=policy, resume=str(tmp_path / name))
        run(grid(tmp_path / name, seed=2), EXPERIMENT, tmp_path, again)
        assert results(tmp_path / name) == expected


def spoil(tmp_path):
    path = client_file(tmp_path, 2)
    path.write_bytes(path.read_bytes()[:-1])


def test_a_corrupt_state_file_stops_its_client_and_nobody_else(tmp_path, caplog):
    run(
        grid(tmp_path, tamper=after_round(3, lambda: spoil(tmp_path))),
        EXPERIMENT,
        tmp_path / "run",
    )
    lines = lines_of(tmp_path / "run")
    assert len(lines) == CONFIG.num_rounds
    assert [2] in [line["missing"] for line in lines[4:]]
    assert all(line["missing"] in ([], [2]) for line in lines)
    assert "client-2.fdf' is corrupt" in caplog.text


def test_a_full_disk_stops_its_client_and_nobody_else(tmp_path, monkeypatch, caplog):
    write = durable.write_atomically

    def full(path, data, **mode):
        if path.name == "client-2.fdf" and path.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, data, **mode)

    monkeypatch.setattr(durable, "write_atomically", full)
    run(grid(tmp_path), EXPERIMENT, tmp_path / "run")
    lines = lines_of(tmp_path / "run")
    assert len(lines) == CONFIG.num_rounds
    assert [2] in [line["missing"] for line in lines]
    assert all(line["missing"] in ([], [2]) for line in lines)
    assert "No space left on device; free space, or give the node another state-dir" in caplog.text


def test_a_poisoner_is_excluded_and_reported(tmp_path, caplog):
    def poison(message, partition):
        if partition == 2 and message.metadata.message_type == "train":
            del message.content["payloads"]
        return message

    service = Service(max_refusals=3)
    run(grid(tmp_path, tamper=poison), EXPERIMENT, tmp_path / "run", service)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["excluded"] == {"2": "malformed"}
    assert summary["refused-clients"] == {"2": 3}
    assert "client 2 is excluded from here on: malformed" in caplog.text


def test_a_mirror_needs_a_checkpoint_each_round(tmp_path):
    service = Service(on_lost_state="hand-back", server_checkpoint_every=2)
    with pytest.raises(ConfigError, match="needs server-checkpoint-every=1, got 2"):
        run(grid(tmp_path), EXPERIMENT, tmp_path / "run", service)


def garbled(message, partition):
    if partition == 2 and message.metadata.message_type == "train":
        del message.content["payloads"]
    return message


@pytest.mark.parametrize(
    "tamper", [lambda message, partition: message, garbled], ids=["", "poison"]
)
@pytest.mark.parametrize("at", [2, 16, 20, 24])
def test_a_server_with_rare_checkpoints_goes_on_with_the_same_bits(tmp_path, at, tamper):
    """Killed in rounds 1, 6, 7 and 8 with checkpoints at 0, 3 and 6: the journal has the others."""
    service = Service(server_checkpoint_every=3)
    whole = grid(tmp_path / "whole", tamper=tamper)
    run(whole, EXPERIMENT, tmp_path / "whole", service)
    dying = killing(at)
    with pytest.raises(Killed):
        run(
            grid(tmp_path / "run", tamper=lambda m, p: dying(tamper(m, p), p)),
            EXPERIMENT,
            tmp_path / "run",
            service,
        )
    held = [path.name for path in (tmp_path / "run" / "journal").glob("*")]
    assert sorted(held) == {2: [], 16: ["4.fdf", "5.fdf"], 20: [], 24: ["7.fdf"]}[at]
    again = Service(server_checkpoint_every=3, resume=str(tmp_path / "run"))
    nodes = grid(tmp_path / "run", seed=1, tamper=tamper)
    run(nodes, EXPERIMENT, tmp_path, again)
    assert results(tmp_path / "run") == results(tmp_path / "whole")
    assert not list((tmp_path / "run" / "journal").glob("*"))
