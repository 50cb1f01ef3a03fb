"""The Ray engine gives the inline engine's bits: with any workers, killed ones, half runs."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from ray_case import SETTINGS

import sims.processes
import sims.ray_engine
import sims.ray_orders
from fedef.config import Config
from fedef.errors import ConfigError, FedefError
from fedef.experiment import Experiment
from sims.engine import InlineEngine
from sims.inline_run import resume_inline, run_inline
from sims.processes import processes_of
from sims.ray_engine import RaySettings
from sims.run_loop import resume_run, start_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def one_ray():
    """One local cluster for all tests here: it takes seconds to start."""
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers have no tests
    yield
    ray.shutdown()


def config(**changes) -> Config:
    return Config.from_flat({**SETTINGS, **{k.replace("_", "-"): v for k, v in changes.items()}})


def contents(folder: Path) -> tuple[list[dict], dict, bytes]:
    """All that a run leaves, without times and the engine's name."""
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    for each in (*lines, summary):
        del each["seconds"]
    del summary["engine"]
    return lines, summary, (folder / "model.safetensors").read_bytes()


def run_ray(configuration, out, *, workers=2, **options):
    settings = RaySettings(workers=workers)
    return start_run(configuration, out, open_engine=settings.open, name="ray", **options)


@pytest.mark.parametrize(
    ("workers", "changes"),
    [
        (1, {}),
        (2, {"participation": 1.0, "local_batch_size": 0, "init": "full"}),
        (3, {"compressor": "rand-k"}),
        (2, {"problem": "digits-mlp", "partitioner": "dirichlet", "k": 48, "num_clients": 7}),
    ],
    ids=["one", "two, all clients, all rows", "three, rand-k", "digits, momentum"],
)
def test_the_bits_are_those_of_inline(tmp_path, workers, changes):
    run_inline(config(**changes), tmp_path / "inline")
    run_ray(config(**changes), tmp_path / "ray", workers=workers)
    assert contents(tmp_path / "ray") == contents(tmp_path / "inline")


def test_workers_without_a_line_are_called_and_give_the_same_bits(tmp_path, monkeypatch):
    """As those on other machines: here no socket can be made, its path is too long."""
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    run_inline(config(), tmp_path / "inline")
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with RaySettings(workers=2).open(Experiment.build(config()), None) as engine:
        assert not any(worker in engine._lines for worker in range(2))
    run_ray(config(), tmp_path / "ray")
    assert contents(tmp_path / "ray") == contents(tmp_path / "inline")


def test_workers_of_this_machine_have_a_line():
    with RaySettings(workers=2).open(Experiment.build(config()), None) as engine:
        assert all(worker in engine._lines for worker in range(2))
        for process in engine.processes.values():
            os.kill(process, signal.SIGKILL)
        engine.round()
        assert all(worker in engine._lines for worker in engine._actors)  # the new ones, too


def test_either_engine_goes_on_with_the_others_run(tmp_path):
    run_inline(config(), tmp_path / "whole")
    run_ray(config(num_rounds=5), tmp_path / "ray first")
    resume_inline(tmp_path / "ray first", num_rounds=10)
    run_inline(config(num_rounds=5), tmp_path / "inline first")
    resume_run(
        tmp_path / "inline first",
        open_engine=RaySettings(workers=2).open,
        name="ray",
        num_rounds=10,
    )
    assert contents(tmp_path / "ray first") == contents(tmp_path / "whole")
    assert contents(tmp_path / "inline first") == contents(tmp_path / "whole")


def disturbed(experiment, before_work):
    """The experiment, with something that happens before each gradient."""

    class Disturbed:
        def __getattr__(self, name):
            return getattr(experiment.problem, name)

        def local(self, client, *arguments, **options):
            before_work(client)
            return experiment.problem.local(client, *arguments, **options)

    return replace(experiment, problem=Disturbed())


def dying_build(deaths: Path):
    """An experiment whose client 2 kills its process when a file in the folder says so."""

    def build(configuration):
        def fatal(client):
            for order in deaths.iterdir() if client == 2 else ():
                order.unlink()
                os.kill(os.getpid(), signal.SIGKILL)

        return disturbed(Experiment.build(configuration), fatal)

    return build


@pytest.mark.parametrize("saved", [0, 3], ids=["no checkpoint", "checkpoint of round 3"])
def test_a_worker_that_is_killed_within_a_round_changes_no_bit(tmp_path, monkeypatch, saved):
    """Client 2's process dies by SIGKILL while it works, in round 5.

    Models go by way of the object store at once, or for a repetition alone.
    """
    module, limit = (
        (sims.ray_engine, "WITH_THE_CALL_BYTES") if saved else (sims.ray_orders, "HELD_BYTES")
    )
    monkeypatch.setattr(module, limit, 0)
    (tmp_path / "deaths").mkdir()
    run_inline(config(participation=1.0), tmp_path / "inline")

    def disturb(line):
        if line["round"] == 4:
            (tmp_path / "deaths" / "now").touch()

    settings = RaySettings(workers=2, build=dying_build(tmp_path / "deaths"))
    start_run(
        config(participation=1.0),
        tmp_path / "ray",
        open_engine=settings.open,
        name="ray",
        on_round=disturb,
        checkpoint_every=saved,
    )
    assert not list((tmp_path / "deaths").iterdir())
    assert contents(tmp_path / "ray") == contents(tmp_path / "inline")


def test_workers_that_are_killed_between_rounds_come_back(caplog):
    inline = InlineEngine(Experiment.build(config()))
    with RaySettings(workers=2).open(Experiment.build(config()), None) as engine:
        for round in range(6):
            if round in (2, 4):
                for process in engine.processes.values():
                    os.kill(process, signal.SIGKILL)
            inline.round(), engine.round()
        assert engine.server.x.tobytes() == inline.server.x.tobytes()
        states = dict(engine.client_arrays())
    expected = dict(inline.client_arrays())
    assert states.keys() == expected.keys()
    for client, arrays in expected.items():
        assert {n: a.tobytes() for n, a in states[client].items()} == {
            n: a.tobytes() for n, a in arrays.items()
        }
    assert "another one takes its place and does 2 rounds again" in caplog.text


def test_a_lost_worker_stops_the_run_where_that_is_wanted(tmp_path):
    (tmp_path / "deaths").mkdir()

    def disturb(line):
        if line["round"] == 4:
            (tmp_path / "deaths" / "now").touch()

    settings = RaySettings(workers=2, build=dying_build(tmp_path / "deaths"), recover=False)
    with pytest.raises(FedefError, match=r"worker \d was lost in round 5.*--resume"):
        start_run(
            config(participation=1.0),
            tmp_path / "run",
            open_engine=settings.open,
            name="ray",
            on_round=disturb,
            checkpoint_every=3,
        )
    resume_inline(tmp_path / "run")
    run_inline(config(participation=1.0), tmp_path / "whole")
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_a_worker_that_dies_again_and_again_stops_the_run(tmp_path):
    (tmp_path / "deaths").mkdir()
    for number in range(99):
        (tmp_path / "deaths" / str(number)).touch()
    experiment = Experiment.build(config(participation=1.0))
    settings = RaySettings(workers=1, build=dying_build(tmp_path / "deaths"))
    with (
        pytest.raises(FedefError, match="lost in round 1"),
        settings.open(experiment, None) as engine,
    ):
        engine.round()
    assert engine.server.round == 0


def failing_build(error: Exception):
    def build(configuration):
        def fail(client):
            raise error

        return disturbed(Experiment.build(configuration), fail)

    return build


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ConfigError("row 7 is damaged"), ConfigError, "^row 7 is damaged$"),
        (MemoryError("8 GiB"), FedefError, "worker 0 has not enough memory: 8 GiB"),
    ],
)
def test_an_error_in_a_worker_is_the_one_that_inline_would_raise(error, kind, text):
    settings = RaySettings(workers=1, build=failing_build(error))
    with (
        pytest.raises(kind, match=text),
        settings.open(Experiment.build(config()), None) as engine,
    ):
        engine.round()


def test_more_workers_than_fit_are_refused():
    with (
        pytest.raises(ConfigError, match="workers: 9 of them, 1 CPU and 0 GPU each"),
        RaySettings(workers=9).open(Experiment.build(config()), None),
    ):
        pass


def test_ctrl_c_ends_a_run_with_its_cluster_after_the_round(tmp_path, monkeypatch):
    """On the command line, with a cluster of its own; nothing of it stays behind."""
    monkeypatch.setattr(sims.processes, "HOME_VARIABLE", "FEDEF_TEST_HOME")  # Ray has its own
    options = ["run", "--engine", "ray", "--workers", "2", "--out", str(tmp_path / "run")]
    settings = [f"{key}={value}" for key, value in {**SETTINGS, "num-rounds": 10**6}.items()]
    process = subprocess.Popen(
        [sys.executable, "-m", "sims.cli", *options, *settings],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "FEDEF_TEST_HOME": str(tmp_path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    rounds = tmp_path / "run" / "rounds.jsonl"
    while process.poll() is None and not (rounds.exists() and rounds.stat().st_size):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    deadline = time.monotonic() + 30
    while processes_of(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not processes_of(tmp_path)
    wanted = summary["rounds"] + 2
    resumed = resume_inline(tmp_path / "run", num_rounds=wanted)
    whole = run_inline(config(num_rounds=wanted), tmp_path / "whole")
    assert resumed["model-sha256"] == whole["model-sha256"]


def test_a_cluster_without_room_says_so(monkeypatch):
    with RaySettings(workers=4).open(Experiment.build(config()), None):
        monkeypatch.setattr(sims.ray_engine, "PLACEMENT_SECONDS", 1.0)
        with (
            pytest.raises(FedefError, match="1 of 1 workers found no place"),
            RaySettings(workers=1).open(Experiment.build(config()), None),
        ):
            pass
