"""A whole inline run: its folder, kills, resumed runs, interruptions."""

import json
import os
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedef.config import Config, read_toml
from fedef.errors import ConfigError
from fedef.experiment import Experiment
from fedef.run_folder import RunFolder
from sims.engine import InlineEngine
from sims.inline_run import resume_inline, run_inline

SETTINGS = {
    "problem": "digits-mlp",
    "participation": 0.5,
    "local-batch-size": 16,
    "method": "norm-ef21-sgdm",
    "num-rounds": 10,
}


def config(**changes) -> Config:
    flat = {key.replace("_", "-"): value for key, value in changes.items()}
    return Config.from_flat({**SETTINGS, **flat})


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def without_seconds(folder: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines(folder)]


@pytest.fixture(scope="module")
def ten_rounds(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    run_inline(config(), folder)
    return folder


def test_the_folder_says_what_happened(ten_rounds):
    summary = json.loads((ten_rounds / "summary.json").read_text())
    rounds = lines(ten_rounds)
    assert [line["round"] for line in rounds] == list(range(1, 11))
    assert summary["status"] == "completed"
    assert summary["rounds"] == 10
    assert summary["final-loss"] == rounds[-1]["loss"]
    assert summary["test-accuracy"] == rounds[-1]["test-accuracy"]
    for name in ("uplink-bytes", "downlink-bytes", "bound-bytes", "envelope-bytes"):
        assert summary[name] == sum(line[name] for line in rounds)
    assert all(line["participants"] == 5 for line in rounds)
    assert summary["bound-bytes"] == 10 * 5 * 48 * 4
    assert Config.from_flat(read_toml(ten_rounds / "config.toml")) == config()


def test_the_model_file_is_the_hashed_model(ten_rounds):
    arrays = load_file(ten_rounds / "model.safetensors")
    assert [arrays[name].shape for name in ("0.weight", "0.bias", "2.weight", "2.bias")] == [
        (64, 64),
        (64,),
        (10, 64),
        (10,),
    ]
    flat = np.concatenate(
        [arrays[name].ravel() for name in ("0.weight", "0.bias", "2.weight", "2.bias")]
    )
    summary = json.loads((ten_rounds / "summary.json").read_text())
    assert sha256(flat.astype("<f4").tobytes()).hexdigest() == summary["model-sha256"]


def test_the_same_configuration_gives_the_same_bits(ten_rounds, tmp_path):
    summary = run_inline(config(), tmp_path / "again")
    assert (
        summary["model-sha256"]
        == json.loads((ten_rounds / "summary.json").read_text())["model-sha256"]
    )
    other = run_inline(config(seed=1), tmp_path / "other")
    assert other["model-sha256"] != summary["model-sha256"]


@pytest.mark.parametrize("init", ["zero", "full"])
@pytest.mark.parametrize("compressor", ["top-k", "rand-k"])
def test_five_rounds_and_five_more_are_ten(tmp_path, compressor, init):
    whole = run_inline(config(compressor=compressor, init=init), tmp_path / "whole")
    run_inline(config(compressor=compressor, init=init, num_rounds=5), tmp_path / "halves")
    resumed = resume_inline(tmp_path / "halves", num_rounds=10)
    assert resumed["model-sha256"] == whole["model-sha256"]
    assert without_seconds(tmp_path / "halves") == without_seconds(tmp_path / "whole")
    assert {k: v for k, v in resumed.items() if k != "seconds"} == {
        k: v for k, v in whole.items() if k != "seconds"
    }


SCRIPT = """
import sys
from pathlib import Path
from fedef.config import Config, read_toml
from sims.inline_run import run_inline
def stop(line):
    print(line["round"], flush=True)
    if line["round"] == 7:
        sys.stdin.read()
run_inline(Config.from_flat(read_toml(sys.argv[1])), Path(sys.argv[2]), on_round=stop,
           checkpoint_every=5)
"""


def started(tmp_path: Path) -> subprocess.Popen:
    """A run in its own process that has done seven rounds and waits."""
    import tomli_w

    (tmp_path / "config.toml").write_text(tomli_w.dumps(config().to_flat()))
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "config.toml"), str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    for line in process.stdout:
        if line.strip() == "7":
            return process
    raise AssertionError("the run ended early")


def test_a_killed_run_goes_on_from_its_checkpoint(tmp_path, ten_rounds):
    """Killed in round 7, checkpoint of round 5: the same ten rounds, bit for bit."""
    process = started(tmp_path)
    process.kill()
    process.communicate()
    assert len(lines(tmp_path / "run")) == 7
    assert not (tmp_path / "run" / "summary.json").exists()
    resume_inline(tmp_path / "run")
    assert without_seconds(tmp_path / "run") == without_seconds(ten_rounds)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (
        ten_rounds / "model.safetensors"
    ).read_bytes()


def test_ctrl_c_leaves_a_valid_folder_that_goes_on(tmp_path, ten_rounds):
    process = started(tmp_path)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.communicate("", timeout=60)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert summary["rounds"] == 7
    resume_inline(tmp_path / "run")
    assert without_seconds(tmp_path / "run") == without_seconds(ten_rounds)


def test_a_line_that_a_kill_cut_off_is_dropped(tmp_path):
    run_inline(config(num_rounds=4), tmp_path / "run")
    with (tmp_path / "run" / "rounds.jsonl").open("a") as file:
        file.write('{"round": 5, "lo')
    resume_inline(tmp_path / "run", num_rounds=6)
    assert [line["round"] for line in lines(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("name", ["checkpoint.fdf", "config.toml", "rounds.jsonl"])
def test_a_damaged_folder_is_an_error_that_names_the_file(tmp_path, name):
    run_inline(config(num_rounds=3), tmp_path / "run")
    path = tmp_path / "run" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2] = b"\x00\xff"
    path.write_bytes(bytes(data))
    with pytest.raises(ConfigError, match=name):
        resume_inline(tmp_path / "run", num_rounds=6)


@pytest.mark.parametrize("name", ["checkpoint.fdf", "config.toml", "rounds.jsonl"])
def test_a_missing_file_is_an_error(tmp_path, name):
    run_inline(config(num_rounds=3), tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    with pytest.raises(ConfigError, match=name):
        resume_inline(tmp_path / "run", num_rounds=6)


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path):
    run_inline(config(num_rounds=3), tmp_path / "run")
    run_inline(config(num_rounds=3, seed=1), tmp_path / "other")
    stolen = (tmp_path / "other" / "checkpoint.fdf").read_bytes()
    (tmp_path / "run" / "checkpoint.fdf").write_bytes(stolen)
    with pytest.raises(ConfigError, match="another configuration"):
        resume_inline(tmp_path / "run", num_rounds=6)


LIBSVM = {"problem": "logistic", "num_clients": 3, "partitioner": "contiguous", "k": 1}
ROWS = "".join(f"{'+1' if row % 2 else '-1'} 1:{row / 9} 2:1\n" for row in range(9))
OTHER_DATA = {
    "one row less": ("\n".join(ROWS.splitlines()[1:]), "it had 3 clients with 9 .*3 with 8"),
    "another dimension": (ROWS.replace("2:1", "2:1 3:1"), "another initial point"),
}


@pytest.mark.parametrize("name", OTHER_DATA)
def test_a_run_does_not_go_on_with_other_data(tmp_path, name):
    """The configuration names a file, and somebody changes what is in it."""
    changed, message = OTHER_DATA[name]
    path = tmp_path / "data"
    path.write_text(ROWS)
    run_inline(config(num_rounds=3, data=str(path), **LIBSVM), tmp_path / "run")
    path.write_text(changed)
    with pytest.raises(ConfigError, match=message):
        resume_inline(tmp_path / "run", num_rounds=6)
    path.write_text(ROWS)
    assert resume_inline(tmp_path / "run", num_rounds=6)["rounds"] == 6


def test_a_horizon_cannot_be_moved(tmp_path):
    run_inline(config(num_rounds=3, schedule="horizon"), tmp_path / "run")
    with pytest.raises(ConfigError, match="schedule=horizon"):
        resume_inline(tmp_path / "run", num_rounds=6)


def test_a_run_cannot_be_resumed_to_fewer_rounds_than_are_done(tmp_path):
    run_inline(config(num_rounds=3), tmp_path / "run")
    before = (tmp_path / "run" / "config.toml").read_bytes()
    with pytest.raises(ConfigError, match="3 rounds are done, got 2"):
        resume_inline(tmp_path / "run", num_rounds=2)
    assert (tmp_path / "run" / "config.toml").read_bytes() == before


def test_a_finished_run_that_is_resumed_stays_as_it_is(tmp_path):
    first = run_inline(config(num_rounds=3), tmp_path / "run")
    assert resume_inline(tmp_path / "run") == first


def test_a_run_without_checkpoint_says_how_to_start_again(tmp_path):
    RunFolder.create(tmp_path / "run", config(), engine="flower")
    with pytest.raises(
        ConfigError, match=r"no checkpoint\.fdf.*start it again with --config .*run"
    ):
        resume_inline(tmp_path / "run")


def test_a_resumed_run_that_is_killed_leaves_no_result_of_the_first_part(tmp_path):
    run_inline(config(num_rounds=3), tmp_path / "run")

    def kill(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resume_inline(tmp_path / "run", num_rounds=6, on_round=kill)
    assert not (tmp_path / "run" / "summary.json").exists()
    assert resume_inline(tmp_path / "run")["rounds"] == 6


def test_a_folder_is_not_overwritten(tmp_path):
    run_inline(config(num_rounds=1), tmp_path / "run")
    before = (tmp_path / "run" / "rounds.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="already holds a run"):
        run_inline(config(num_rounds=1), tmp_path / "run")
    assert (tmp_path / "run" / "rounds.jsonl").read_bytes() == before


def test_a_diverging_run_ends_with_its_last_finite_model(tmp_path):
    summary = run_inline(
        config(method="ef21", schedule="constant", step_size=1e37, num_rounds=30), tmp_path / "run"
    )
    assert summary["status"] == "diverged"
    assert summary["final-loss"] is None
    assert np.isfinite(load_file(tmp_path / "run" / "model.safetensors")["0.weight"]).all()


def test_rounds_that_are_not_evaluated_are_null(tmp_path):
    run_inline(config(num_rounds=5, eval_every=2), tmp_path / "run")
    assert [line["loss"] is None for line in lines(tmp_path / "run")] == [
        True,
        False,
        True,
        False,
        True,
    ]
    assert all(line["train-loss"] is not None for line in lines(tmp_path / "run"))


@pytest.mark.slow
def test_digits_reach_the_accuracy_with_a_sixtieth_of_the_bytes():
    """||EF21||, top-k 1 %, Dirichlet 0.1, 200 rounds, seeds 0 to 4: mean accuracy >= 0.95."""
    accuracies = []
    for seed in range(5):
        experiment = Experiment.build(
            Config.from_flat(
                {
                    "problem": "digits-mlp",
                    "num-clients": 10,
                    "dirichlet-alpha": 0.1,
                    "method": "norm-ef21",
                    "compressor": "top-k",
                    "k-fraction": 0.01,
                    "schedule": "inv-sqrt",
                    "step-size": 1.0,
                    "num-rounds": 200,
                    "seed": seed,
                }
            )
        )
        engine = InlineEngine(experiment)
        for _ in range(200):
            engine.round()
        weights = np.array(experiment.weights) / sum(experiment.weights)
        evaluation = experiment.problem.evaluate(
            engine.server.x, weights=weights, buffers=engine.server.buffers
        )
        accuracies.append(evaluation.test_accuracy)
        assert engine.server.state.uplink_bytes <= 200 * 10 * 4810 * 4 / 60
    assert np.mean(accuracies) >= 0.95
