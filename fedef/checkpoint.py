"""A run's state in one file: the server's, and the clients' where they do not keep their own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedef.durable import read_arrays, write_arrays
from fedef.errors import ConfigError
from fedef.state import Arrays, ServerState


@dataclass(frozen=True)
class Checkpoint:
    """A run between two rounds."""

    server: ServerState
    clients: Mapping[int, Arrays] = field(default_factory=dict)
    """The states of the clients that were ever asked, as named arrays; empty where clients keep
    their own."""
    token: str = ""
    """The run's name in the clients' own stores; empty where they keep nothing."""
    weights: tuple[float, ...] = ()
    """(n,) weights that the clients themselves told; empty: the experiment's."""


def write_checkpoint(path: Path, checkpoint: Checkpoint, *, run_id: int) -> None:
    """Write it, atomically and with a checksum; it is on the disk when this returns."""
    arrays = _prefixed("server", checkpoint.server.to_arrays())
    arrays["run/id"] = np.array([run_id], dtype=np.int64)
    arrays["run/weights"] = np.array(checkpoint.weights, dtype=np.float64)
    arrays["run/token"] = np.frombuffer(json.dumps(checkpoint.token).encode(), dtype=np.uint8)
    for client, state in sorted(checkpoint.clients.items()):
        arrays |= _prefixed(f"client-{client}", dict(state))
    write_arrays(path, arrays)


def read_checkpoint(path: Path, *, run_id: int) -> Checkpoint:
    """What `write_checkpoint` wrote.

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
    if not complete or run["id"].tolist() != [run_id]:
        raise ConfigError(
            f"state file {str(path)!r} belongs to another configuration than the folder's "
            "config.toml; restore both from the same run"
        )
    return Checkpoint(
        server=ServerState.from_arrays(parts.pop("server")),
        clients={int(owner.removeprefix("client-")): arrays for owner, arrays in parts.items()},
        token=json.loads(run["token"].tobytes()),
        weights=tuple(run["weights"].tolist()),
    )


def _prefixed(owner: str, arrays: Arrays) -> Arrays:
    return {f"{owner}/{name}": array for name, array in arrays.items()}
