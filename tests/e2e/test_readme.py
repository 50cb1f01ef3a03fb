"""Every command and program of the README, as it stands there (slow: real processes)."""

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fedef.config import Config
from sims.flower_engine import flwr_run

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, flags=re.M | re.S)
COMMANDS = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
PROGRAMS = [text for kind, text in BLOCKS if kind == "python"]
DOOR, LOOP, LIBRARY, *APP = PROGRAMS
(SWEEP,) = [text for kind, text in BLOCKS if kind == "toml"]


def test_make_commands_are_those_that_ci_runs():
    """CI calls make itself: a test that called it would call itself."""
    called = (ROOT / ".ci" / "run").read_text()
    for command in COMMANDS:
        if command.startswith("make"):
            assert re.search(rf"^{command}\b", called, flags=re.M), command


def test_every_key_of_the_table_exists():
    keys = set(re.findall(r"`([a-z0-9-]+)`", README[README.index("| symbol |") :].split("\n\n")[0]))
    assert len(keys) > 12
    assert keys <= set(Config.from_flat({}).to_flat())


def test_the_table_of_results_is_the_file_that_the_picture_wrote():
    numbers = json.loads((ROOT / "docs" / "digits.json").read_text())
    for name, row in numbers.items():
        spelled = (
            f"| {name.replace('|', chr(92) + '|')} | {row['mean test accuracy']:.3f} "
            f"({row['lowest']:.3f} to {row['highest']:.3f}) | {row['uplink MB']:.3f} MB |"
        )
        assert spelled in README


def test_the_table_of_heterogeneity_is_the_file_that_the_report_wrote():
    with (ROOT / "docs" / "heterogeneity.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert {line["n"] for line in lines} == {"5"}
    for name in {line["series"] for line in lines}:
        cells = [
            f"{float(line['y']):.3f} ± {(float(line['high']) - float(line['low'])) / 2:.3f}"
            for line in lines
            if line["series"] == name
        ]
        assert f"| {name.replace('|', chr(92) + '|')} | {' | '.join(cells)} |" in README


NEEDS_DATA = "sims.ian_robustness"


@pytest.mark.slow
def test_the_commands_run(tmp_path):
    binaries = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    commands = [c for c in COMMANDS if not c.startswith("make") and NEEDS_DATA not in c]
    assert len(commands) >= 10
    (tmp_path / "alpha.toml").write_text(SWEEP)
    for command in commands:
        result = subprocess.run(
            shlex.split(command), cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"


@pytest.mark.slow
def test_the_command_that_needs_data_runs(tmp_path, data_dir):
    (command,) = [c for c in COMMANDS if NEEDS_DATA in c]
    command = command.replace("python", shlex.quote(sys.executable), 1)
    environment = {**os.environ, "FEDEF_DATA": str(data_dir)}
    done = subprocess.run(shlex.split(command), cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "robustness.json").read_text())["rows"]
    kept = json.loads((ROOT / "docs" / "ian_robustness.json").read_text())["rows"]
    assert [(row["rule"], row["diverged"]) for row in written] == [
        (row["rule"], row["diverged"]) for row in kept
    ]


@pytest.mark.parametrize("program", [DOOR, LOOP, LIBRARY], ids=["door", "loop", "library"])
def test_the_programs_run(program):
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_the_app_runs(tmp_path):
    """The three programs, saved under the names that the text gives them."""
    app = tmp_path / "app"
    app.mkdir()
    for name, program in zip(("task", "server_app", "client_app"), APP, strict=True):
        (app / f"{name}.py").write_text(program)
    config = {**Config.from_flat({"num-clients": 3, "k": 5}).to_flat()}
    import tomli_w

    project = {
        "project": {"name": "mine", "version": "0.1.0", "license": "Apache-2.0"},
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "me",
                    "components": {"serverapp": "server_app:app", "clientapp": "client_app:app"},
                    "config": config,
                }
            }
        },
    }
    (app / "pyproject.toml").write_text(tomli_w.dumps(project))
    log = tmp_path / "log"
    flwr_run(app, run_config={}, num_supernodes=3, log_path=log)
    assert "trained ['0.weight', '0.bias', '2.weight', '2.bias']" in log.read_text()
