"""Both ends die and come back on Flower: the same bits as a run in which nobody died."""

import json
import shutil
from dataclasses import replace

import pytest
from flwr.supercore.task_identity import TaskIdentity
from local_grid import LocalGrid

from fedef.config import Config
from fedef.errors import ConfigError, FedefError, StateMismatch
from fedef.experiment import Experiment
from fedef.service import Service
from sims.inline_run import resume_inline
from strategies.app import run

CONFIG = Config.from_flat(
    {
        "problem": "digits-softmax",
        "num-clients": 5,
        "participation": 0.6,
        "local-batch-size": 8,
        "num-rounds": 8,
        "k-fraction": 0.05,
    }
)
EXPERIMENT = Experiment.build(CONFIG)
DIFFERENT = {"seconds", "envelope-bytes"}


class Killed(BaseException):
    """The process is gone."""


@pytest.fixture(autouse=True)
def _inside_flower():
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


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
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
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
