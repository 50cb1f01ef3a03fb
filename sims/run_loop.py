"""A whole run on any engine, with its folder: start, resume, interrupt."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

from fedef.config import Config
from fedef.experiment import Experiment
from fedef.recorder import Line, Recorder
from fedef.resume import cut_back, longer
from fedef.run_folder import RunFolder
from fedef.server_session import Diverged
from fedef.threads import single_threaded
from sims.checkpoint import save_checkpoint
from sims.engine import Engine
from sims.memory import Forecast, available_bytes, build_measured, forecast, require_memory

OnRound = Callable[[Line], None]
OnForecast = Callable[[Forecast], None]
OpenEngine = Callable[[Experiment, Path | None], AbstractContextManager[Engine]]
"""Makes an engine, at the start or at the checkpoint of that path, and closes it again."""


def ignore(news: Line | Forecast) -> None:
    """Do nothing with a line or a forecast."""


def start_run(
    config: Config,
    out: Path,
    *,
    open_engine: OpenEngine,
    name: str,
    on_round: OnRound = ignore,
    on_forecast: OnForecast = ignore,
    checkpoint_every: int = 50,
    keep_state: bool = True,
    workers: int = 0,
) -> Line:
    """Run a configuration from its start and return its summary.

    Parameters
    ----------
    config
        What to run.
    out
        The run's folder; must not hold a run yet.
    open_engine, name
        The engine, and what the folder calls it.
    on_round
        Called with each line of rounds.jsonl.
    on_forecast
        Called with the memory that the run will need, before it is refused or begins.
    checkpoint_every
        Rounds between checkpoints; there is always one at the end. 0: only there.
    keep_state
        Whether to leave checkpoints and the model; without them nobody can resume the run.
    workers
        Processes of the engine on this machine that each hold the data, for the forecast.

    Raises
    ------
    ConfigError
        If the configuration or the folder cannot be used, or the run does not fit into memory.
    """
    with single_threaded():
        experiment = _foreseen(config, on_forecast, workers=workers, checkpoints=keep_state)
        folder = RunFolder.create(out, config, engine=name)
        with open_engine(experiment, None) as engine:
            return _run(
                engine,
                folder,
                name,
                on_round=on_round,
                checkpoint_every=checkpoint_every,
                keep_state=keep_state,
            )


def resume_run(
    out: Path,
    *,
    open_engine: OpenEngine,
    name: str,
    num_rounds: int | None = None,
    on_round: OnRound = ignore,
    on_forecast: OnForecast = ignore,
    checkpoint_every: int = 50,
    workers: int = 0,
) -> Line:
    """Go on with a run from its last checkpoint, in the same folder; the same bits as unbroken.

    The run may have been another engine's. `num_rounds`: go on up to another number of rounds
    than configured.

    Raises
    ------
    ConfigError
        If the folder or its checkpoint is missing, corrupt or of another configuration, more
        rounds are done than wanted, or the schedule depends on their number and that was changed.
    """
    folder, config = RunFolder.open(out)
    with single_threaded():
        config = longer(config, num_rounds or config.num_rounds)
        folder.require_checkpoint()
        experiment = _foreseen(config, on_forecast, workers=workers, checkpoints=True)
        with open_engine(experiment, folder.checkpoint_path) as engine:
            cut_back(folder, config, engine.server.round)
            return _run(engine, folder, name, on_round=on_round, checkpoint_every=checkpoint_every)


def _run(
    engine: Engine,
    folder: RunFolder,
    name: str,
    *,
    on_round: OnRound,
    checkpoint_every: int,
    keep_state: bool = True,
) -> Line:
    recorder = Recorder(engine.experiment, folder, engine=name)
    status = "completed"
    with _interruptible() as interrupted:
        while recorder.stopped_by(engine.server) is None:
            if interrupted():
                status = "interrupted"
                break
            recorder.round_began()
            try:
                report = engine.round()
            except Diverged:
                status = "diverged"
                break
            on_round(recorder.round_ended(report, engine.server))
            if keep_state and checkpoint_every and report.round % checkpoint_every == 0:
                _save(folder, engine)
        if keep_state:
            _save(folder, engine)
        return recorder.finish(engine.server, status=status, keep_model=keep_state)


def _foreseen(
    config: Config, on_forecast: OnForecast, *, workers: int, checkpoints: bool
) -> Experiment:
    """Build the experiment, unless a run of it would not fit."""
    experiment, worker_bytes = build_measured(config)
    told = forecast(experiment, workers=workers, worker_bytes=worker_bytes, checkpoints=checkpoints)
    on_forecast(told)
    require_memory(told, available_bytes())
    return experiment


def _save(folder: RunFolder, engine: Engine) -> None:
    """Write a checkpoint; first the metrics that it counts on, should the power fail."""
    folder.sync_rounds()
    save_checkpoint(folder.checkpoint_path, engine)
    engine.saved(folder.checkpoint_path)


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a flag, so that a round is whole; the second one raises."""
    asked: list[int] = []
    if current_thread() is not main_thread():
        yield lambda: False
        return

    def ask(signum: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(signum)

    previous = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, previous)
