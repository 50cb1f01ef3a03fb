"""What a run leaves on disk.

::

    config.toml         the configuration, complete
    environment.json    versions and machine, no names or paths
    rounds.jsonl        one flushed line a round, see `recorder`
    summary.json        the result
    model.safetensors   the last model, by the parameters' names
    checkpoint.fdf      what a resumed run needs
    journal/            on Flower: the rounds since the checkpoint, see `journal`
    mirror.npy, .json   on Flower: every client's g_i, where the policy needs it, see `server_store`
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

import tomli_w
from numpy.typing import NDArray

from fedef.config import Config, read_toml
from fedef.durable import discard_leftovers, make_folder, serialized, write_atomically
from fedef.errors import ConfigError

_PACKAGES = ("fedef", "flwr", "numpy", "ray", "scikit-learn", "torch")


class RunFolder:
    """One run's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, config: Config, *, engine: str) -> Self:
        """Make the folder with the configuration and the environment in it.

        Raises
        ------
        ConfigError
            If a run is already there, or the folder cannot be written.
        """
        folder = cls(path)
        folder.require_new()
        try:
            write_atomically(folder.config_path, tomli_w.dumps(config.to_flat()).encode())
            folder._write_json("environment.json", {"engine": engine, **environment()})
            folder.rounds_path.touch()
        except OSError as error:
            raise ConfigError(
                f"out: cannot write to {str(path)!r}: {error.strerror}; choose another folder"
            ) from None
        return folder

    def require_new(self) -> None:
        """Make the folder, which must not hold a run.

        Raises
        ------
        ConfigError
            If a run is already there, or the folder cannot be made.
        """
        if self.config_path.exists() or self.rounds_path.exists():
            raise ConfigError(
                f"out: {str(self.path)!r} already holds a run; choose another folder, "
                "or go on with it by --resume"
            )
        try:
            make_folder(self.path)
        except OSError as error:
            raise ConfigError(
                f"out: cannot write to {str(self.path)!r}: {error.strerror}; choose another folder"
            ) from None

    @classmethod
    def open(cls, path: Path) -> tuple[Self, Config]:
        """Return an existing folder and its configuration.

        Raises
        ------
        ConfigError
            If no run is there.
        """
        folder = cls(path)
        if not folder.config_path.is_file():
            raise ConfigError(
                f"resume: {str(path)!r} holds no run (no config.toml); give a run's folder"
            )
        try:
            return folder, Config.from_flat(read_toml(folder.config_path))
        except ConfigError as error:
            raise ConfigError(f"{str(folder.config_path)!r}: {error}") from None

    @property
    def config_path(self) -> Path:
        """The configuration's file."""
        return self.path / "config.toml"

    @property
    def rounds_path(self) -> Path:
        """The metrics' file."""
        return self.path / "rounds.jsonl"

    @property
    def summary_path(self) -> Path:
        """The result's file."""
        return self.path / "summary.json"

    @property
    def checkpoint_path(self) -> Path:
        """The state's file."""
        return self.path / "checkpoint.fdf"

    @property
    def model_path(self) -> Path:
        """The last model's file."""
        return self.path / "model.safetensors"

    def require_checkpoint(self) -> None:
        """Check that there is a checkpoint to go on from.

        Raises
        ------
        ConfigError
            If there is none.
        """
        if not self.checkpoint_path.exists():
            raise ConfigError(
                f"resume: {str(self.path)!r} has no checkpoint.fdf: the run ended before its first "
                "one (see --checkpoint-every; on Flower server-checkpoint-every); start it "
                f"again with --config {str(self.config_path)!r}"
            )

    def append_round(self, line: Mapping[str, Any]) -> None:
        """Append one line to rounds.jsonl and hand it to the operating system."""
        with self.rounds_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def rounds(self) -> Iterator[dict[str, Any]]:
        """Lines of rounds.jsonl; a last line that a kill cut off is left out.

        Raises
        ------
        ConfigError
            If the file is missing or another line is damaged.
        """
        try:
            lines = self.rounds_path.read_bytes().splitlines(keepends=True)
        except OSError as error:
            raise ConfigError(f"{str(self.rounds_path)!r}: {error.strerror}") from None
        for number, line in enumerate(lines, start=1):
            try:
                yield json.loads(line.decode())
            except ValueError:
                if number == len(lines) and not line.endswith(b"\n"):
                    return
                raise ConfigError(
                    f"{str(self.rounds_path)!r}: line {number} is damaged; "
                    "restore the folder or start the run again"
                ) from None

    def truncate_rounds(self, rounds: int) -> None:
        """Keep the lines of the first `rounds` rounds, those that a checkpoint contains.

        Raises
        ------
        ConfigError
            If some of them are not there.
        """
        kept = [line for line in self.rounds() if line["round"] <= rounds]
        if len(kept) != rounds:
            raise ConfigError(
                f"{str(self.rounds_path)!r} holds {len(kept)} of the {rounds} rounds before the "
                "checkpoint; restore the folder or start the run again"
            )
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomically(self.rounds_path, text.encode())

    def sync_rounds(self) -> None:
        """Have rounds.jsonl on the disk itself, which `append_round` leaves to the system."""
        with self.rounds_path.open("a", encoding="utf-8") as file:
            os.fsync(file.fileno())

    def discard_leftovers(self) -> None:
        """Remove what killed processes left of files that they were writing."""
        for path in (
            self.config_path,
            self.rounds_path,
            self.summary_path,
            self.checkpoint_path,
            self.model_path,
        ):
            discard_leftovers(path)

    def remove_summary(self) -> None:
        """Remove the result of a run that goes on: a kill must not leave the old one."""
        self.summary_path.unlink(missing_ok=True)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json."""
        self._write_json("summary.json", summary)

    def write_config(self, config: Config) -> None:
        """Replace the configuration, when a run goes on for more rounds."""
        write_atomically(self.config_path, tomli_w.dumps(config.to_flat()).encode())

    def write_model(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write model.safetensors."""
        write_atomically(self.model_path, serialized(arrays))

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        write_atomically(self.path / name, text.encode())


def environment() -> dict[str, Any]:
    """Versions and machine kind: enough to compare runs, no host or user names."""
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
