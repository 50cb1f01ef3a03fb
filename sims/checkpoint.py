"""The whole state of a run in one file; what one engine wrote, another goes on with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedef.durable import read_arrays, write_arrays
from fedef.errors import ConfigError
from fedef.experiment import Experiment
from fedef.state import Arrays, ClientState, ServerState
from sims.engine import Engine, InlineEngine


@dataclass(frozen=True)
class Checkpoint:
    """A run between two rounds."""

    server: ServerState
    clients: dict[int, Arrays]
    """The states of the clients that were ever asked, as named arrays."""


def save_checkpoint(path: Path, engine: Engine) -> None:
    """Write server and clients, atomically and with a checksum."""
    arrays = _prefixed("server", engine.server.state.to_arrays())
    arrays["run/id"] = np.array([engine.experiment.run_id], dtype=np.int64)
    for client, state in engine.client_arrays():
        arrays |= _prefixed(f"client-{client}", state)
    write_arrays(path, arrays)


def read_checkpoint(path: Path, *, run_id: int) -> Checkpoint:
    """What `save_checkpoint` wrote.

    Raises
    ------
    ConfigError
        If the file is missing or corrupt, or belongs to another run.
    """
    parts: dict[str, Arrays] = {}
    for name, array in read_arrays(path).items():
        owner, _, field = name.partition("/")
        parts.setdefault(owner, {})[field] = array
    run = parts.pop("run", {}).get("id")
    if run is None or run.tolist() != [run_id] or "server" not in parts:
        raise ConfigError(
            f"state file {str(path)!r} belongs to another configuration than the folder's "
            "config.toml; restore both from the same run"
        )
    server = ServerState.from_arrays(parts.pop("server"))
    clients = {int(owner.removeprefix("client-")): arrays for owner, arrays in parts.items()}
    return Checkpoint(server, clients)


def load_checkpoint(path: Path, experiment: Experiment) -> InlineEngine:
    """Inline engine that goes on where `save_checkpoint` left a run, on whatever engine.

    Raises
    ------
    ConfigError
        If the file is missing or corrupt, or belongs to another run.
    """
    checkpoint = read_checkpoint(path, run_id=experiment.run_id)
    clients = {i: ClientState.from_arrays(arrays) for i, arrays in checkpoint.clients.items()}
    return InlineEngine(experiment, server_state=checkpoint.server, client_states=clients)


def _prefixed(owner: str, arrays: Arrays) -> Arrays:
    return {f"{owner}/{name}": array for name, array in arrays.items()}
