"""The server's state on its disk: a checkpoint, and on demand a mirror of every client's g_i.

The checkpoint holds what its round changed in the mirror, as entries that overwrite. It is written
first, then the mirror; after a crash the mirror is brought up to the checkpoint, which changes
nothing where it was already there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedef.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from fedef.errors import ConfigError
from fedef.experiment import Experiment
from fedef.members import MIRRORED, Policies
from fedef.server_session import Rows, ServerSession
from fedef.updates import Update
from fedef.vectors import Vector


class Mirror:
    """(n, d) every client's g_i, in a memory-mapped file; rows never written take no disk.

    Parameters
    ----------
    path
        An npy file; made if it is missing.
    shape
        (n, d).
    dtype
        The problem's.

    Raises
    ------
    ConfigError
        If the file cannot be made, or is another run's.
    """

    def __init__(self, path: Path, shape: tuple[int, int], dtype: np.dtype[np.floating]) -> None:
        new = not path.exists()
        try:
            self._rows = np.lib.format.open_memmap(
                path,
                mode="w+" if new else "r+",
                dtype=dtype if new else None,
                shape=shape if new else None,
            )
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"mirror {str(path)!r}: {error}; free space, or restore it with its checkpoint"
            ) from None
        if (self._rows.shape, self._rows.dtype) != (shape, dtype):
            raise ConfigError(
                f"mirror {str(path)!r}: holds {self._rows.shape} of {self._rows.dtype}, expected "
                f"{shape} of {dtype}; restore it with its checkpoint"
            )

    def row(self, client: int) -> Vector:
        """(d,) g_i, to be read only."""
        row: Vector = np.asarray(self._rows[client])
        row.flags.writeable = False
        return row

    def overwrite(self, changes: Mapping[int, Update]) -> None:
        """Put the entries into the rows and have them on the disk; again changes nothing."""
        for client, entries in sorted(changes.items()):
            entries.overwrite(self._rows[client])
        if changes:
            self._rows.flush()


class ServerStore:
    """Where the server of a run keeps its state.

    Parameters
    ----------
    path
        The checkpoint's file; the mirror lies beside it.
    experiment
        What is run.
    policies
        Whether there is a mirror.
    """

    def __init__(self, path: Path, experiment: Experiment, policies: Policies) -> None:
        self._path, self._experiment = path, experiment
        self.mirror: Mirror | None = None
        problem = experiment.problem
        if policies.on_lost_state in MIRRORED:
            shape = (experiment.num_clients, problem.dimension)
            self.mirror = Mirror(path.with_name("mirror.npy"), shape, problem.dtype)

    @property
    def rows(self) -> Rows | None:
        """A client's g_i by the client, where there is a mirror."""
        return None if self.mirror is None else self.mirror.row

    @property
    def mirror_bytes(self) -> int:
        """Disk that the mirror takes at most."""
        problem = self._experiment.problem
        return self._experiment.num_clients * problem.dimension * problem.dtype.itemsize

    def save(self, checkpoint: Checkpoint, session: ServerSession | None = None) -> Checkpoint:
        """Have the session's state, or the start, on the disk; return the new checkpoint."""
        if session is not None:
            checkpoint = replace(
                checkpoint,
                server=session.state,
                weights=session.weights,
                mirrored=dict(session.mirrored),
            )
        checkpoint = replace(checkpoint, has_mirror=self.mirror is not None)
        write_checkpoint(self._path, checkpoint, experiment=self._experiment)
        if self.mirror is not None:
            self.mirror.overwrite(checkpoint.mirrored)
        return checkpoint

    def load(self) -> Checkpoint:
        """Return the last checkpoint, and bring the mirror up to it.

        Raises
        ------
        ConfigError
            If the file is missing, corrupt or another run's, or was written without the mirror
            that is asked for.
        """
        checkpoint = read_checkpoint(self._path, experiment=self._experiment)
        if self.mirror is not None:
            if checkpoint.server.records and not checkpoint.has_mirror:
                raise ConfigError(
                    "on-lost-state: the run kept no mirror of the clients' states so far; "
                    "go on with stop, evict-by-reset or dense-resync"
                )
            self.mirror.overwrite(checkpoint.mirrored)
        return checkpoint
