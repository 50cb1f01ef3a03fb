"""The launcher runs a Flower app to a truthful end and leaves nothing behind."""

import os
import signal
import tomllib
import uuid
from pathlib import Path

import pytest

from fedef.config import Config
from fedef.errors import FedefError
from sims import flower_engine
from sims.flower_engine import flwr_run, write_app
from sims.flower_run import _with_absolute_paths

NODES = 3
SERVER = """
import os
import time
from pathlib import Path

from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    if context.run_config["fail"]:
        raise ValueError("the toy server fails on purpose")
    while len(nodes := sorted(grid.get_node_ids())) < context.run_config["nodes"]:
        time.sleep(0.1)
    asked = [Message(RecordDict(), node, "query.partition") for node in nodes]
    replies = list(grid.send_and_receive(asked, timeout=60))
    seen = sorted(reply.content["facts"]["partition"] for reply in replies)
    threads = {reply.content["facts"]["threads"] for reply in replies}
    out = context.run_config["out"]
    if out:
        Path(out).write_text(f"{seen} {threads} {os.environ['FEDEF_TEST_RUN']}")
"""
CLIENT = """
import os

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query("partition")
def partition(message, context):
    partition = int(context.node_config["partition-id"])
    facts = {"partition": partition, "threads": os.environ["OMP_NUM_THREADS"]}
    return Message(RecordDict({"facts": ConfigRecord(facts)}), reply_to=message)
"""
PROJECT = f"""
[project]
name = "toy"
version = "0.1.0"
[tool.flwr.app]
publisher = "fedef"
[tool.flwr.app.components]
serverapp = "toy_server:app"
clientapp = "toy_client:app"
[tool.flwr.app.config]
nodes = {NODES}
fail = false
out = ""
"""


@pytest.fixture
def toy(tmp_path):
    app = tmp_path / "toy"
    app.mkdir()
    (app / "pyproject.toml").write_text(PROJECT)
    (app / "toy_server.py").write_text(SERVER)
    (app / "toy_client.py").write_text(CLIENT)
    return app


class Watcher:
    """Sees, by a variable that only this test's processes inherit, what is running and where."""

    def __init__(self, mark):
        self._mark = f"FEDEF_TEST_RUN={mark}".encode()
        self.ticks, self.homes, self.programs = 0, set(), set()

    def running(self):
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                variables = (entry / "environ").read_bytes().split(b"\0")
                if self._mark in variables:
                    found[entry.name] = (entry / "cmdline").read_bytes().decode()
                    self.homes |= {
                        v.decode()[10:] for v in variables if v.startswith(b"FLWR_HOME=")
                    }
            except OSError:
                continue
        return found

    def tick(self):
        self.ticks += 1
        self.programs |= {
            Path(word).name for c in self.running().values() for word in c.split("\0")
        }

    def assert_nothing_left(self):
        assert self.homes, "the watcher saw no process at all"
        assert self.running() == {}
        assert [home for home in self.homes if Path(home).exists()] == []


@pytest.fixture
def watcher(monkeypatch):
    mark = uuid.uuid4().hex
    monkeypatch.setenv("FEDEF_TEST_RUN", mark)
    return Watcher(mark)


@pytest.mark.slow
def test_a_run_completes_and_leaves_nothing(toy, watcher, tmp_path, capfd):
    out = tmp_path / "out.txt"
    flwr_run(
        toy,
        run_config={"out": str(out)},
        num_supernodes=NODES,
        log_path=tmp_path / "log" / "flower.log",
        result_path=out,
        on_tick=watcher.tick,
    )
    assert out.read_text() == f"[0, 1, 2] {{'1'}} {os.environ['FEDEF_TEST_RUN']}"
    assert watcher.ticks > 10
    assert {"flower-superlink", "flwr-simulation", "raylet"} <= watcher.programs
    watcher.assert_nothing_left()
    assert "Starting Flower Simulation" in (tmp_path / "log" / "flower.log").read_text()
    assert capfd.readouterr() == ("", "")
    assert sorted(path.name for path in toy.iterdir()) == [
        "pyproject.toml",
        "toy_client.py",
        "toy_server.py",
    ]
    assert (toy / "pyproject.toml").read_text() == PROJECT


@pytest.mark.slow
def test_a_server_that_raises_is_quoted(toy, watcher, tmp_path):
    with pytest.raises(FedefError, match="ValueError: the toy server fails on purpose") as caught:
        flwr_run(
            toy,
            run_config={"fail": True},
            num_supernodes=NODES,
            log_path=tmp_path / "log",
            on_tick=watcher.tick,
        )
    assert str(tmp_path / "log") in str(caught.value)
    watcher.assert_nothing_left()


@pytest.fixture
def heard_ctrl_c():
    """A job that a shell started in the background ignores SIGINT; a terminal's does not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("heard_ctrl_c")
@pytest.mark.parametrize(
    ("number", "raised", "as_soon_as_runs"),
    [
        (signal.SIGINT, KeyboardInterrupt, "flower-superexec"),
        (signal.SIGTERM, SystemExit, "raylet"),
    ],
)
def test_an_interrupted_run_leaves_nothing(toy, watcher, tmp_path, number, raised, as_soon_as_runs):
    def interrupt():
        watcher.tick()
        if as_soon_as_runs in watcher.programs:
            os.kill(os.getpid(), number)

    handler = signal.getsignal(number)
    with pytest.raises(raised):
        flwr_run(
            toy,
            run_config={},
            num_supernodes=NODES,
            log_path=tmp_path / "log",
            on_tick=interrupt,
        )
    watcher.assert_nothing_left()
    assert signal.getsignal(number) is handler


def test_a_run_that_takes_too_long_is_stopped(toy, watcher, tmp_path):
    with pytest.raises(FedefError, match="time limit"):
        flwr_run(
            toy,
            run_config={},
            num_supernodes=NODES,
            log_path=tmp_path / "log",
            on_tick=watcher.tick,
            timeout_seconds=0.5,
        )
    watcher.assert_nothing_left()


def test_an_app_that_is_not_one_is_refused(tmp_path, watcher):
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "1"\n')
    with pytest.raises(FedefError, match=r"(?s)flwr run exited with .*Missing .tool.flwr.app"):
        flwr_run(
            tmp_path,
            run_config={},
            num_supernodes=NODES,
            log_path=tmp_path / "log",
            on_tick=watcher.tick,
        )
    watcher.assert_nothing_left()


def test_a_stale_result_file_does_not_count(monkeypatch, tmp_path):
    class RunThatWritesNothing:
        def __init__(self, *_):
            pass

        start_superlink = stream = check_status = lambda self, *_: None

    monkeypatch.setattr(flower_engine, "FlowerRun", RunThatWritesNothing)
    result = tmp_path / "summary.json"
    result.write_text("of an earlier run")
    with pytest.raises(FedefError, match=r"did not write .*summary\.json"):
        flwr_run(
            tmp_path,
            run_config={},
            num_supernodes=NODES,
            log_path=tmp_path / "log",
            result_path=result,
        )


def test_written_app_has_the_given_defaults_and_no_code(tmp_path):
    config = {"method": "ef21", "k": "", "step-size": 0.5, "num-rounds": 3}
    app = write_app(tmp_path / "app", config)
    assert [path.name for path in app.iterdir()] == ["pyproject.toml"]
    flwr = tomllib.loads((app / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert flwr["config"] == config
    assert flwr["components"] == {"serverapp": "strategies.app:app", "clientapp": "clients.app:app"}


def test_files_are_found_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDEF_DATA", "data")
    Path("mine.txt").touch()
    config = _with_absolute_paths(Config.from_flat({"data": "mine.txt", "instance": "a.npz"}))
    assert config.data == str(tmp_path / "mine.txt")
    assert config.instance == str(tmp_path / "a.npz")
    assert config.data_dir == str(tmp_path / "data")


def test_a_file_named_like_an_embedded_set_does_not_replace_it(tmp_path, monkeypatch):
    """Inline the embedded set goes first, so it does on Flower."""
    monkeypatch.chdir(tmp_path)
    Path("breast_cancer").touch()
    config = Config.from_flat({"problem": "logistic", "data": "breast_cancer"})
    assert _with_absolute_paths(config) == config
