"""The command line as a user meets it, bad input included."""

import json
import subprocess
import sys

import numpy as np
import pytest

from fedef.run_folder import RunFolder
from sims import cli
from sims.run_command import EXIT_DIVERGED

FAST = ["problem=logistic", "data=synthetic", "num-clients=4", "partitioner=iid", "num-rounds=3"]


def fedef(*arguments: str, cwd=None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "sims.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
        check=False,
    )


@pytest.fixture
def called(monkeypatch, capfd):
    """Call the command line in this process; returns exit status and standard error."""

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["fedef", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return int(exit_.value.code or 0), capfd.readouterr().err

    return call


def test_a_run_prints_its_result_and_leaves_a_folder(tmp_path):
    result = fedef("run", *FAST, "--out", str(tmp_path / "run"))
    assert result.returncode == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["model-sha256"] in result.stdout
    assert "completed" in result.stdout
    more = fedef("run", "--resume", str(tmp_path / "run"), "num-rounds=5")
    assert more.returncode == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["rounds"] == 5


def test_the_folder_of_data_may_be_an_option(tmp_path, called):
    np.savez(tmp_path / "own.npz", x_train=np.eye(8), y_train=np.arange(8) % 2)
    settings = ["problem=image-softmax", "data=own.npz", "num-clients=2", "num-rounds=1"]
    dealt = [*settings, "partitioner=iid"]
    assert called("run", *dealt, "--data-dir", tmp_path, "--out", tmp_path / "run")[0] == 0
    _, config = RunFolder.open(tmp_path / "run")
    assert config.data_dir == str(tmp_path)
    status, message = called("run", *dealt, "data-dir=here", "--data-dir", tmp_path)
    assert status == 1
    assert "data-dir: given twice, as 'here' and --data-dir" in message


def test_settings_come_from_a_file_and_the_line_goes_before_it(tmp_path, called):
    (tmp_path / "my.toml").write_text('problem = "polynomial"\nnum-clients = 1\nnum-rounds = 9\n')
    status, _ = called(
        "run", "--config", tmp_path / "my.toml", "num-rounds=2", "--out", tmp_path / "run"
    )
    assert status == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["problem"], summary["rounds"]) == ("polynomial", 2)


def test_without_out_a_new_folder_is_made_each_time(tmp_path, called, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert called("run", *FAST)[0] == 0
    assert called("run", *FAST)[0] == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2


BAD = {
    "an unknown key": (["stepsize=1"], "unknown key 'stepsize'; did you mean 'step-size'?"),
    "an unknown method": (["method=ef22"], "method: input should be 'ef21'"),
    "no assignment": (["method"], "expected key=value, got 'method'"),
    "k = 0": (["k=0"], "k: input should be greater than or equal to 1, got 0"),
    "k > d": ([*FAST, "k=11"], "k must be in [1, d=10], got 11; use compressor=identity"),
    "a NaN step": (["step-size=nan"], "step-size: input should be a finite number, got nan"),
    "a negative step": (["step-size=-1"], "step-size: input should be greater than 0, got -1"),
    "a missing data file": (["problem=logistic", "data=nowhere.txt"], "nowhere.txt"),
    "a missing instance": ([*FAST, "instance=nowhere.npz"], "nowhere.npz"),
    "a missing point": ([*FAST, "initial-point=nowhere.npz"], "nowhere.npz"),
    "a missing config": (["--config", "nowhere.toml"], "nowhere.toml"),
    "more clients than samples": (["problem=digits-mlp", "num-clients=5000"], "5000"),
    "an unknown engine": (["--engine", "outboard"], "engine: must be inline, ray or flower"),
    "no folder to resume": (["--resume", "nowhere"], "resume: 'nowhere' holds no run"),
    "a changed resume": (["--resume", "nowhere", "seed=1"], "only num-rounds= may be given"),
    "a key twice": (["k=1", "seed=0", "k=2"], "k: given twice, as 1 and '2'; keep one"),
    "true for a number": (["k=true"], "k: takes no true or false, got True"),
    "what looks like markup": (["[/foo]=1"], "unknown key '[/foo]'; see 'fedef keys'"),
    "a value like markup": (["method=[red]"], "got '[red]'"),
    "a file as folder": ([*FAST, "--out", "file"], "out: cannot write to 'file': File exists"),
    "a file as folder, on Flower": (
        [*FAST, "--out", "file", "--engine", "flower"],
        "file': File exists; choose another folder",
    ),
    "a theory that is unknown": (["schedule=theory"], "constants of problem=digits-mlp are"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_with_the_way_out(name, called, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    settings, expected = BAD[name]
    status, error = called("run", *settings)
    assert status == 1
    message = [line for line in error.splitlines() if line.startswith("error")]
    assert len(message) == 1
    assert expected in message[0]
    assert "Traceback" not in error
    assert not (tmp_path / "runs").exists()


def test_a_full_disk_is_one_line(called, tmp_path, monkeypatch):
    def full(self, line):
        raise OSError(28, "No space left on device", str(self.rounds_path))

    monkeypatch.setattr(RunFolder, "append_round", full)
    status, error = called("run", *FAST, "--out", tmp_path / "run")
    assert status == 1
    assert "error [Errno 28] No space left on device" in error
    assert "Traceback" not in error


def test_a_corrupt_resume_folder(called, tmp_path):
    assert called("run", *FAST, "--out", tmp_path / "run")[0] == 0
    (tmp_path / "run" / "checkpoint.fdf").write_bytes(b"FDFSTATE, but not really")
    status, error = called("run", "--resume", tmp_path / "run", "num-rounds=9")
    assert status == 1
    assert "checkpoint.fdf" in error
    assert "corrupt" in error


def test_a_diverged_run_ends_non_zero(called, tmp_path):
    np.savez(tmp_path / "far.npz", x0=np.full(10, 1e200))
    status, _ = called(
        "run",
        *FAST,
        "method=ef21",
        "schedule=constant",
        "step-size=1e308",
        f"initial-point={tmp_path / 'far.npz'}",
        "--out",
        tmp_path / "run",
    )
    assert status == EXIT_DIVERGED
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "diverged"


def test_keys_are_all_listed(capfd, called):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fedef", "keys"])
        with pytest.raises(SystemExit):
            cli.main()
    printed = capfd.readouterr().out
    from fedef.config import known_keys
    from fedef.service import Service

    for key in (*known_keys(), *Service.known_keys()):
        assert key in printed


def test_theory_prints_the_steps_of_the_theorems(called, capfd):
    status = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys, "argv", ["fedef", "theory", "problem=polynomial", "num-clients=1", "k=1"]
        )
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        status = exit_.value.code or 0
    printed = capfd.readouterr().out
    assert status == 0
    assert "0.0061655" in printed
    assert "0.0372351" in printed
