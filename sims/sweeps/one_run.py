"""One run of a sweep: a folder that is whole or not there, whatever becomes of the run."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from functools import cache
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path

import fedef
from fedef.config import Config
from fedef.run_folder import RunFolder
from sims import inline_run
from sims.sweeps.plan import Value

FAILURE, TIMING = "failure.json", "timing.json"
RUN_PATH = (
    "checkpoint.py",
    "engine.py",
    "inline_run.py",
    "memory.py",
    "run_loop.py",
    "sweeps/one_run.py",
)
"""What a run executes of this package."""


def run_into(flat: Mapping[str, Value], folder: Path) -> None:
    """Run a configuration; its folder appears in one step, after the run has ended.

    A run that raises leaves ``failure.json`` beside what it wrote.

    Raises
    ------
    KeyboardInterrupt
        If the run was interrupted; nothing is left of it then.
    """
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(aside, ignore_errors=True)
    began = time.perf_counter()
    try:
        status = _status(flat, aside)
        if status == "interrupted":
            raise KeyboardInterrupt
        timing = {"wall-seconds": round(time.perf_counter() - began, 6)}
        (aside / TIMING).write_text(json.dumps(timing), encoding="utf-8")
        if not folder.exists():
            aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _status(flat: Mapping[str, Value], out: Path) -> str:
    config = Config.from_flat(flat)
    try:
        summary = inline_run.run_inline(config, out, keep_state=False)
        return str(summary["status"])
    except Exception as error:  # whatever it is, the sweep goes on and reports it
        if not out.exists():
            RunFolder.create(out, config, engine="inline")
        line = next(iter(str(error).strip().splitlines()[-1:]), "")
        failure = {"status": "failed", "error": f"{type(error).__name__}: {line}"}
        (out / FAILURE).write_text(json.dumps(failure), encoding="utf-8")
        return "failed"


def run_key(config: Config) -> str:
    """Name of a run's folder: 16 hex digits of a hash of the configuration and `code_version`."""
    text = json.dumps([config.to_flat(), code_version()], sort_keys=True)
    return blake2b(text.encode(), digest_size=8).hexdigest()


@cache
def code_version() -> str:
    """Hash of what decides a run's bits: the sources of fedef and of the engine, NumPy, torch."""
    digest = blake2b(digest_size=8)
    package, engine = Path(fedef.__file__).parent, Path(inline_run.__file__).parent
    sources = [*sorted(package.rglob("*.py")), *(engine / name for name in RUN_PATH)]
    for path in sources:
        name = path.relative_to(package.parent if package in path.parents else engine.parent)
        digest.update(f"{name.as_posix()}\n".encode() + path.read_bytes())
    digest.update(f"{version('numpy')} {version('torch')}".encode())
    return digest.hexdigest()
