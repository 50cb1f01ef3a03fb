"""A whole run on Flower: ``flwr run`` on its Ray backend, watched from here."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedef.config import OUT_KEY, Config
from fedef.errors import FedefError
from fedef.experiment import Experiment
from fedef.image_data import HUGGING_FACE
from fedef.recorder import Line
from fedef.run_folder import RunFolder
from sims.flower_engine import flwr_run, write_app

OnRound = Callable[[Line], None]
_EMBEDDED = ("breast_cancer", "synthetic")  # names that go before files of the same name
_PATH_KEYS = ("data-dir", "instance", "initial-point")


def _ignore(line: Line) -> None:
    pass


def run_flower(
    config: Config,
    out: Path,
    *,
    on_round: OnRound = _ignore,
    launch: Callable[..., None] = flwr_run,
) -> Line:
    """Run a configuration on Flower and return its summary.

    `launch` is `flwr_run`, Flower's simulation, or another function of the same arguments.

    The ServerApp writes the same folder as the inline engine does; Flower's own output goes to
    ``flower.log`` in it. Everything that is started for the run is stopped with it.

    Raises
    ------
    ConfigError
        If the configuration or the folder cannot be used; nothing is started then.
    FedefError
        If the run failed.
    """
    config = _with_absolute_paths(config)
    experiment = Experiment.build(config)
    out = out.resolve()
    folder = RunFolder(out)
    folder.require_new()
    watcher = _Watcher(folder, on_round)
    flat = {**config.to_flat(), OUT_KEY: str(out)}
    with tempfile.TemporaryDirectory(prefix="fedef-app-") as app:
        launch(
            write_app(Path(app), flat),
            run_config=flat,
            num_supernodes=experiment.num_clients,
            log_path=out / "flower.log",
            result_path=folder.summary_path,
            on_tick=watcher.read,
        )
    watcher.read()
    summary: dict[str, Any] = json.loads(folder.summary_path.read_text(encoding="utf-8"))
    if summary["status"] == "completed" and summary["stopped-by"] is None:
        raise FedefError(
            f"the run ended after {summary['rounds']} of {config.num_rounds} rounds; "
            f"see {str(out / 'flower.log')!r}"
        )
    return summary


class _Watcher:
    """Follows rounds.jsonl while another process writes it."""

    def __init__(self, folder: RunFolder, on_round: OnRound) -> None:
        self._folder = folder
        self._on_round = on_round
        self._position = 0

    def read(self) -> None:
        """Report the lines that are new and whole."""
        if not self._folder.rounds_path.exists():
            return
        with self._folder.rounds_path.open(encoding="utf-8") as file:
            file.seek(self._position)
            while (line := file.readline()).endswith("\n"):
                self._position = file.tell()
                self._on_round(json.loads(line))


def _with_absolute_paths(config: Config) -> Config:
    """Flower's processes run in folders of their own."""
    flat = config.to_flat()
    for key in _PATH_KEYS:
        if flat[key]:
            flat[key] = str(Path(str(flat[key])).resolve())
    folder = os.environ.get("FEDEF_DATA")
    if folder and not Path(folder).is_absolute() and not flat["data-dir"]:
        flat["data-dir"] = str(Path(folder).resolve())
    if flat["data"] not in _EMBEDDED and Path(str(flat["data"])).is_file():
        flat["data"] = str(Path(str(flat["data"])).resolve())
    before, _, folder = str(flat["data"]).partition(HUGGING_FACE)
    if not before and Path(folder).is_dir():
        flat["data"] = HUGGING_FACE + str(Path(folder).resolve())
    return Config.from_flat(flat)
