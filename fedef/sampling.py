"""Which rows a gradient is of: drawn from named streams, or replayed from a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedef.errors import ConfigError
from fedef.problems.files import read_npz
from fedef.randomness import stream
from fedef.vectors import IntVector


class Sampler(Protocol):
    """Rows of a client's data for a round; the same on every engine and after every restart."""

    def rows(
        self, name: str, client: int, round: int, *, available: int, step: int = 0
    ) -> IntVector | None:
        """Rows of the batch called `name` (minibatch or independent); None: all of them.

        `step`: the local step, from 0.
        """


@dataclass(frozen=True)
class StreamSampler:
    """Uniform without replacement, from the stream (seed, name, client, round[, local step]).

    A round's first batch is the same for any number of local steps: its stream names no step.
    """

    seed: int
    sizes: dict[str, int]
    """Rows of each batch by name; 0: all."""

    def rows(
        self, name: str, client: int, round: int, *, available: int, step: int = 0
    ) -> IntVector | None:
        """See `Sampler.rows`."""
        size = self.sizes[name]
        if size == 0 or size >= available:
            return None
        draws = stream(self.seed, name, client, round, *([step] if step else []))
        return draws.choice(available, size=size, replace=False)


@dataclass(frozen=True)
class ReplaySampler:
    """Rows that were recorded: (K, n, B) for K rounds and n clients, one local step."""

    recorded: dict[str, IntVector]

    def rows(
        self, name: str, client: int, round: int, *, available: int, step: int = 0
    ) -> IntVector | None:
        """See `Sampler.rows`.

        Raises
        ------
        ConfigError
            If the recording is too short, or names rows that the client does not have.
        """
        if name not in self.recorded:
            return None
        recorded = self.recorded[name]
        if round > recorded.shape[0] or client >= recorded.shape[1]:
            raise ConfigError(
                f"replay: {name} is recorded for {recorded.shape[0]} rounds and "
                f"{recorded.shape[1]} clients, asked for round {round} of client {client}"
            )
        rows: IntVector = recorded[round - 1, client]
        if rows.size and not 0 <= rows.min() <= rows.max() < available:
            raise ConfigError(
                f"replay: {name} of round {round} names rows up to {rows.max()}, client {client} "
                f"has {available}"
            )
        return rows


def read_replay(path: str) -> ReplaySampler:
    """Recorded rows of an npz file.

    It holds `minibatch` and optionally `independent`: integers of shape (K, n, B) for K rounds and
    n clients, or (K, B) for one client.

    Raises
    ------
    ConfigError
        If the file is unusable.
    """
    arrays = read_npz("replay", path, ["minibatch"], ["independent"])
    recorded: dict[str, IntVector] = {}
    for name in ("minibatch", "independent"):
        if name not in arrays:
            continue
        rows = arrays[name]
        if rows.ndim not in (2, 3) or not np.issubdtype(rows.dtype, np.integer):
            raise ConfigError(
                f"replay: {path!r}: {name} must hold integers of shape (K, B) or (K, n, B), got "
                f"{rows.dtype} of shape {rows.shape}"
            )
        wide = rows.astype(np.int64)
        recorded[name] = wide[:, None, :] if rows.ndim == 2 else wide
    return ReplaySampler(recorded)
