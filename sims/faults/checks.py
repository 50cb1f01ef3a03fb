"""What must hold after each round and at the end, whatever happened."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from fedef.checkpoint import Checkpoint
from fedef.errors import FedefError
from fedef.experiment import Experiment
from fedef.messages import Reply
from fedef.recorder import model_sha256
from fedef.run_folder import RunFolder
from fedef.state import ClientRecord, ClientState
from sims.engine import InlineEngine

LARGEST_ERROR = 1e-5
"""float32 states beside the server's float64 sum; a lost update is orders above it."""

Held = Sequence[tuple[ClientRecord, ClientState | None]]
"""Of each client what the server holds of it, and what its own file holds."""


def mean_error(experiment: Experiment, checkpoint: Checkpoint, held: Held) -> float:
    """Return max |g - weighted mean of the clients' g_i| / max |g|.

    Raises
    ------
    FedefError
        If it is above `LARGEST_ERROR`, or a client has not the state that the server holds of it.
    """
    server = checkpoint.server
    weights = checkpoint.weights or experiment.weights
    total = np.zeros_like(server.total)
    for weight, (record, state) in zip(weights, held, strict=True):
        if state is None:
            if record.version:
                raise FedefError("a client lost the state that the server holds of it")
            continue
        settled = state.settled(record.version, record.digest)  # StateMismatch: neither holds
        total += weight * settled.g.astype(np.float64)
    scale = float(np.max(np.abs(server.total), initial=0.0)) or 1.0
    error = float(np.max(np.abs(total - server.total), initial=0.0)) / scale
    if error > LARGEST_ERROR:
        raise FedefError(
            f"round {server.round}: the server's g is not the mean of the clients' g_i, "
            f"relative error {error:.3g}"
        )
    return error


def missing_by_round(folder: RunFolder) -> list[set[int]]:
    """Clients that each round was closed without."""
    lines = folder.rounds_path.read_text(encoding="utf-8").splitlines()
    return [set(json.loads(line)["missing"]) for line in lines]


def same_bits_inline(experiment: Experiment, folder: RunFolder) -> bool:
    """Whether the run, done again inline without the replies that it lost, ends in its model."""
    engine = InlineEngine(experiment)
    for missing in missing_by_round(folder):

        def network(replies: list[Reply], lost: set[int] = missing) -> list[Reply]:
            return [reply for reply in replies if reply.client not in lost]

        engine.round(network=network)
    summary = json.loads(folder.summary_path.read_text(encoding="utf-8"))
    return model_sha256(engine.server.x) == str(summary["model-sha256"])
