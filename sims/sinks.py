"""Where else a run's numbers go: TensorBoard and MLflow, behind one small interface.

``fedef run --sink tensorboard --sink mlflow`` writes into the run's folder and nowhere else; no
server is asked::

    tensorboard --logdir runs/mine/tensorboard
    mlflow ui --backend-store-uri sqlite:///runs/mine/mlflow.db

A sink of one's own is any object with the methods of `Sink`, see `Sinks`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from fedef.config import Config
from fedef.errors import ConfigError
from fedef.recorder import Line


class Sink(Protocol):
    """What is told of a run as it goes; the rounds' lines are those of rounds.jsonl."""

    def on_start(self, config: Config) -> None:
        """The run's folder is there, and its first new round is done or it ended without one."""

    def on_round(self, line: Line) -> None:
        """A round ended."""

    def on_end(self, summary: Line) -> None:
        """The run ended, see summary.json; not called when it was killed."""

    def on_error(self, error: BaseException) -> None:
        """The run was broken off by an error or a second Ctrl-C, in place of `on_end`."""


class Sinks:
    """Several sinks as one, which starts when the run has got its folder.

    Around a run it is a context manager, which tells the sinks that have started of an error.
    """

    def __init__(self, config: Config, sinks: Sequence[Sink]) -> None:
        self._config = config
        self._sinks = sinks
        self._started = False

    def __enter__(self) -> Self:
        """Begin to look out for errors."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Tell all of an error."""
        if error is not None and self._started:
            for sink in self._sinks:
                sink.on_error(error)

    def on_round(self, line: Line) -> None:
        """Tell all of a round."""
        self._start()
        for sink in self._sinks:
            sink.on_round(line)

    def on_end(self, summary: Line) -> None:
        """Tell all of the end."""
        self._start()
        for sink in self._sinks:
            sink.on_end(summary)

    def _start(self) -> None:
        if not self._started:
            self._started = True
            for sink in self._sinks:
                sink.on_start(self._config)


def open_sinks(names: Sequence[str], folder: Path, config: Config) -> Sinks:
    """Sinks by their names, for a run in `folder`; nothing is written yet.

    Raises
    ------
    ConfigError
        If a name is unknown, or its package is not installed.
    """
    for name in names:
        if name not in _MAKERS:
            raise ConfigError(f"sink: no sink {name!r}; one of {', '.join(_MAKERS)}")
        if find_spec(name) is None:
            raise ConfigError(
                f"sink: {name} is not installed; install it with pip install 'fedef[{name}]', "
                f"or leave out --sink {name}"
            )
    return Sinks(config, [_MAKERS[name](folder) for name in dict.fromkeys(names)])


class TensorBoard:
    """Event files in ``tensorboard/``; a run that goes on adds one, which replaces its steps."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "tensorboard"
        self._writer: Any = None
        self._told = False

    def on_start(self, config: Config) -> None:
        """Write the configuration as text."""
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.plugins.text.metadata import create_summary_metadata
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(self._path))
        # A table in Markdown; the indent keeps a value from being read as markup.
        text = "\n".join(f"    {key} = {value!r}" for key, value in config.to_flat().items())
        value = Summary.Value(
            tag="config",
            metadata=create_summary_metadata(display_name="config", description=""),
            tensor=TensorProto(dtype="DT_STRING", string_val=[text.encode()]),
        )
        self._write(0, summary=Summary(value=[value]))

    def on_round(self, line: Line) -> None:
        """One scalar for each number."""
        if not self._told:
            from tensorboard.compat.proto.event_pb2 import SessionLog

            # What an earlier file says of this step and later ones is void.
            self._told = True
            self._write(int(line["round"]), session_log=SessionLog(status="START"))
        self._scalars("rounds", line, int(line["round"]))

    def on_end(self, summary: Line) -> None:
        """The summary's numbers, and close the file."""
        self._scalars("summary", summary, int(summary["rounds"]))
        self._writer.close()

    def on_error(self, error: BaseException) -> None:
        """Close the file."""
        self._writer.close()

    def _scalars(self, group: str, values: Mapping[str, Any], step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [
            Summary.Value(tag=f"{group}/{name}", simple_value=value)
            for name, value in _numbers(values)
        ]
        self._write(step, summary=Summary(value=scalars))

    def _write(self, step: int, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.add_event(Event(wall_time=time.time(), step=step, **content))
        self._writer.flush()


class MlFlow:
    """A run in the SQLite store ``mlflow.db``; a run that goes on continues it."""

    _EXPERIMENT = "fedef"
    _STATUS: Mapping[str, str] = {"completed": "FINISHED", "interrupted": "KILLED"}

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._client: Any = None
        self._run = ""
        self._logged = 0

    def on_start(self, config: Config) -> None:
        """Find or make the run and log the configuration."""
        # MLflow would otherwise count its use over the network.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("DO_NOT_TRACK", "true")
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        for logger in ("mlflow", "alembic"):
            logging.getLogger(logger).setLevel(logging.WARNING)
        self._client = MlflowClient(tracking_uri=f"sqlite:///{self._folder / 'mlflow.db'}")
        found = self._client.get_experiment_by_name(self._EXPERIMENT)
        if found is None:
            files = (self._folder / "mlflow-files").as_uri()
            experiment = self._client.create_experiment(self._EXPERIMENT, artifact_location=files)
        else:
            experiment = found.experiment_id
        # A kill may have come between any two of these steps.
        run = next(iter(self._client.search_runs([experiment])), None)
        if run is None:
            run = self._client.create_run(experiment, run_name=self._folder.name)
        self._run = run.info.run_id
        if not run.data.params:
            # A parameter never changes, but a run that goes on may be for more rounds.
            flat = {key: value for key, value in config.to_flat().items() if key != "num-rounds"}
            parameters = [Param(key, str(value)) for key, value in flat.items()]
            self._client.log_batch(self._run, params=parameters)
        self._client.update_run(self._run, status="RUNNING")
        history = self._client.get_metric_history(self._run, "uplink-bytes")
        self._logged = max((metric.step for metric in history), default=0)

    def on_round(self, line: Line) -> None:
        """One metric for each number; rounds done again from a checkpoint are there already."""
        if line["round"] > self._logged:
            self._metrics(line, int(line["round"]), "")

    def on_end(self, summary: Line) -> None:
        """The summary's numbers, its status and its fingerprint."""
        self._metrics(summary, int(summary["rounds"]), "summary-")
        for name in ("status", "engine", "model-sha256"):
            self._client.set_tag(self._run, name, str(summary.get(name)))
        self._client.set_terminated(self._run, self._STATUS.get(summary["status"], "FAILED"))

    def on_error(self, error: BaseException) -> None:
        """Its text, and that the run failed."""
        self._client.set_tag(self._run, "error", f"{type(error).__name__}: {error}")
        interrupted = isinstance(error, KeyboardInterrupt)
        self._client.set_terminated(self._run, "KILLED" if interrupted else "FAILED")

    def _metrics(self, values: Mapping[str, Any], step: int, prefix: str) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(prefix + name, value, now, step) for name, value in _numbers(values)]
        self._client.log_batch(self._run, metrics=metrics)


_MAKERS: dict[str, Callable[[Path], Sink]] = {"tensorboard": TensorBoard, "mlflow": MlFlow}


def _numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """What can be drawn: numbers, but not the round itself."""
    for name, value in values.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and name != "round":
            yield name, float(value)
