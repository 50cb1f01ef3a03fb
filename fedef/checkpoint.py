"""A run's state in one file: the server's, and the clients' where they do not keep their own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np

from fedef.durable import read_arrays, write_arrays
from fedef.errors import ConfigError
from fedef.experiment import Experiment
from fedef.packing import packed, unpacked
from fedef.problems.base import Problem
from fedef.state import Arrays, ServerState
from fedef.updates import Update

_OF_THE_RUN = {"id", "weights", "facts"}


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
    has_mirror: bool = False
    """Whether a mirror of the clients' g_i lies beside the file."""
    mirrored: Mapping[int, Update] = field(default_factory=dict)
    """What the last round changed in the mirror, as entries that overwrite its rows."""


def write_checkpoint(path: Path, checkpoint: Checkpoint, *, experiment: Experiment) -> None:
    """Write it, atomically and with a checksum; it is on the disk when this returns."""
    arrays = _prefixed("server", checkpoint.server.to_arrays())
    arrays["run/id"] = np.array([experiment.run_id], dtype=np.int64)
    arrays |= _prefixed("data", _data_facts(experiment.problem))
    arrays["run/weights"] = np.array(checkpoint.weights, dtype=np.float64)
    facts = {"token": checkpoint.token, "mirror": checkpoint.has_mirror}
    arrays["run/facts"] = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
    for client, entries in sorted(checkpoint.mirrored.items()):
        arrays[f"mirror/{client}.values"] = entries.values
        if entries.indices is not None:
            arrays[f"mirror/{client}.indices"] = entries.indices
    arrays |= _prefixed("client", packed(checkpoint.clients))
    write_arrays(path, arrays)


def read_checkpoint(path: Path, *, experiment: Experiment) -> Checkpoint:
    """What `write_checkpoint` wrote.

    Raises
    ------
    ConfigError
        If the file is missing or corrupt, or belongs to another run or other data.
    """
    parts: dict[str, Arrays] = {}
    for name, array in read_arrays(path).items():
        owner, _, part = name.partition("/")
        parts.setdefault(owner, {})[part] = array
    run, mirrored = parts.get("run", {}), parts.get("mirror", {})
    complete = parts.keys() >= {"server", "client", "data"} and run.keys() >= _OF_THE_RUN
    if not complete or run["id"].tolist() != [experiment.run_id]:
        raise ConfigError(
            f"state file {str(path)!r} belongs to another configuration than the folder's "
            "config.toml; restore both from the same run"
        )
    _require_same_data(path, parts["data"], _data_facts(experiment.problem))
    facts = json.loads(run["facts"].tobytes())
    server = ServerState.from_arrays(parts["server"])
    return Checkpoint(
        server=server,
        clients=unpacked(parts["client"]),
        token=facts["token"],
        weights=tuple(run["weights"].tolist()),
        has_mirror=facts["mirror"],
        mirrored={
            int(name.removesuffix(".values")): Update(
                server.x.size, values, mirrored.get(name.replace(".values", ".indices"))
            )
            for name, values in mirrored.items()
            if name.endswith(".values")
        },
    )


def _data_facts(problem: Problem) -> Arrays:
    """What tells other data behind the same configuration: a file that was changed, say."""
    start = problem.initial_point()
    return {
        "num_examples": np.array(problem.num_examples, dtype=np.int64),
        "x0_sha256": np.frombuffer(sha256(start.tobytes()).digest(), dtype=np.uint8),
    }


def _require_same_data(path: Path, stored: Arrays, found: Arrays) -> None:
    if stored.keys() != found.keys() or not np.array_equal(stored["x0_sha256"], found["x0_sha256"]):
        raise ConfigError(
            f"state file {str(path)!r} is of a run with another initial point: the data files, or "
            "the file of initial-point, are not those that the run began with; restore them"
        )
    before, now = stored["num_examples"], found["num_examples"]
    if not np.array_equal(before, now):
        size = min(before.size, now.size)
        first = int(np.argmax(np.append(before[:size] != now[:size], True)))
        raise ConfigError(
            f"state file {str(path)!r} is of a run on other data: it had {before.size} clients "
            f"with {before.sum()} examples, now there are {now.size} with {now.sum()}, and client "
            f"{first} is the first that differs; restore the data files that the run began with"
        )


def _prefixed(owner: str, arrays: Arrays) -> Arrays:
    return {f"{owner}/{name}": array for name, array in arrays.items()}
