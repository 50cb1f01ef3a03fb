"""A run's state in one file: the server's, and the clients' where they live in the same process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedef.durable import read_arrays, write_arrays
from fedef.errors import ConfigError
from fedef.experiment import Experiment
from fedef.state import Arrays, ClientState, ServerState


@dataclass(frozen=True)
class Checkpoint:
    """What a run goes on from."""

    server: ServerState
    clients: Mapping[int, ClientState] = field(default_factory=dict)
    """By client; empty where clients keep their own."""
    token: str = ""
    """The run's name in the clients' stores; empty where nothing is kept there."""
    weights: tuple[float, ...] = ()
    """(n,) weights that the sum in `server` is made with; empty: the experiment's."""


def save_checkpoint(path: Path, experiment: Experiment, checkpoint: Checkpoint) -> None:
    """Write it, atomically and with a checksum; it is on the disk when this returns."""
    arrays = _prefixed("server", checkpoint.server.to_arrays())
    arrays["run/id"] = np.array([experiment.run_id], dtype=np.int64)
    arrays["run/weights"] = np.array(checkpoint.weights, dtype=np.float64)
    token = json.dumps(checkpoint.token).encode()
    arrays["run/token"] = np.frombuffer(token, dtype=np.uint8)
    for client, state in sorted(checkpoint.clients.items()):
        arrays |= _prefixed(f"client-{client}", state.to_arrays())
    write_arrays(path, arrays)


def load_checkpoint(path: Path, experiment: Experiment) -> Checkpoint:
    """Inverse of `save_checkpoint`.

    Raises
    ------
    ConfigError
        If the file is missing or corrupt, or belongs to another run.
    """
    parts: dict[str, Arrays] = {}
    for name, array in read_arrays(path).items():
        owner, _, part = name.partition("/")
        parts.setdefault(owner, {})[part] = array
    run = parts.pop("run", {})
    complete = run.keys() >= {"id", "weights", "token"} and "server" in parts
    if not complete or run["id"].tolist() != [experiment.run_id]:
        raise ConfigError(
            f"state file {str(path)!r} belongs to another configuration than the folder's "
            "config.toml; restore both from the same run"
        )
    return Checkpoint(
        server=ServerState.from_arrays(parts.pop("server")),
        clients={
            int(owner.removeprefix("client-")): ClientState.from_arrays(arrays)
            for owner, arrays in parts.items()
        },
        token=json.loads(run["token"].tobytes()),
        weights=tuple(run["weights"].tolist()),
    )


def _prefixed(owner: str, arrays: Arrays) -> Arrays:
    return {f"{owner}/{name}": array for name, array in arrays.items()}
