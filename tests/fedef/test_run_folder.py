"""A run's folder: complete, append-only, never overwritten, without names of people or machines."""

import json
import os
import platform
import socket

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedef.config import Config
from fedef.errors import ConfigError
from fedef.run_folder import RunFolder, environment

CONFIG = Config.from_flat({"k": 3, "data-dir": 'a "quoted" \\ path\n', "step-size": 0.1})


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "runs" / "one", CONFIG, engine="inline")


def names(path):
    return sorted(file.name for file in path.iterdir())


def test_a_new_folder_holds_configuration_environment_and_no_rounds(folder):
    assert names(folder.path) == ["config.toml", "environment.json", "rounds.jsonl"]
    opened, config = RunFolder.open(folder.path)
    assert opened.path == folder.path
    assert config == CONFIG
    assert list(folder.rounds()) == []
    assert json.loads((folder.path / "environment.json").read_text())["engine"] == "inline"


def test_a_run_is_never_overwritten(folder):
    before = folder.config_path.read_bytes()
    with pytest.raises(ConfigError, match=r"out: '.*one' already holds a run; choose another"):
        RunFolder.create(folder.path, Config.from_flat({}), engine="inline")
    assert folder.config_path.read_bytes() == before


def test_metrics_without_a_configuration_are_not_appended_to(folder):
    write_rounds(folder, (1, 2))
    folder.config_path.unlink()
    with pytest.raises(ConfigError, match="already holds a run"):
        RunFolder.create(folder.path, CONFIG, engine="inline")
    assert list(folder.rounds()) == lines_of((1, 2))


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"out: cannot write to '.*file/run': Not a directory"):
        RunFolder.create(tmp_path / "file" / "run", CONFIG, engine="inline")


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"resume: '.*' holds no run \(no config.toml\)"):
        RunFolder.open(tmp_path)
    with pytest.raises(ConfigError, match=r"resume: '.*none' holds no run"):
        RunFolder.open(tmp_path / "none")


def test_the_configuration_can_be_replaced(folder):
    longer = Config.from_flat({**CONFIG.to_flat(), "num-rounds": 999})
    folder.write_config(longer)
    assert RunFolder.open(folder.path)[1] == longer
    assert names(folder.path) == ["config.toml", "environment.json", "rounds.jsonl"]


# --- rounds.jsonl --------------------------------------------------------------------------------


def lines_of(numbers):
    return [{"round": number, "loss": 1 / number, "note": "a\u2028b\né"} for number in numbers]


def write_rounds(folder, numbers):
    for line in lines_of(numbers):
        folder.append_round(line)


def test_rounds_come_back_one_line_each(folder):
    write_rounds(folder, range(1, 4))
    assert list(folder.rounds()) == lines_of(range(1, 4))
    assert folder.rounds_path.read_bytes().count(b"\n") == 3


def test_each_line_is_on_disk_when_append_returns(folder):
    for number in (1, 2):
        folder.append_round({"round": number})
        assert len(folder.rounds_path.read_bytes().splitlines()) == number


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_line_is_strict_json(folder, bad):
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.append_round({"round": 1, "loss": bad})
    assert folder.rounds_path.read_bytes() == b""
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.write_summary({"loss": bad})


def test_a_last_line_cut_anywhere_is_left_out(folder):
    write_rounds(folder, (1, 2, 3))
    data = folder.rounds_path.read_bytes()
    start = data.rindex(b"\n", 0, -1) + 1
    for length in range(start, len(data) - 1):
        folder.rounds_path.write_bytes(data[:length])
        assert list(folder.rounds()) == lines_of((1, 2))
    folder.rounds_path.write_bytes(data[:-1])  # Only the newline is missing.
    assert list(folder.rounds()) == lines_of((1, 2, 3))


@pytest.mark.parametrize("junk", [b"{", b"", b"{]}", b"\xff\xfe", b'{"round": 2, "x": "\xe9"}'])
@pytest.mark.parametrize("place", [1, 2, 3])
def test_another_damaged_line_is_named(folder, junk, place):
    write_rounds(folder, (1, 2, 3))
    lines = folder.rounds_path.read_bytes().splitlines()
    lines[place - 1] = junk
    folder.rounds_path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(ConfigError, match=rf"'.*rounds\.jsonl': line {place} is damaged"):
        list(folder.rounds())


def test_a_missing_file_is_named(folder):
    folder.rounds_path.unlink()
    with pytest.raises(ConfigError, match=r"'.*rounds\.jsonl': No such file"):
        list(folder.rounds())


def test_truncation_keeps_the_lines_before_the_checkpoint(folder):
    write_rounds(folder, (1, 2, 3))
    whole = folder.rounds_path.read_bytes()
    folder.truncate_rounds(3)
    assert folder.rounds_path.read_bytes() == whole
    folder.rounds_path.write_bytes(whole[:-4])
    folder.truncate_rounds(2)
    assert list(folder.rounds()) == lines_of((1, 2))
    folder.append_round(lines_of([3])[0])
    assert folder.rounds_path.read_bytes() == whole
    folder.truncate_rounds(0)
    assert folder.rounds_path.read_bytes() == b""


def test_truncation_misses_no_line(folder):
    write_rounds(folder, (1, 3))
    with pytest.raises(ConfigError, match=r"'.*rounds\.jsonl' holds 2 of the 3 rounds before"):
        folder.truncate_rounds(3)
    assert list(folder.rounds()) == lines_of((1, 3))


# --- result and environment ----------------------------------------------------------------------


def test_summary_and_model(folder):
    folder.write_summary({"rounds": 3})
    folder.write_summary({"rounds": 4})
    assert json.loads(folder.summary_path.read_text()) == {"rounds": 4}
    arrays = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3).T, "bias": np.array(1.5)}
    folder.write_model(arrays)
    back = load_file(folder.path / "model.safetensors")
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == array.dtype
    assert not [name for name in names(folder.path) if name.endswith(".part")]


def test_the_environment_tells_versions_but_no_host_user_or_path(tmp_path, monkeypatch):
    secrets = ("the-host", "the-user", "the-home")
    monkeypatch.setattr(platform, "node", lambda: "the-host")
    monkeypatch.setattr(
        platform, "uname", lambda: platform.uname_result("Linux", "the-host", "6", "1", "x86_64")
    )
    monkeypatch.setattr(socket, "gethostname", lambda: "the-host")
    for variable in ("USER", "LOGNAME", "USERNAME"):
        monkeypatch.setenv(variable, "the-user")
    monkeypatch.setenv("HOSTNAME", "the-host")
    monkeypatch.setenv("HOME", str(tmp_path / "the-home"))
    RunFolder.create(tmp_path / "run", CONFIG, engine="inline")
    text = (tmp_path / "run" / "environment.json").read_text()
    for secret in (*secrets, str(tmp_path), os.getcwd()):
        assert secret not in text
    assert "/" not in text
    told = json.loads(text)
    assert set(told) == {"engine", "python", "system", "machine", "cores", "packages"}
    assert told["packages"]["numpy"] == np.__version__
    assert told["packages"]["fedef"]


def test_a_package_that_is_not_installed_is_null(monkeypatch):
    monkeypatch.setattr("fedef.run_folder._PACKAGES", ("numpy", "surely-not-installed"))
    assert environment()["packages"] == {"numpy": np.__version__, "surely-not-installed": None}
