"""The guard for the generic package names."""

import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

import pytest

import fedef
from fedef import ensure_ours, guard
from fedef.errors import ConfigError

HOME = Path(fedef.__file__).resolve().parent.parent


def test_our_own_packages_pass():
    ensure_ours()
    assert guard.PACKAGES == ("fedef", "clients", "strategies", "sims")


def started_with(first_on_path, cwd):
    """What `ensure_ours` says in a fresh interpreter whose path starts with these folders."""
    path = os.pathsep.join(map(str, [*first_on_path, HOME]))
    command = [sys.executable, "-c", "import fedef; fedef.ensure_ours(); print('passed')"]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )


@pytest.mark.parametrize("name", ["clients", "strategies", "sims"])
def test_a_foreign_package_first_on_the_path_is_named(tmp_path, name):
    foreign = tmp_path / "foreign"
    (foreign / name).mkdir(parents=True)
    (foreign / name / "__init__.py").write_text("raise SystemExit('foreign code ran')\n")
    run = started_with([foreign], tmp_path)
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("fedef.errors.ConfigError: package ")
    assert f"package {name!r} resolves to {foreign / name}, expected {HOME / name}; " in last
    assert "use an environment of its own for fedef" in last


def test_a_foreign_package_in_the_working_directory_is_named(tmp_path):
    (tmp_path / "clients").mkdir()
    (tmp_path / "clients" / "__init__.py").write_text("")
    run = started_with([], tmp_path)
    assert run.returncode == 1
    assert f"resolves to {tmp_path / 'clients'}, expected" in run.stderr


def test_a_mere_folder_of_that_name_does_no_harm(tmp_path):
    (tmp_path / "clients").mkdir()
    (tmp_path / "clients" / "notes.txt").write_text("")
    run = started_with([tmp_path], tmp_path)
    assert (run.returncode, run.stdout) == (0, "passed\n"), run.stderr


@pytest.mark.parametrize("spec", [None, ModuleSpec("sims", None, origin=None)])
def test_a_missing_package_is_named(monkeypatch, spec):
    monkeypatch.setattr(guard, "find_spec", lambda n: spec if n == "sims" else find_spec(n))
    with pytest.raises(ConfigError, match="package 'sims' resolves to nothing, expected"):
        ensure_ours()
