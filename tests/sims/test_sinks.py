"""Sinks: what was written is read back with the tools' own readers."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from fedef.config import Config
from fedef.errors import ConfigError
from sims import sinks
from sims.cli import app
from sims.inline_run import resume_inline, run_inline
from sims.sinks import MlFlow, Sinks, open_sinks

RUN = {"problem": "logistic", "data": "synthetic", "num-clients": 4, "partitioner": "iid"}


def config(**keys):
    return Config.from_flat({**RUN, **{k.replace("_", "-"): v for k, v in keys.items()}})


def lines_of(folder):
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def run_with(names, folder, **keys):
    told = open_sinks(names, folder, config(**keys))
    told.on_end(run_inline(config(**keys), folder, on_round=told.on_round))


def go_on_with(names, folder, **keys):
    told = open_sinks(names, folder, config(**keys))
    rounds = config(**keys).num_rounds
    told.on_end(resume_inline(folder, num_rounds=rounds, on_round=told.on_round))


def test_sinks_start_with_the_first_round_and_are_told_in_order():
    heard = []

    class Heard:
        def on_start(self, config):
            heard.append(("start", config.seed))

        def on_round(self, line):
            heard.append(("round", line["round"]))

        def on_end(self, summary):
            heard.append(("end", summary["status"]))

        def on_error(self, error):
            heard.append(("error", str(error)))

    told = Sinks(config(seed=3), [Heard()])
    assert heard == []
    told.on_round({"round": 1})
    told.on_round({"round": 2})
    told.on_end({"status": "completed"})
    assert heard == [("start", 3), ("round", 1), ("round", 2), ("end", "completed")]
    heard.clear()
    with pytest.raises(ConfigError), Sinks(config(), [Heard()]):
        raise ConfigError("before the run began")
    assert heard == []
    with pytest.raises(ConfigError), Sinks(config(), [Heard()]) as told:
        told.on_round({"round": 1})
        raise ConfigError("no more")
    assert heard == [("start", 0), ("round", 1), ("error", "no more")]


def test_tensorboard_reads_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_with(["tensorboard"], tmp_path / "run", num_rounds=3, eval_every=2)
    read = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    lines = lines_of(tmp_path / "run")
    losses = [(event.step, event.value) for event in read.Scalars("rounds/loss")]
    assert losses == [(2, np.float32(lines[1]["loss"]))]  # null in the other rounds
    sent = [event.value for event in read.Scalars("rounds/uplink-bytes")]
    assert sent == [line["uplink-bytes"] for line in lines]
    (text,) = read.Tensors("config")
    assert "num-clients = 4" in text.tensor_proto.string_val[0].decode()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    (final,) = read.Scalars("summary/final-loss")
    assert final.value == np.float32(summary["final-loss"])


def test_a_run_that_goes_on_has_each_step_once_in_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    run_with(["tensorboard"], folder, num_rounds=3)
    go_on_with(["tensorboard"], folder, num_rounds=5)
    read = EventAccumulator(str(folder / "tensorboard")).Reload()
    losses = [(event.step, event.value) for event in read.Scalars("rounds/loss")]
    assert losses == [(line["round"], np.float32(line["loss"])) for line in lines_of(folder)]
    assert len(losses) == 5


@pytest.mark.slow
def test_mlflow_reads_the_same_numbers_of_a_run_that_went_on(tmp_path):
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    folder = tmp_path / "run"
    run_with(["mlflow"], folder, num_rounds=2)
    go_on_with(["mlflow"], folder, num_rounds=4)
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("fedef")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [
        (line["round"], line["loss"]) for line in lines_of(folder)
    ]
    summary = json.loads((folder / "summary.json").read_text())
    assert run.data.metrics["summary-final-loss"] == summary["final-loss"]
    assert run.data.tags["model-sha256"] == summary["model-sha256"]
    assert run.data.params["num-clients"] == "4"
    assert (run.info.status, run.data.tags["status"]) == ("FINISHED", "completed")


@pytest.mark.slow
def test_mlflow_goes_on_after_a_kill_at_any_step(tmp_path, monkeypatch):
    """Made by half, broken off by an error, and resumed behind its last round."""
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    line = {"round": 1, "uplink-bytes": 10}
    for step in ("create_run", "log_batch"):
        with monkeypatch.context() as patched:
            patched.setattr(MlflowClient, step, killed)
            with pytest.raises(KeyboardInterrupt):
                Sinks(config(), [MlFlow(tmp_path)]).on_round(line)
    with pytest.raises(ConfigError), Sinks(config(), [MlFlow(tmp_path)]) as told:
        for number in (1, 2, 3):
            told.on_round({**line, "round": number})
        raise ConfigError("no client is left")
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")

    def only():
        (run,) = client.search_runs([client.get_experiment_by_name("fedef").experiment_id])
        return run

    assert (only().info.status, only().data.params["num-clients"]) == ("FAILED", "4")
    assert only().data.tags["error"] == "ConfigError: no client is left"
    told = Sinks(config(), [MlFlow(tmp_path)])
    for number in (2, 3, 4):
        told.on_round({**line, "round": number})
    assert only().info.status == "RUNNING"
    history = client.get_metric_history(only().info.run_id, "uplink-bytes")
    assert [metric.step for metric in history] == [1, 2, 3, 4]


def test_a_sink_without_its_package_is_one_line_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'fedef\[mlflow\]'"):
        open_sinks(["mlflow"], tmp_path / "run", config())
    with pytest.raises(ConfigError, match="no sink 'wandb'; one of tensorboard, mlflow"):
        open_sinks(["wandb"], tmp_path / "run", config())
    assert not (tmp_path / "run").exists()


def test_the_command_writes_into_the_runs_folder_and_nowhere_else(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    flat = [f"{key}={value}" for key, value in RUN.items()]
    options = ["--sink", "tensorboard", "--out", "run"]
    result = CliRunner().invoke(app, ["run", *flat, "num-rounds=2", *options])
    assert result.exit_code == 0, result.output
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1
