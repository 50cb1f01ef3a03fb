"""One run of a sweep: a folder that is whole or not there, whatever becomes of the run."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from fedef.config import Config
from fedef.durable import sync_folder, write_atomically
from fedef.run_folder import RunFolder
from sims import inline_run
from sims.sweeps.plan import Value

FAILURE, TIMING = "failure.json", "timing.json"


def run_into(flat: Mapping[str, Value], folder: Path) -> None:
    """Run a configuration; its folder appears in one step, after the run has ended.

    A run that raises leaves ``failure.json`` beside what it wrote; the folder of such a run is
    replaced.

    Raises
    ------
    KeyboardInterrupt
        If the run was interrupted; nothing is left of it then.
    """
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    failed = folder.with_name(f".{folder.name}.{os.getpid()}.failed.part")
    shutil.rmtree(aside, ignore_errors=True)
    began = time.perf_counter()
    try:
        status = _status(flat, aside)
        if status == "interrupted":
            raise KeyboardInterrupt
        timing = {"wall-seconds": round(time.perf_counter() - began, 6)}
        RunFolder(aside).sync_rounds()
        write_atomically(aside / TIMING, json.dumps(timing).encode())
        if (folder / FAILURE).exists():
            folder.rename(failed)
        if not folder.exists():
            aside.rename(folder)
        sync_folder(folder.parent)
    finally:
        for leftover in (aside, failed):
            shutil.rmtree(leftover, ignore_errors=True)


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
        write_atomically(out / FAILURE, json.dumps(failure).encode())
        return "failed"
