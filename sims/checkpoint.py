"""The whole state of a run in one file; what one engine wrote, another goes on with."""

from __future__ import annotations

from pathlib import Path

from fedef.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from fedef.errors import ConfigError
from fedef.experiment import Experiment
from fedef.state import ClientState
from sims.engine import Engine, InlineEngine


def save_checkpoint(path: Path, engine: Engine) -> None:
    """Write server and clients, atomically and with a checksum."""
    checkpoint = Checkpoint(engine.server.state, dict(engine.client_arrays()))
    write_checkpoint(path, checkpoint, experiment=engine.experiment)


def whole_checkpoint(path: Path, experiment: Experiment) -> Checkpoint:
    """What `save_checkpoint` left of a run, on whatever engine: the clients' states are there.

    Raises
    ------
    ConfigError
        If the file is missing or corrupt, belongs to another run, or its clients keep their own
        states, as they do on Flower.
    """
    checkpoint = read_checkpoint(path, experiment=experiment)
    if checkpoint.token:
        raise ConfigError(
            f"resume: the clients of {str(path)!r} keep their own states, on Flower's nodes; "
            "go on there, by flwr run with the key resume"
        )
    return checkpoint


def load_checkpoint(path: Path, experiment: Experiment) -> InlineEngine:
    """Inline engine that goes on from a checkpoint.

    Raises
    ------
    ConfigError
        As `whole_checkpoint`.
    """
    checkpoint = whole_checkpoint(path, experiment)
    clients = {i: ClientState.from_arrays(arrays) for i, arrays in checkpoint.clients.items()}
    return InlineEngine(experiment, server_state=checkpoint.server, client_states=clients)
