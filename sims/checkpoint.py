"""The whole state of an inline run in one file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedef.durable import read_arrays, write_arrays
from fedef.errors import ConfigError
from fedef.experiment import Experiment
from fedef.state import Arrays, ClientState, ServerState
from sims.engine import InlineEngine


def save_checkpoint(path: Path, engine: InlineEngine) -> None:
    """Write server and clients, atomically and with a checksum."""
    arrays = _prefixed("server", engine.server.state.to_arrays())
    arrays["run/id"] = np.array([engine.experiment.run_id], dtype=np.int64)
    for client, session in sorted(engine.clients.items()):
        arrays |= _prefixed(f"client-{client}", session.state.to_arrays())
    write_arrays(path, arrays)


def load_checkpoint(path: Path, experiment: Experiment) -> InlineEngine:
    """Engine that goes on where `save_checkpoint` left it.

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
    if run is None or run.tolist() != [experiment.run_id] or "server" not in parts:
        raise ConfigError(
            f"state file {str(path)!r} belongs to another configuration than the folder's "
            "config.toml; restore both from the same run"
        )
    server = ServerState.from_arrays(parts.pop("server"))
    clients = {
        int(owner.removeprefix("client-")): ClientState.from_arrays(arrays)
        for owner, arrays in parts.items()
    }
    return InlineEngine(experiment, server_state=server, client_states=clients)


def _prefixed(owner: str, arrays: Arrays) -> Arrays:
    return {f"{owner}/{name}": array for name, array in arrays.items()}
